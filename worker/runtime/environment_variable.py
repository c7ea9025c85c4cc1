"""One variable of the environment: its name, how its text is parsed, and which programs read it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.errors import SettingsError
from worker.registry import SETTINGS_OF

EVERY_PROGRAM = "every program"

_CREDENTIALS = re.compile(r"//[^/]*@")  # in a URL that should have none


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentVariable:
    """What is known of a variable. ``programs`` and ``required_by``: names separated by spaces, or EVERY_PROGRAM."""

    name: str
    parse: Callable[[str], Any]  # raises ValueError, whose text says what is allowed
    default: str | None
    purpose: str
    programs: str  # that read it
    required_by: str  # programs that do not start without it
    secret: bool

    def is_read_by(self, program: str) -> bool:
        return _names(self.programs, program)

    def is_required_by(self, program: str) -> bool:
        return _names(self.required_by, program)

    def value(self, environ: Mapping[str, str]) -> Any:
        """The parsed value; where the variable is not set, its default, or None if it has none.

        Raises SettingsError with one line that names the variable, its value (never a secret) and what is allowed.
        """
        text = self._text(environ) or self.default
        return None if text is None else self._parsed(text)

    def value_for(self, program: str, environ: Mapping[str, str]) -> Any:
        """As ``value``; but the default for a program that does not read it, an error for one that requires it."""
        if not self.is_read_by(program):
            return self.value({})
        if self.is_required_by(program) and self._text(environ) is None:
            raise SettingsError(f"{self.name} is not set: {self.purpose}")
        return self.value(environ)

    def _text(self, environ: Mapping[str, str]) -> str | None:
        """The variable's text, or that of the file which NAME_FILE names. Empty text counts as not set."""
        if environ.get(self.name):
            return environ[self.name]
        path = environ.get(f"{self.name}_FILE")
        if not path:
            return None
        try:
            return Path(path).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{self.name}_FILE={path} cannot be read: {error}") from error

    def _parsed(self, text: str) -> Any:
        try:
            return self.parse(text)
        except ValueError as error:
            shown = "(a secret, not shown)" if self.secret else repr(_CREDENTIALS.sub("//...@", text))
            raise SettingsError(f"{self.name} is {shown}, allowed is {error}") from None


def variable(
    name: str,
    parse: Callable[[str], Any],
    default: str | None,
    purpose: str,
    *,
    programs: str = EVERY_PROGRAM,
    secret: bool = False,
    required_by: str = "",
) -> Any:
    """A field of Settings whose value comes from an environment variable."""
    described = EnvironmentVariable(
        name=name,
        parse=parse,
        default=default,
        purpose=purpose,
        programs=programs,
        required_by=required_by,
        secret=secret,
    )
    return field(metadata={"variable": described})


def _names(programs: str, program: str) -> bool:
    names = programs.split()
    return programs == EVERY_PROGRAM or program in names or SETTINGS_OF.get(program) in names
