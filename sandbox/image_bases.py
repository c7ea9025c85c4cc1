"""The base images of Dockerfile.worker, made here instead of downloaded from a registry.

docker.io/library/debian:VERSION is debootstrap's minimal Debian without its documentation, like the official slim
image. docker.io/qdrant/qdrant:VERSION holds a stand-in for Qdrant's program, which only answers health checks.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sandbox.buildah import Buildah
from sandbox.debian_programs import run

ARCHIVE = "http://deb.debian.org/debian"
SECURITY = "http://deb.debian.org/debian-security"
_LEFT_OUT = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
)
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

QDRANT = '''\
#!/usr/bin/env python3
"""A stand-in for Qdrant's program: it only answers health checks."""
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if "--version" in sys.argv:
    print("qdrant, a stand-in")
    sys.exit()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/", "/healthz", "/livez", "/readyz") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


port = int(os.environ.get("QDRANT__SERVICE__HTTP_PORT", "6333"))
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''


def make_bases(buildah: Buildah, dockerfile: str, build_args: Mapping[str, str]) -> None:
    """Makes the images that ``dockerfile`` names and that do not exist yet. Raises ServerFailed."""
    versions = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, flags=re.MULTILINE)) | dict(build_args)
    debian, qdrant = versions["DEBIAN_VERSION"], versions["QDRANT_VERSION"]
    if not buildah.has(f"docker.io/library/debian:{debian}"):
        _make_debian(buildah, debian)
    made = buildah.folder / f"stand-in-{qdrant}"
    if not (buildah.has(f"docker.io/qdrant/qdrant:{qdrant}") and made.exists() and made.read_text("utf-8") == QDRANT):
        _make_qdrant(buildah, qdrant)
        made.write_text(QDRANT, "utf-8")


def _make_debian(buildah: Buildah, version: str) -> None:
    suite = version.partition("-")[0]
    with tempfile.TemporaryDirectory(dir=buildah.folder) as scratch:
        root = Path(scratch, "root")
        run("debootstrap", "--variant=minbase", suite, root, _uris().get("main", ARCHIVE))
        for name in _LEFT_OUT:
            shutil.rmtree(root / name)
            (root / name).mkdir(parents=True)
        (root / "etc/apt/sources.list").write_text("".join(_sources(suite)), "utf-8")
        buildah.commit(f"docker.io/library/debian:{version}", root, "--cmd", "/bin/bash", "--env", _PATH)


def _make_qdrant(buildah: Buildah, version: str) -> None:
    with tempfile.TemporaryDirectory(dir=buildah.folder) as scratch:
        program = Path(scratch, "qdrant", "qdrant")
        program.parent.mkdir()
        program.write_text(QDRANT, "utf-8")
        os.chmod(program, 0o755)  # noqa: S103 - like every program
        os.chmod(scratch, 0o755)  # noqa: S103 - it becomes the image's root
        buildah.commit(f"docker.io/qdrant/qdrant:{version}", Path(scratch))


def _sources(suite: str) -> Iterator[str]:
    uris = _uris()
    for pocket in (suite, f"{suite}-updates"):
        yield f"deb {uris.get('main', ARCHIVE)} {pocket} main\n"
    yield f"deb {uris.get('security', SECURITY)} {suite}-security main\n"


def _uris() -> dict[str, str]:
    """The archives that this machine's own apt uses: 'main' and 'security'."""
    found: dict[str, str] = {}
    paths = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text("utf-8") for path in paths if path.is_file())
    for uri in re.findall(r"^(?:URIs:|deb(?: \[.*?\])?) (https?://\S+)", text, flags=re.MULTILINE):
        if uri.rstrip("/").endswith(("/debian", "/debian-security")):
            found.setdefault("security" if "security" in uri else "main", uri)
    return found
