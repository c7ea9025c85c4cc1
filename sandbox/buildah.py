"""buildah, which builds container images without a daemon: installed if it is missing, with its own storage."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from sandbox.apt_lock import CACHE, apt_lock
from sandbox.servers import ServerFailed, ServerMissing

FOLDER = Path(os.environ.get("SANDBOX_IMAGE_DIR", CACHE / "image"))
RUN_SECONDS = 600.0


class Buildah:
    """The program, and the storage in which it keeps images."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raises ServerMissing if it cannot be installed."""
        for name in ("buildah", "debootstrap"):
            require(name)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.driver = "overlay" if _has_overlay(folder) else "vfs"
        self.storage = folder / f"storage-{self.driver}"

    def run(self, *arguments: str | Path, seconds: float = RUN_SECONDS) -> str:
        """Returns its output. Raises ServerFailed with the end of it."""
        storage: list[str | Path] = [
            "--root",
            self.storage,
            "--runroot",
            self.folder / "run",
            "--storage-driver",
            self.driver,
        ]
        return run("buildah", *storage, *arguments, seconds=seconds)

    def has(self, image: str) -> bool:
        return image in self.run("images", "--format", "{{.Name}}:{{.Tag}}").split()

    def commit(self, image: str, folder: Path, *config: str) -> None:
        """Makes an image of one layer with the content of ``folder``."""
        container = self.run("from", "scratch").strip()
        try:
            self.run("add", "--quiet", container, folder, "/")
            if config:
                self.run("config", *config, container)
            self.run("commit", "--quiet", container, image)
        finally:
            self.run("rm", container)


def require(program: str) -> None:
    """Installs Debian's package of the same name if there is no such program. Raises ServerMissing."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ServerMissing(
            f"there is no {program}, and it can only be installed as root on Debian: apt install {program}"
        )
    apt = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=120")
    try:
        with apt_lock():
            if not shutil.which(program):  # another process may have installed it in the meantime
                run(*apt, "update")
                run(*apt, "install", "-y", "--no-install-recommends", program)
    except ServerFailed as error:
        raise ServerMissing(f"{program} cannot be installed: {error}") from error


def run(*command: str | Path, seconds: float = RUN_SECONDS) -> str:
    """Returns a program's output. Raises ServerFailed with the end of it."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=environment, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise ServerFailed(
            f"{command[0]} ended with status {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def _has_overlay(folder: Path) -> bool:
    """Whether layers can share their files here; otherwise each layer is a full copy."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        parts = {name: Path(scratch, name) for name in ("lower", "upper", "work", "all")}
        for part in parts.values():
            part.mkdir()
        options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
        try:
            run("unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, parts["all"])
        except ServerFailed:
            return False
    return True
