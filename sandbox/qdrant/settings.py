"""The settings of the development Qdrant: Qdrant's own YAML file, overridden by QDRANT__SECTION__KEY."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Qdrant's defaults for what is neither in the file nor in the environment
_DEFAULTS = {
    ("service", "host"): "0.0.0.0",  # noqa: S104 - Qdrant's default
    ("service", "http_port"): "6333",
    ("service", "api_key"): "",
    ("service", "max_request_size_mb"): "32",
    ("service", "enable_tls"): "false",
    ("storage", "storage_path"): "./storage",
    ("storage", "snapshots_path"): "./snapshots",
}
_HIGHEST_PORT = 65_535
_MB = 1024 * 1024


class BadSettings(Exception):
    """The text names the setting and the problem."""


@dataclass(frozen=True)
class Settings:
    host: str
    http_port: int
    api_key: str  # '': no key is needed
    max_request_bytes: int
    storage: Path
    snapshots: Path


def read(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in a file and an environment; keys that only the real Qdrant uses are ignored.

    Raises BadSettings, which never shows the API key.
    """
    sections = _sections(path)
    values = {place: _value(place, sections, environ) for place in _DEFAULTS}
    if values["service", "enable_tls"].lower() == "true":
        raise BadSettings("service.enable_tls: the development server has no TLS")
    return Settings(
        host=values["service", "host"],
        http_port=_number(values, "http_port", _HIGHEST_PORT),
        api_key=values["service", "api_key"],
        max_request_bytes=_number(values, "max_request_size_mb", 1024) * _MB,
        storage=Path(values["storage", "storage_path"]).absolute(),
        snapshots=Path(values["storage", "snapshots_path"]).absolute(),
    )


def _sections(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadSettings(f"{path} must hold a mapping of sections")
    return content


def _value(place: tuple[str, str], sections: dict[str, Any], environ: Mapping[str, str]) -> str:
    section, key = place
    name = f"QDRANT__{section}__{key}".upper()
    if name in environ:
        return environ[name]
    keys = sections.get(section) or {}
    if not isinstance(keys, dict):
        raise BadSettings(f"{section} must be a mapping of settings")
    value = keys.get(key)
    if isinstance(value, (dict, list)):
        raise BadSettings(f"{section}.{key} must be one value")
    return _DEFAULTS[place] if value is None else str(value)


def _number(values: Mapping[tuple[str, str], str], key: str, highest: int) -> int:
    text = values["service", key]
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= highest):
        raise BadSettings(f"service.{key} must be a number from 1 to {highest}, not {text!r}")
    return int(text)
