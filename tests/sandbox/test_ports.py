"""Ports: processes that have a share each do not take one another's."""

import subprocess
import sys
from itertools import pairwise

SCRIPT = """
import sys
from sandbox.ports import RANGE, free_port
print(RANGE.lowest, RANGE.highest)
RANGE.use_share(int(sys.argv[1]), 3)
print(*(free_port() for _ in range(200)))
"""


def ports_of(number: int) -> tuple[range, list[int]]:
    """The whole range, and ports of a share of it. In a process of its own: this one's range is a share already."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(number)], capture_output=True, text=True, check=True)
    whole, ports = done.stdout.splitlines()
    return range(*map(int, whole.split())), [int(port) for port in ports.split()]


def test_shares_do_not_overlap() -> None:
    """All ports of a share are smaller than those of the next one, and all are of the whole range."""
    shares = [ports_of(number) for number in range(3)]
    assert all(max(first) < min(second) for (_, first), (_, second) in pairwise(shares))
    assert all(port in whole for whole, ports in shares for port in ports)
