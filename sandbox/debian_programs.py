"""Programs of Debian's packages, installed if they are missing and this runs as root."""

import os
import shutil
import subprocess
from pathlib import Path

from sandbox.apt_lock import apt_lock
from sandbox.servers import ServerFailed, ServerMissing

RUN_SECONDS = 600.0


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
    # RUNLEVEL: no service of the package is started
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
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
