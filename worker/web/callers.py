"""Who calls the public address, and how often anybody may."""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address

# Mail providers unsubscribe their users from a few addresses of their own: far more than a person needs.
REQUESTS_PER_SECOND = 20.0
BURST = 100.0
CALLERS_KEPT = 10_000  # some 2 MB; the one that has not called for longest is forgotten
# Some proxies add the port. If such an entry were passed over, the one before it would count: the caller writes it.
_PORT = re.compile(r"^(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?$")
_HOPS = 20  # entries of X-Forwarded-For that are looked at


def caller_of(peer: str, forwarded_for: str, proxies: Sequence[Network]) -> str:
    """The address that a request comes from: an IPv4 address, or the network of 64 bits that an IPv6 address is in.

    Each proxy adds the address of its own caller at the end of X-Forwarded-For, and only ``proxies`` are believed.
    """
    caller = _address(peer)
    for entry in reversed(forwarded_for.split(",")[-_HOPS:]):
        if caller is None or not any(caller in network for network in proxies):
            break
        caller = _address(_PORT.sub(r"\1\2", entry.strip())) or caller
    if isinstance(caller, IPv6Address):
        return str(IPv6Network((caller, 64), strict=False))
    return str(caller)


def _address(text: str) -> _Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


@dataclass(slots=True)
class _Allowance:
    requests: float
    at: float  # seconds of the clock


class RateLimit:
    """A bucket for each caller, which begins with BURST requests and gets REQUESTS_PER_SECOND more. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` counts seconds."""
        self._clock = clock
        self._callers: OrderedDict[str, _Allowance] = OrderedDict()
        self._lock = threading.Lock()

    def allows(self, caller: str) -> bool:
        """Counts one request."""
        now = self._clock()
        with self._lock:
            kept = self._callers.setdefault(caller, _Allowance(BURST, now))
            self._callers.move_to_end(caller)
            while len(self._callers) > CALLERS_KEPT:
                self._callers.popitem(last=False)
            kept.requests = min(BURST, kept.requests + (now - kept.at) * REQUESTS_PER_SECOND)
            kept.at = now
            if kept.requests < 1:
                return False
            kept.requests -= 1
            return True
