"""One mail server for all processes: SMTP_CONNECTIONS, and a pause that the server wants, hold for all of them."""

import signal
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import redis
from books import Books
from workers import THREADS, Start, Worker, wait_for

from sandbox.crm import Crm
from sandbox.world import World

ENGINE = {
    "CAMPAIGN_ENGINE": "procrastinate",
    "CAMPAIGN_SENDER_TIMEOUT": "2s",
    "LOCK_TTL_MS": "2000",
    "CAMPAIGN_BATCH_SIZE": "20",
}
SLOW_SECONDS = 0.03  # that the server takes for a message
PAUSE_SECONDS = 15.0
KEY = "worker:connections:smtp:127.0.0.1"
ESTABLISHED = "01"


@pytest.fixture
def server_port(environment: dict[str, str]) -> int:
    return int(environment["SMTP_URL"].rpartition(":")[2])


class Connections:
    """Who is connected to the mail server, as the kernel knows it. ``most``: how many there were at once."""

    def __init__(self, port: int) -> None:
        self._port = f"{port:04X}"
        self.most = 0

    def by_process(self, *workers: Worker) -> Counter[int]:
        """The number of connections by pid. A process that ends meanwhile has none."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
        sockets = {
            f"socket:[{line[9]}]"
            for line in lines
            if line[3] == ESTABLISHED and line[2].endswith(f":{self._port}") and line[9] != "0"
        }
        self.most = max(self.most, len(sockets))
        return Counter({worker.pid: len(sockets & open_files(worker.pid)) for worker in workers})


def open_files(pid: int) -> set[str]:
    found = set()
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            found.add(str(each.readlink()))
    except OSError:
        return found  # closed just now, or the process has ended
    return found


def senders(start: Start, number: int, **settings: str) -> list[Worker]:
    """bin/migrate, a scheduler, and so many senders, which are returned."""
    environ = ENGINE | settings
    assert start(program="migrate", **environ).wait() == 0
    start(**environ)
    return [start(program="campaign-sender", **environ) for _ in range(number)]


def test_a_sender_that_has_connections_is_killed(
    crm: Crm, world: World, books: Books, start: Start, server_port: int
) -> None:
    """Three senders share four connections; one is killed: the others soon have its places, nobody is left out."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    everyone = senders(start, 3, SMTP_CONNECTIONS="4")
    connections = Connections(server_port)
    campaign = crm.add_campaign("email", recipients=4000)

    def all_send() -> bool:
        return min(connections.by_process(*everyone).values()) > 0

    wait_for(all_send, "all have connections")
    killed, *others = everyone
    killed.kill()
    wait_for(lambda: connections.by_process(*others).total() == 4, "the others have them all", 30)
    world.clear_script("smtp")
    wait_for(lambda: connections.by_process(*others).total() <= 4 and books.ended_early(campaign), "it ends", 120)
    assert books.balance(campaign, kills=1) <= THREADS
    assert connections.most <= 4
    for worker in others:
        assert "Traceback" not in worker.log
        assert worker.stop(signal.SIGTERM) == 0
    assert connections.by_process(*others).total() == 0


def test_one_connection_for_a_campaign_and_a_command(
    crm: Crm, world: World, books: Books, start: Start, server_port: int, redis_client: redis.Redis
) -> None:
    """They take turns: the command's message leaves while the campaign is sent. Then nothing is left in Redis."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    connections = Connections(server_port)
    worker = start(SMTP_CONNECTIONS="1")
    campaign = crm.add_campaign("email", recipients=1000)
    wait_for(lambda: books.sent(campaign), "it is sent")
    command = start("test", campaign, "--to", "ravi@tester.example", SMTP_CONNECTIONS="1")
    wait_for(lambda: connections.by_process(command).total() or not command.running, "the command has it", 30)
    assert command.wait() == 0
    assert books.status(campaign) == "running"
    world.clear_script("smtp")
    wait_for(lambda: connections.by_process(worker).total() <= 1 and books.ended(campaign), "the campaign ends", 120)
    assert connections.most == 1
    assert crm.counts(campaign) == {"sent": 1000}
    books.nobody_twice("smtp")
    assert worker.stop() == 0
    assert not redis_client.exists(KEY)


def test_without_a_limit_redis_has_nothing_of_it(
    crm: Crm, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    start()
    campaign = crm.add_campaign("email", recipients=200)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert not redis_client.exists(KEY)
    assert not redis_client.exists("pace:smtp:127.0.0.1")


def test_a_server_that_wants_less_mail(crm: Crm, world: World, books: Books, start: Start) -> None:
    """It says so to one tenant's campaign: the senders of another one, and a command, leave it alone, too."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    everyone = senders(start, 3)
    other = crm.add_campaign("email", recipients=4000)
    wait_for(lambda: books.sent(other) > 100, "it is sent")
    tenant = crm.add_tenant(settings={})
    user = crm.add_user(tenant, email="owner@told.example")
    too_much = "4.7.1 Error: too much mail from 192.0.2.1"
    world.script(
        "smtp", "owner@told.example", action="answer", stage="mail", status=450, text=too_much, times=THREADS
    )
    told = crm.add_campaign("email", recipients=20, tenant_id=tenant, user_id=user)
    wait_for(lambda: any(each.said("the provider defers its messages") for each in everyone), "one is told")
    wait_for(lambda: any(each.said("its account may not send more for now") for each in everyone), "others know")
    command = start("test", other, "--to", "ravi@tester.example")
    world.clear_script("smtp")
    wait_for(lambda: books.ended(told, other), "both end", 120)
    assert command.wait() == 0
    for campaign, number in ((told, 20), (other, 4000)):
        assert crm.counts(campaign) == {"sent": number}
    assert world.total("smtp") == 4000 + 20 + 1  # nobody twice
    statement = 'SELECT "sentAt" FROM "CampaignRecipient" WHERE "campaignId" = %s ORDER BY 1'
    times = [at for (at,) in crm.execute(statement, (other,))]
    longest = max((later - earlier).total_seconds() for earlier, later in pairwise(times))
    assert longest > PAUSE_SECONDS - 3
