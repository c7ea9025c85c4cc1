"""How long to wait after failures in a row."""


def backoff_seconds(failures: int, first_seconds: float, limit_seconds: float) -> float:
    """Seconds to wait after so many failures in a row (at least 1): doubles with each one, up to the limit."""
    return min(limit_seconds, first_seconds * 2.0 ** min(failures - 1, 30))
