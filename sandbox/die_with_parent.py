"""Starts a program that ends when its parent process ends.

    python die_with_parent.py --parent PID --signal QUIT [--user UID:GID] -- PROGRAM ARGUMENT ...

becomes PROGRAM (with the same process id), after it has asked the kernel for a signal at its parent's death, and has
given up root's rights if --user is set. The kernel watches the thread that started the program: start servers from a
thread that lives as long as they shall. On systems other than Linux only the user is changed.
"""

import argparse
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parser = argparse.ArgumentParser(description="Starts a program that ends when its parent process ends.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--signal", default="KILL", help="what the program receives at its parent's death")
    parser.add_argument("--user", help="UID:GID to run the program as")
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    if options.user:
        uid, gid = (int(part) for part in options.user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # after the change of user, which resets it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.Signals["SIG" + options.signal]), 0, 0, 0)
    if os.getppid() != options.parent:
        sys.exit("the parent process has ended already")
    os.execv(options.program[0], options.program)  # noqa: S606 - without a shell


if __name__ == "__main__":
    main()
