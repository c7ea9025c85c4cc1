"""Fixtures for the tests of the calls job: any number of workers on one database for each test file."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from desk import Desk, OpenDesk, desks, empty

from sandbox.crm import Crm
from sandbox.world import World


@pytest.fixture(scope="module")
def calls_database_url(databases: Any, template: str) -> Iterator[str]:
    """One database for all tests of a file; ``open_desk`` empties it for each of them."""
    name = databases.create(template)
    yield databases.url_of(name)
    databases.drop(name)


@pytest.fixture
def open_desk(calls_database_url: str, redis_url: str, world: World) -> Iterator[OpenDesk]:
    """Opens any number of calls jobs on one database."""
    with closing(psycopg2.connect(calls_database_url)) as connection:
        crm = Crm(connection)
        empty(crm)
        with desks(crm, calls_database_url, redis_url, world) as opened:
            yield opened


@pytest.fixture
def desk(open_desk: OpenDesk) -> Desk:
    return open_desk()
