"""Which hosts are this machine itself, so that what is sent to them needs no TLS."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether traffic to ``host`` stays inside this machine (127.0.0.0/8, ::1, localhost)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
