"""Fixtures of the stand-ins' tests."""

from collections.abc import Iterator

import pytest
from stand_in_client import Http

from sandbox.world import World


@pytest.fixture
def http(world: World) -> Iterator[Http]:
    made = Http(world)
    yield made
    made.pool.clear()
