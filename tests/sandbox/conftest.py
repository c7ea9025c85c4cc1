"""What the tests of the stand-ins share."""

from collections.abc import Iterator

import pytest
from stand_client import Http

from sandbox.world import World


@pytest.fixture
def http(world: World) -> Iterator[Http]:
    made = Http(world)
    yield made
    made.pool.clear()
