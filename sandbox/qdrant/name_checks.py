"""Checks names from requests that become names of files."""

from sandbox.qdrant.errors import NotFound, Refusal

_LONGEST_BYTES = 255  # of a file's name
_FORBIDDEN = frozenset('<>:"/\\|?*\x7f') | {chr(code) for code in range(32)}
SNAPSHOT_SUFFIX = ".snapshot"


def collection_name(name: str) -> str:
    """``name``; raises Refusal if a collection cannot have this name."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise Refusal("Wrong input: the collection's name is not UTF-8") from error
    if not 1 <= length <= _LONGEST_BYTES:
        raise Refusal(f"Wrong input: a collection's name must have 1 to {_LONGEST_BYTES} bytes, not {length}")
    bad = sorted(_FORBIDDEN & set(name))
    if bad or name in (".", ".."):
        raise Refusal(f"Wrong input: a collection cannot have {(bad or [name])[0]!r} in its name")
    return name


def snapshot_name(name: str) -> str:
    """``name``; raises NotFound if a snapshot cannot have this name."""
    if name.startswith(".") or not name.endswith(SNAPSHOT_SUFFIX) or _FORBIDDEN & set(name) or len(name) > 1000:
        raise NotFound(f"Not found: Snapshot {name[:100]!r} not found")
    return name
