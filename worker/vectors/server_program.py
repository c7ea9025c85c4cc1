"""Qdrant's own program: where it is, what it needs, and the environment it is started with."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.errors import SettingsError
from worker.runtime import program
from worker.runtime.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf" / "qdrant.yaml"
RELEASES = "https://github.com/qdrant/qdrant/releases"
DEVELOPMENT_SERVER = "sandbox.qdrant.server"  # not part of a production installation


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """What serves Qdrant's API on this machine."""

    arguments: list[str]
    for_development: bool = False


def require_writable(path: Path) -> None:
    """Creates the folder if it is missing. Raises SettingsError when Qdrant could not write there."""
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


def server_command(settings: Settings) -> ServerCommand:
    """Raises SettingsError when there is no program to start."""
    options = ["--config-path", str(CONF)]
    named = settings.qdrant_bin
    if named is not None:
        if not named.is_file() or not os.access(named, os.X_OK) or _is_bin_qdrant(named):
            raise SettingsError(f"QDRANT_BIN is {named}, which is not Qdrant's program")
        return ServerCommand([str(named), *options])
    for found in _in_path():
        return ServerCommand([found, *options])
    if not settings.qdrant_development:
        raise SettingsError(
            f"Qdrant is not installed: download its program from {RELEASES} (docs/install.md names version and "
            "archive), and put it into PATH or name it in QDRANT_BIN; or set QDRANT_EMBEDDED=false if Qdrant runs "
            "elsewhere; or set QDRANT_DEVELOPMENT=true for a server that is not meant for real data"
        )
    if not (_is_installed(DEVELOPMENT_SERVER) and _is_installed("qdrant_edge")):
        raise SettingsError(
            "QDRANT_DEVELOPMENT is true, but the server for development is not installed: run bin/install sandbox"
        )
    return ServerCommand([sys.executable, "-m", DEVELOPMENT_SERVER, *options], for_development=True)


def server_environment(settings: Settings) -> Mapping[str, str | None]:
    """The variables that Qdrant gets besides conf/qdrant.yaml; None: it does not get this secret of the worker."""
    variables: dict[str, str | None] = {name: None for name in program.secret_variables()}
    variables["QDRANT__STORAGE__STORAGE_PATH"] = str(settings.qdrant_storage_path)
    variables["QDRANT__STORAGE__SNAPSHOTS_PATH"] = str(settings.qdrant_snapshots_path)
    # Qdrant does not start if it cannot write this file, which is in its working folder by default
    variables["QDRANT_INIT_FILE_PATH"] = str(settings.qdrant_storage_path / ".qdrant-initialized")
    variables["QDRANT__LOG_LEVEL"] = {"warning": "WARN"}.get(settings.log_level, settings.log_level.upper())
    if settings.qdrant_api_key is not None:
        variables["QDRANT__SERVICE__API_KEY"] = settings.qdrant_api_key
    return variables


def _in_path() -> Iterator[str]:
    """Each ``qdrant`` in PATH that is not bin/qdrant of this project."""
    for folder in os.get_exec_path():
        found = shutil.which("qdrant", path=folder)
        if found and not _is_bin_qdrant(Path(found)):
            yield found


def _is_bin_qdrant(path: Path) -> bool:
    return path.resolve() == PROJECT / "bin" / "qdrant"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package of the module is missing too
        return False
