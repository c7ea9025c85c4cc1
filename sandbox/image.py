"""The production image, built from Dockerfile.worker on a machine that has neither Docker nor a registry.

    python -m sandbox.image --layers        # builds it and shows what it weighs

Root on Debian is needed: buildah does it, without a daemon, and is installed with apt-get when it is missing, as is
debootstrap, which makes the image's base (sandbox/image_bases.py). What is built and what is kept for the next time
lies in one folder, which SANDBOX_IMAGE_DIR names, and nothing else of the machine is touched.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sandbox.debian import CACHE, apt_to_oneself, to_oneself
from sandbox.servers import ServerFailed, ServerMissing

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("SANDBOX_IMAGE_DIR", CACHE / "image"))
TAG = "localhost/crm-worker:sandbox"
BUILD_SECONDS = 600.0
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_LENT_CA_BUNDLE = "/mnt/ca-certificates.crt"
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "retries")


@dataclass(frozen=True)
class Layer:
    """One layer of an image: what made it, and its bytes, unpacked."""

    made_by: str
    size: int


class Buildah:
    """The program, and the storage that it works in."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raises ServerMissing where it cannot be had."""
        for name in ("buildah", "debootstrap"):
            require(name)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.driver = "overlay" if _has_overlay(folder) else "vfs"
        self.storage = folder / f"storage-{self.driver}"

    def run(self, *arguments: str | Path, seconds: float = BUILD_SECONDS) -> str:
        """Returns what it says. Raises ServerFailed with the end of it when it fails."""
        places: list[str | Path] = [
            "--root",
            self.storage,
            "--runroot",
            self.folder / "run",
            "--storage-driver",
            self.driver,
        ]
        return run("buildah", *places, *arguments, seconds=seconds)

    def has(self, image: str) -> bool:
        return image in self.run("images", "--format", "{{.Name}}:{{.Tag}}").split()

    def commit(self, image: str, folder: Path, *config: str) -> None:
        """Makes an image of one layer that holds what ``folder`` holds."""
        container = self.run("from", "scratch").strip()
        try:
            self.run("add", "--quiet", container, folder, "/")
            if config:
                self.run("config", *config, container)
            self.run("commit", "--quiet", container, image)
        finally:
            self.run("rm", container)


class Image:
    """One image in the storage of ``buildah``."""

    def __init__(self, buildah: Buildah, name: str) -> None:
        self.buildah = buildah
        self.name = name

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """User, Env, Entrypoint, Healthcheck and so on, as `docker inspect` shows them."""
        return dict(self._docker["config"])

    @property
    def layers(self) -> list[Layer]:
        """From the base to the last one."""
        records = json.loads(
            (self.buildah.storage / f"{self.buildah.driver}-layers" / "layers.json").read_text("utf-8")
        )
        sizes = {record.get("diff-digest"): record.get("diff-size", 0) for record in records}
        made = [each.get("created_by", "") for each in self._docker["history"] if not each.get("empty_layer")]
        digests = self._docker["rootfs"]["diff_ids"]
        return [Layer(_words(by), sizes[digest]) for by, digest in zip(made, digests, strict=True)]

    @cached_property
    def _docker(self) -> Mapping[str, Any]:
        return dict(json.loads(self.buildah.run("inspect", "--type", "image", self.name))["Docker"])


def build(buildah: Buildah, project: Path = PROJECT, **build_args: str) -> Image:
    """Builds Dockerfile.worker as it is, one build at a time. Raises ServerFailed with what was said."""
    with to_oneself(buildah.folder / "lock"):
        return _build(buildah, project, build_args)


def _build(buildah: Buildah, project: Path, build_args: Mapping[str, str]) -> Image:
    from sandbox.image_bases import make_bases

    dockerfile = project / "Dockerfile.worker"
    make_bases(buildah, dockerfile.read_text("utf-8"), build_args)
    arguments = [f"--build-arg={name}={value}" for name, value in build_args.items()]
    with tempfile.TemporaryDirectory() as scratch:
        for lent, place in _lent(Path(scratch)).items():
            arguments.append(f"--volume={lent}:{place}:ro")
        # docker's format: the other one knows no HEALTHCHECK
        chosen = ["--isolation=chroot", "--format=docker", "--pull-never", "--layers", "--force-rm", "--tag", TAG]
        buildah.run("bud", *chosen, *arguments, "--file", dockerfile, project)
    return Image(buildah, TAG)


def require(program: str) -> None:
    """Installs Debian's package of the same name when there is no such program. Raises ServerMissing."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ServerMissing(
            f"there is no {program}, and only root on Debian gets it by itself: apt install {program}"
        )
    apt = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=120")
    try:
        with apt_to_oneself():
            if not shutil.which(program):  # another process may have been quicker
                run(*apt, "update")
                run(*apt, "install", "-y", "--no-install-recommends", program)
    except ServerFailed as error:
        raise ServerMissing(f"{program} cannot be installed: {error}") from error


def run(*command: str | Path, seconds: float = BUILD_SECONDS) -> str:
    """Returns what a program says. Raises ServerFailed with the end of it when it fails."""
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
    """Whether layers can share their files here; else each is a copy."""
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


def _lent(scratch: Path) -> dict[Path, str]:
    """What RUN steps need of this machine to reach its package index: file -> where they find it."""
    lent: dict[Path, str] = {}
    options = {"disable-pip-version-check": "true"}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PIP_OPTIONS:
            options[option] = value.strip("'\"")
    if Path(_CA_BUNDLE).exists():
        options["cert"] = _LENT_CA_BUNDLE
        lent[Path(_CA_BUNDLE)] = _LENT_CA_BUNDLE
    conf = scratch / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()), "utf-8")
    lent[conf] = "/etc/pip.conf"
    return lent


def _words(made_by: str) -> str:
    """An instruction of the Dockerfile, as short as a line is."""
    text = re.sub(r"/bin/sh -c (#\(nop\) )?|\b(dir|file|multi):[0-9a-f]+ in ", "", made_by)
    text = re.sub(r"^(\|\d+ .*?)(?=[a-z]+ --)", "", text)
    return " ".join(text.split())[:100]


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the image and shows it. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.image", description="Builds Dockerfile.worker.")
    parser.add_argument("--layers", action="store_true", help="show what each layer weighs")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(arguments)
    try:
        image = build(Buildah(), **dict(each.split("=", 1) for each in options.build_arg))
    except (ServerMissing, ServerFailed) as error:
        print(f"sandbox.image: {error}", file=sys.stderr)
        return 1
    layers = image.layers
    print(f"{image.name}: {sum(each.size for each in layers) / 1e6:.1f} MB, {len(layers)} layers")
    for layer in layers if options.layers else ():
        print(f"{layer.size / 1e6:8.1f} MB  {layer.made_by}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
