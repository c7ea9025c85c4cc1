"""What a resting job is: waits until a time or a signal, then becomes the program that is named (see rest.py).

    python -I -S resting_process.py BOOT_SECONDS PROGRAM ARGUMENT ...

It imports next to nothing, because the little memory that it needs is its purpose. The signals that a program handles
are blocked when it starts. One that comes stays pending, so that the program finds it when it can handle it.
"""

import os
import signal
import sys
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # as boot_seconds() in clock.py
LONGEST_WAIT_SECONDS = 60.0  # a timer stands still while the machine sleeps


def main() -> None:
    wake_at, command = float(sys.argv[1]), sys.argv[2:]
    received = None
    while received is None and (left := wake_at - time.clock_gettime(CLOCK)) > 0:
        received = signal.sigtimedwait(SIGNALS, min(left, LONGEST_WAIT_SECONDS))
    if received is not None:
        os.kill(os.getpid(), received.si_signo)
    os.execv(command[0], command)  # noqa: S606 - without a shell


if __name__ == "__main__":
    main()
