"""kill -9 at any instant, then a new start: nobody gets two copies, nobody is left out."""

import random
import socket
import time
from collections.abc import Iterator

import psycopg2.extensions
import pytest
import redis
from conftest import Books, Start, wait_for

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World

CONCURRENCY = 8


@pytest.mark.parametrize(
    ("channel", "recipients", "kills"),
    [("smtp", 2000, 14), ("whatsapp", 800, 6)],
)
def test_kills_at_random_instants_lose_nobody_and_repeat_nobody(
    channel: str, recipients: int, kills: int, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """However often and whenever the worker is killed, each recipient gets one message or is said to be unconfirmed."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)  # noqa: S311 - instants, no secrets
    world.set_rates(whatsapp_rate=0)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=recipients)
    done = 0
    for kill in range(kills):
        worker = start(CAMPAIGN_BATCH_DELAY=chance.choice(["0", "20ms"]))
        goal = min(world.total(channel) + chance.randrange(recipients // kills), recipients - 1)
        if kill % 4 == 3:  # in the middle of its own start
            time.sleep(chance.uniform(0, 0.5))
        else:
            wait_for(lambda goal=goal: world.total(channel) > goal or books.ended(campaign), "progress")
            time.sleep(chance.uniform(0, 0.02))
        worker.kill()
        done += not books.ended(campaign)
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends", 60)
    wait_for(lambda: not books.journals(), "the last journal is removed")
    lost = books.balance(campaign, channel)
    assert lost <= CONCURRENCY * done
    print(f"{channel}: {done} kills, {lost} unconfirmed, at most {CONCURRENCY * done} allowed")  # noqa: T201
