"""The scratch collections that bin/knowledge verify restores snapshots into."""

import re
import secrets
from collections.abc import Iterable

SUFFIX = "-verify-"


def new_scratch_name(collection: str) -> str:
    return f"{collection}{SUFFIX}{secrets.token_hex(4)}"


def scratch_collections(names: Iterable[str], collection: str) -> list[str]:
    """The ones among ``names`` that belong to verifications of ``collection``."""
    pattern = re.compile(re.escape(collection + SUFFIX) + "[0-9a-f]{8}")
    return [name for name in names if pattern.fullmatch(name)]
