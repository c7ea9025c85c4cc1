"""bin/suppress: the addresses that a tenant may not write to or call: adds, removes, imports, lists, exports them."""

import sys
from collections.abc import Sequence

from worker.consent import command_line
from worker.runtime import program


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = command_line.parsed(arguments)
    return program.run_main(lambda: command_line.run(options))


if __name__ == "__main__":
    sys.exit(main())
