"""bin/entrypoint: what a container starts.

The first process of a container gets no signal that it does not ask for. So it asks first, and then imports what
takes its time (worker/starting/startup.py).
"""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, if it returns at all."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    from worker.starting.startup import run

    return run(arguments)


def _stop(_number: int, _frame: object) -> None:
    sys.stderr.write("bin/entrypoint: stopped before the programs were started\n")
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
