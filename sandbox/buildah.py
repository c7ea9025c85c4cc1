"""buildah, which builds container images without a daemon: installed if it is missing, with its own storage."""

import os
import tempfile
from pathlib import Path

from sandbox.apt_lock import CACHE
from sandbox.debian_programs import RUN_SECONDS, require, run
from sandbox.servers import ServerFailed

FOLDER = Path(os.environ.get("SANDBOX_IMAGE_DIR", CACHE / "image"))


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
