"""A container of an image, made with the kernel's namespaces: own mounts and processes, this machine's network.

    with Container(image, folder, environment) as container:
        container.start()
        container.execute("supervisorctl", "status")
        container.stop(10)

It runs like `docker run --cap-drop ALL --security-opt no-new-privileges --network host`: as the image's user, with
the image's environment, with the entry point as the first process. Only root can start one.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from sandbox.debian_programs import run
from sandbox.image import Image
from sandbox.servers import Child

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - it is mounted, not written to
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class ContainerProcess:
    """``pid`` is the number on this machine; ``user_ids`` are the real, effective, saved and file system ids."""

    pid: int
    name: str
    user_ids: set[int]


class Container:
    """One container; it is removed at the end of the ``with``."""

    def __init__(
        self, image: Image, folder: Path, environment: Mapping[str, str], *, read_only: bool = False
    ) -> None:
        """``folder`` gets the volumes and the output. ``read_only``: only the volumes are writable."""
        self._image = image
        self._environment = dict(environment)
        self._read_only = read_only
        self._name = image.buildah.run("from", "--pull-never", image.name).strip()
        self.root = Path(image.buildah.run("mount", self._name).strip())
        self.log_path = folder / "container.log"
        self.volumes = {path: folder / path.strip("/").replace("/", "-") for path in image.config["Volumes"]}
        for path, volume in self.volumes.items():
            run("cp", "--archive", str(self.root) + path, volume)  # like Docker, which fills a new volume
        self._child: Child | None = None
        self._pid = 0  # of its first process, on this machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._image.buildah.run("rm", self._name)

    def start(self, *command: str) -> None:
        """Starts the entry point with ``command``. Its output goes to ``log_path``."""
        inside = [*self._as_user(), *self._image.config["Entrypoint"], *command]
        script = "\n".join(["set -e", *self._mounts(), f"exec chroot {shlex.join([str(self.root), *inside])}"])
        unshare = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", script]
        self._child = Child(unshare, self.log_path)
        self._child.wait_until(self._find_first, "the container")

    def execute(self, *command: str, seconds: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Like `docker exec`: one more process in the container."""
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "chroot", str(self.root)]
        argv = [*enter, *self._as_user(), *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def wait(self, seconds: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        if self._child is None:
            raise ValueError("the container was not started")
        return self._child.wait(seconds)

    def stop(self, seconds: float) -> int:
        """Like `docker stop` without the kill: raises subprocess.TimeoutExpired instead."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """Like `docker kill`: all of its processes end with the first one."""
        if self._child is not None and self._child.running:
            if self._pid:
                self.signal(signal.SIGKILL)
            self._child.end(signal.SIGKILL)

    @property
    def log(self) -> str:
        """The output of its first process, and of what ran before supervisord."""
        return self.log_path.read_text("utf-8")

    def processes(self) -> Iterator[ContainerProcess]:
        """The processes that run in it now."""
        own = _namespace(self._pid)
        for path in Path("/proc").iterdir():
            if own and path.name.isdecimal() and _namespace(int(path.name)) == own:
                with suppress(OSError):  # it has ended
                    lines = (path / "status").read_text("utf-8").splitlines()
                    fields = dict(line.split(":", 1) for line in lines)
                    user_ids = {int(each) for each in fields["Uid"].split()}
                    yield ContainerProcess(int(path.name), fields["Name"].strip(), user_ids)

    def _as_user(self) -> list[str]:
        """Drops root's rights permanently, and sets the image's environment and working folder."""
        config = self._image.config
        user, _, group = config["User"].partition(":")
        rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        environment = ["env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"], *variables]
        # a change of user resets the signal at the parent's death
        bounds = ["--bounding-set=-all", "--inh-caps=-all", "--pdeathsig=KILL"]
        return ["setpriv", *rights, *bounds, *environment]

    def _mounts(self) -> Iterator[str]:
        """The commands that mount its file system, in its own mount namespace."""
        root = shlex.quote(str(self.root))
        yield "mount --make-rprivate /"
        yield f"mount --bind {root} {root}"
        if self._read_only:
            yield f"mount -o remount,bind,ro {root}"
        yield f"mount -t proc proc {root}/proc"
        yield f"mount -t tmpfs -o mode=755 tmpfs {root}/dev"
        shared = f"{root}{_SHARED_MEMORY}"
        yield f"mkdir {shared} && mount -t tmpfs -o mode=1777 tmpfs {shared}"
        for name in _DEVICES:
            yield f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}"
        for path, volume in self.volumes.items():
            yield f"mount --bind {shlex.quote(str(volume))} {root}{shlex.quote(path)}"

    def _find_first(self) -> bool:
        """Whether the entry point has started; before that, the process is one of ours."""
        if self._child is None:
            return False
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text("ascii").split()
        if not children:
            return False
        self._pid = int(children[0])
        status = Path(f"/proc/{self._pid}/status").read_text("ascii")
        return f"Uid:\t{self._image.config['User'].partition(':')[0]}\t" in status


def _namespace(pid: int) -> str | None:
    """The PID namespace of a process; None if it has ended."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None
