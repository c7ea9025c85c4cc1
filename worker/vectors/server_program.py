"""Qdrant's own program: where it is, what it needs, and the environment it is started with."""

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from worker.errors import SettingsError
from worker.runtime import program
from worker.runtime.settings import Settings

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf" / "qdrant.yaml"
DEVELOPMENT_SERVER = "sandbox.qdrant.server"  # production has no sandbox/


def require_writable(path: Path) -> None:
    """Makes the folder where it is missing. Raises SettingsError when Qdrant could not write there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"Qdrant writes here")
            file.flush()
    except OSError as error:
        raise SettingsError(
            f"Qdrant cannot write to {path}: {error.strerror or error}; make it a folder of the user {os.getuid()} "
            f"with room on its disk (chown -R {os.getuid()}:{os.getgid()} {path}), or name others in "
            "QDRANT__STORAGE__STORAGE_PATH and QDRANT__STORAGE__SNAPSHOTS_PATH"
        ) from error


def command_of(settings: Settings) -> list[str]:
    """What serves Qdrant's API here. Raises SettingsError."""
    arguments = ["--config-path", str(CONF)]
    named = settings.qdrant_bin
    if named is not None:
        if not named.is_file() or not os.access(named, os.X_OK) or _is_this(named):
            raise SettingsError(f"QDRANT_BIN is {named}, which is not Qdrant's program")
        return [str(named), *arguments]
    for found in _in_path():
        return [found, *arguments]
    if _installed(DEVELOPMENT_SERVER) and _installed("qdrant_edge"):
        log.warning("Qdrant is not installed: a server for development takes its place, not made for real data")
        return [sys.executable, "-m", DEVELOPMENT_SERVER, *arguments]
    raise SettingsError(
        "Qdrant is not installed: put its program qdrant into PATH or name it in QDRANT_BIN (docs/install.md), or "
        "set QDRANT_EMBEDDED=false where it runs elsewhere"
    )


def environment_of(settings: Settings) -> Mapping[str, str | None]:
    """What Qdrant is told besides conf/qdrant.yaml; None: what this program knows and Qdrant has no business with."""
    told: dict[str, str | None] = {name: None for name in program.secret_variables()}
    told["QDRANT__STORAGE__STORAGE_PATH"] = str(settings.qdrant_storage_path)
    told["QDRANT__STORAGE__SNAPSHOTS_PATH"] = str(settings.qdrant_snapshots_path)
    # it does not start where it cannot write this file, which is its working folder if nothing is said
    told["QDRANT_INIT_FILE_PATH"] = str(settings.qdrant_storage_path / ".qdrant-initialized")
    told["QDRANT__LOG_LEVEL"] = {"warning": "WARN"}.get(settings.log_level, settings.log_level.upper())
    if settings.qdrant_api_key is not None:
        told["QDRANT__SERVICE__API_KEY"] = settings.qdrant_api_key
    return told


def _in_path() -> Iterator[str]:
    """Each ``qdrant`` in PATH that is not this program."""
    for folder in os.get_exec_path():
        found = shutil.which("qdrant", path=folder)
        if found and not _is_this(Path(found)):
            yield found


def _is_this(path: Path) -> bool:
    return path.resolve() == PROJECT / "bin" / "qdrant"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False
