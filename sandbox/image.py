"""The production image, built from Dockerfile.worker on a machine that has neither Docker nor access to a registry.

    python -m sandbox.image --layers        # builds it and shows the size of each layer

It needs root on Debian. buildah and debootstrap, which makes the base image (sandbox/image_bases.py), are installed
with apt-get if they are missing. The images and the build cache are in one folder, SANDBOX_IMAGE_DIR; nothing else on
the machine is changed.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sandbox.apt_lock import exclusive_lock
from sandbox.buildah import Buildah
from sandbox.debian_programs import run
from sandbox.image_bases import make_bases
from sandbox.servers import ServerFailed, ServerMissing

PROJECT = Path(__file__).resolve().parent.parent
TAG = "localhost/crm-worker:sandbox"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_CA_BUNDLE_IN_BUILD = "/mnt/ca-certificates.crt"
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout", "retries")


@dataclass(frozen=True)
class Layer:
    """One layer of an image: the instruction that made it, and its size in bytes, unpacked."""

    made_by: str
    size: int


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
        return [Layer(_instruction(by), sizes[digest]) for by, digest in zip(made, digests, strict=True)]

    @cached_property
    def _docker(self) -> Mapping[str, Any]:
        return dict(json.loads(self.buildah.run("inspect", "--type", "image", self.name))["Docker"])


def build(buildah: Buildah, project: Path = PROJECT, **build_args: str) -> Image:
    """Builds Dockerfile.worker, one build at a time. Raises ServerFailed with the end of the output."""
    dockerfile = project / "Dockerfile.worker"
    with exclusive_lock(buildah.folder / "lock"):
        make_bases(buildah, dockerfile.read_text("utf-8"), build_args)
        arguments = [f"--build-arg={name}={value}" for name, value in build_args.items()]
        with tempfile.TemporaryDirectory() as scratch:
            for path, path_in_build in _files_for_pip(Path(scratch)).items():
                arguments.append(f"--volume={path}:{path_in_build}:ro")
            # docker's format: the other one has no HEALTHCHECK
            chosen = ["--isolation=chroot", "--format=docker", "--pull-never", "--layers", "--force-rm", "--tag", TAG]
            buildah.run("bud", *chosen, *arguments, "--file", dockerfile, project)
    return Image(buildah, TAG)


def _files_for_pip(scratch: Path) -> dict[Path, str]:
    """What RUN instructions need to reach this machine's package index: file -> its path in the build."""
    files: dict[Path, str] = {}
    options = {"disable-pip-version-check": "true"}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PIP_OPTIONS:
            options[option] = value.strip("'\"")
    if _CA_BUNDLE.exists():
        options["cert"] = _CA_BUNDLE_IN_BUILD
        files[_CA_BUNDLE] = _CA_BUNDLE_IN_BUILD
    conf = scratch / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in options.items()), "utf-8")
    files[conf] = "/etc/pip.conf"
    return files


def _instruction(made_by: str) -> str:
    """An instruction of the Dockerfile, shortened to one line."""
    text = re.sub(r"/bin/sh -c (#\(nop\) )?|\b(dir|file|multi):[0-9a-f]+ in ", "", made_by)
    text = re.sub(r"^(\|\d+ .*?)(?=[a-z]+ --)", "", text)
    return " ".join(text.split())[:100]


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the image and shows its size. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.image", description="Builds Dockerfile.worker.")
    parser.add_argument("--layers", action="store_true", help="show the size of each layer")
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
