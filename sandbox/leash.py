"""Runs a program that cannot outlive the one who started it.

    python leash.py --parent PID --signal QUIT [--user UID:GID] -- PROGRAM ARGUMENT ...

becomes PROGRAM (its process id stays), after it asked the kernel for a signal at its parent's death and gave
up root's rights where --user says so. The kernel watches the very thread that started it: start servers from
a thread that lives as long as they shall. On other systems than Linux only the user is changed.
"""

import argparse
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a program that cannot outlive the one who started it.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the one who starts it")
    parser.add_argument("--signal", default="KILL", help="what the program gets at its parent's death")
    parser.add_argument("--user", help="UID:GID to run the program as")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    if options.user:
        uid, gid = (int(part) for part in options.user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # after the change of user, which forgets the wish
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.Signals["SIG" + options.signal]), 0, 0, 0)
    if os.getppid() != options.parent:
        sys.exit("the one who started this is gone already")
    os.execv(options.program[0], options.program)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
