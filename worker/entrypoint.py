"""bin/entrypoint: the first process of a container.

The kernel delivers SIGTERM to a container's first process only if that has a handler. So the handlers are installed
first, and what takes long to import (worker/starting/startup.py) is imported afterwards.
"""

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, unless the process becomes another program."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    from worker.starting.startup import run

    return run(arguments)


def _stop(_number: int, _frame: object) -> None:
    sys.stderr.write("bin/entrypoint: stopped before the programs were started\n")
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
