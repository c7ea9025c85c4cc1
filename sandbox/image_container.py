"""A container of an image, made of what the kernel has: its own mounts and processes, and this machine's network.

    with Container(image, folder, environment) as container:
        container.start()
        container.execute("supervisorctl", "status")
        container.stop(10)

It runs as `docker run --cap-drop ALL --security-opt no-new-privileges --network host` would: as the image's user,
with the image's environment, its entry point as the first process. Only root can start one.
"""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from sandbox.image import Image, run
from sandbox.servers import Child

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - it is mounted, not written to
_DEVICES = ("null", "zero", "full", "random", "urandom")


class _Started(Child):
    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)


class Container:
    """One container; it is removed at the end of the ``with``."""

    def __init__(
        self, image: Image, folder: Path, environment: Mapping[str, str], *, read_only: bool = False
    ) -> None:
        """``folder`` gets the volumes and the output. ``read_only``: nobody can write outside of the volumes."""
        self._image = image
        self._environment = dict(environment)
        self._read_only = read_only
        self._name = image.buildah.run("from", "--pull-never", image.name).strip()
        self.root = Path(image.buildah.run("mount", self._name).strip())
        self.log_path = folder / "container.log"
        self.volumes = {place: folder / place.strip("/").replace("/", "-") for place in image.config["Volumes"]}
        for place, volume in self.volumes.items():
            run("cp", "--archive", str(self.root) + place, volume)  # as Docker fills a new volume
        self._child: _Started | None = None
        self._pid = 0  # of its first process, on this machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._image.buildah.run("rm", self._name)

    def start(self, *command: str) -> None:
        """Starts the entry point with ``command``. What is said goes to ``log_path``."""
        inside = [*self._as_user(), *self._image.config["Entrypoint"], *command]
        script = "\n".join(["set -e", *self._mounts(), f"exec chroot {shlex.join([str(self.root), *inside])}"])
        unshare = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", script]
        self._child = _Started(unshare, self.log_path)
        self._child.wait_until(self._find_first, "the container")

    def execute(self, *command: str, seconds: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """What `docker exec` does: one more process in the container."""
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "chroot", str(self.root)]
        argv = [*enter, *self._as_user(), *command]
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def wait(self, seconds: float) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        if self._child is None:
            raise ValueError("it was not started")
        return self._child.wait(seconds)

    def stop(self, seconds: float) -> int:
        """As `docker stop`, without the kill: subprocess.TimeoutExpired is raised when that would be due."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """As `docker kill`: all of its processes end with the first one."""
        if self._child is not None and self._child.running:
            if self._pid:
                self.signal(signal.SIGKILL)
            self._child.end(signal.SIGKILL)

    @property
    def log(self) -> str:
        """What its first process and those before supervisord said."""
        return self.log_path.read_text("utf-8")

    def processes(self) -> Iterator[tuple[int, str, set[int]]]:
        """Those that run in it now: number on this machine, name, and all of the user ids."""
        own = _namespace(self._pid)
        for path in Path("/proc").iterdir():
            if own and path.name.isdecimal() and _namespace(int(path.name)) == own:
                with suppress(OSError):  # it ended meanwhile
                    lines = (path / "status").read_text("utf-8").splitlines()
                    fields = dict(line.split(":", 1) for line in lines)
                    yield int(path.name), fields["Name"].strip(), {int(each) for each in fields["Uid"].split()}

    def _as_user(self) -> list[str]:
        """Gives up root's rights for good, and then has the image's environment and working folder."""
        config = self._image.config
        user, _, group = config["User"].partition(":")
        rights = [f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        environment = ["env", "-i", f"--chdir={config['WorkingDir']}", *config["Env"], *variables]
        # a process that changes its user forgets with whom it was to die
        bounds = ["--bounding-set=-all", "--inh-caps=-all", "--pdeathsig=KILL"]
        return ["setpriv", *rights, *bounds, *environment]

    def _mounts(self) -> Iterator[str]:
        """The commands that make its file system, in a mount namespace of its own."""
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
        for place, volume in self.volumes.items():
            yield f"mount --bind {shlex.quote(str(volume))} {root}{shlex.quote(place)}"

    def _find_first(self) -> bool:
        """Whether the entry point has begun; what comes before it belongs to us."""
        if self._child is None:
            return False
        children = Path(f"/proc/{self._child.pid}/task/{self._child.pid}/children").read_text("ascii").split()
        if not children:
            return False
        self._pid = int(children[0])
        status = Path(f"/proc/{self._pid}/status").read_text("ascii")
        return f"Uid:\t{self._image.config['User'].partition(':')[0]}\t" in status


def _namespace(pid: int) -> str | None:
    """Which PID namespace a process lives in; None when it is gone."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None
