"""Ports: processes that have a share each do not take one another's."""

import subprocess
import sys
from itertools import pairwise

from sandbox.ports import PORTS

SCRIPT = """
import sys
from itertools import pairwise
from sandbox.ports import free_port, take_share
take_share(int(sys.argv[1]), 3)
print(*(free_port() for _ in range(200)))
"""


def ports_of(number: int) -> list[int]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(number)], capture_output=True, text=True, check=True)
    return [int(port) for port in done.stdout.split()]


def test_shares_do_not_overlap() -> None:
    """All ports of a share are smaller than those of the next one, and all are of the whole range."""
    shares = [ports_of(number) for number in range(3)]
    assert all(max(first) < min(second) for first, second in pairwise(shares))
    assert all(port in PORTS for share in shares for port in share)
