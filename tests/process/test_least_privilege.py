"""The rights that docs/operating.md grants, in PostgreSQL and in Redis, are enough for every job."""

import os
import re
import secrets
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
import redis
from every_job import add_work_for_each_job, every_job_works
from web_process import OpenWeb
from workers import PROJECT, WAIT_SECONDS, Start, wait_for

from sandbox.accounts import ENCRYPTION_KEY
from sandbox.crm import Crm, utc_now
from sandbox.demo_jobs import OWNER
from sandbox.dovecot import Dovecot
from sandbox.ports import free_port
from sandbox.qdrant import Qdrant
from sandbox.redis import Redis
from sandbox.servers import ServerMissing
from sandbox.world import World
from worker.content.unsubscribe_token import UnsubscribeTokens
from worker.registry import JOBS

TESTER = "tester@office.example"
PAGE = PROJECT / "docs" / "operating.md"


@pytest.fixture
def role(crm: Crm) -> Iterator[tuple[str, str]]:
    """Name and password of a role that has the rights on the page, and no others."""
    name, password = f"crm_worker_{secrets.token_hex(4)}", secrets.token_hex(8)
    crm.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    crm.execute(grants_to("crm_worker", name))
    yield name, password
    crm.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def grants_to(role: str, name: str, *, engine: bool = False) -> str:
    """The statements of the page that grant ``role`` its rights, for ``name``: the usual ones, or the engine's."""
    blocks = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    (grants,) = [each for each in blocks if f"TO {role};" in each and ("SCHEMA engine" in each) == engine]
    return re.sub(rf"\b{role}\b", name, textwrap.dedent(grants))


@pytest.fixture
def crm_role(crm: Crm) -> Iterator[str]:
    """Name and password, as in a URL, of a role that has of the worker's schema only what the page grants the CRM."""
    name, password = f"crm_app_{secrets.token_hex(4)}", secrets.token_hex(8)
    crm.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
    crm.execute(grants_to("crm_app", name))
    yield f"{name}:{password}"
    crm.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_the_granted_rights_are_enough(
    crm: Crm,
    world: World,
    start: Start,
    role: tuple[str, str],
    database_url: str,
    mailbox: Dovecot,
    tmp_path: Path,
) -> None:
    """As a role with only the rights on the page, every job does all of its work."""
    for worker in every_job_works(crm, world, start, mailbox, tmp_path, url_of(role, database_url)):
        assert "permission denied" not in worker.log


def test_the_granted_rights_are_enough_to_share_campaigns(
    crm: Crm, world: World, start: Start, role: tuple[str, str], database_url: str
) -> None:
    """With the engine's tables, made by bin/migrate's role, a scheduler and a sender do all of their work."""
    engine = {"CAMPAIGN_ENGINE": "procrastinate"}
    assert start(program="migrate", **engine).wait() == 0
    crm.execute(grants_to("crm_worker", role[0], engine=True))
    url = url_of(role, database_url)
    workers = [start(program=each, DATABASE_URL=url, **engine) for each in ("campaign", "campaign-sender")]
    campaign = crm.add_campaign("email", recipients=50)
    wait_for(lambda: crm.counts(campaign) == {"sent": 50}, "the campaign is sent")
    for worker in workers:
        assert worker.stop() == 0
        assert "permission denied" not in worker.log


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Qdrant]:
    server = Qdrant(tmp_path / "qdrant")
    try:
        server.start()
    except ServerMissing as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    yield server
    server.kill()


def test_the_granted_rights_in_redis_are_enough(
    crm: Crm,
    world: World,
    start: Start,
    open_web: OpenWeb,
    new_redis: Callable[..., Redis],
    mailbox: Dovecot,
    engine: Qdrant,
) -> None:
    """As a user with only the rights on the page every job does its work, and so does `web`; nothing is refused."""
    add_work_for_each_job(crm)
    server = new_redis()
    with server.client() as client:
        client.execute_command(*redis_user().replace(">PASSWORD", ">secret").split())
        url = f"redis://crm_worker:secret@127.0.0.1:{server.port}/0"
        bounced = {"BOUNCE_ADDRESS": "bounces@mail.example", "BOUNCE_MAILBOX_URL": mailbox.url}
        settings = bounced | {"REDIS_URL": url, "OWNER_EMAIL": OWNER, "QDRANT_URL": engine.url}
        settings["SMTP_CONNECTIONS"] = "2"
        for program in sorted(JOBS):
            worker = start("--once", program=program, **settings)
            assert worker.wait() == 0, program
        web = open_web(**settings)
        assert web.get("/readyz").status == 200
        runs = web.samples()
        assert [runs["crm_worker_job_runs_total", (("job", job), ("outcome", "success"))] for job in JOBS]
        published = int(client.info("commandstats")["cmdstat_publish"]["calls"])
        assert client.execute_command("ACL", "LOG") == []
    assert published > 0
    assert set(crm.execute('SELECT status FROM "Campaign"')) == {("completed",)}
    with redis.Redis.from_url(url) as client:
        for command in (
            ("FLUSHALL",),
            ("KEYS", "*"),
            ("GET", "other"),
            ("PUBLISH", "other", ""),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def redis_user() -> str:
    """The command of the page that makes the worker's user in Redis."""
    (line,) = re.findall(r"^ *(ACL SETUSER crm_worker .*)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    return str(line)


def test_the_crms_role_has_the_two_functions_only(crm: Crm, crm_role: str, database_url: str) -> None:
    """It adds to the list and takes from it, in the worker's name; the tables are closed to it."""
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"{crm_role}@{parts.netloc.rpartition('@')[2]}").geturl()
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SELECT worker.suppress('t', 'whatsapp', '+91 98765 43210', 'STOP', 'unsubscribe')")
        assert cursor.fetchone() == (True,)
        cursor.execute("SELECT worker.suppress('t', 'email', 'asha@x.example', 'complaint', 'complaint')")
        cursor.execute("SELECT worker.unsuppress('t', 'email', 'Asha@x.example')")
        assert cursor.fetchone() == (True,)
        for statement in (
            "SELECT * FROM worker.suppression", "DELETE FROM worker.suppression", "SELECT * FROM worker.failure",
            "INSERT INTO worker.suppression (tenant_id, channel, address, reason) VALUES ('t', 'call', '1', 'x')",
        ):  # fmt: skip
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
    assert crm.execute("SELECT channel, address FROM worker.suppression") == [("whatsapp", "919876543210")]


def test_nobody_else_has_the_functions(crm: Crm, database_url: str) -> None:
    """They change what any tenant may send, so they are closed to a role that was granted nothing."""
    name = f"stranger_{secrets.token_hex(4)}"
    crm.execute(f"CREATE ROLE {name}; GRANT USAGE ON SCHEMA worker TO {name}")
    try:
        crm.execute(f"SET ROLE {name}")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            crm.execute("SELECT worker.suppress('t', 'call', '9876543210', 'x', 'operator')")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            crm.execute("SELECT worker.unsuppress('t', 'call', '9876543210')")
    finally:
        crm.execute("RESET ROLE")
        crm.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_the_granted_rights_are_enough_to_unsubscribe(
    crm: Crm, open_web: OpenWeb, role: tuple[str, str], database_url: str
) -> None:
    """The page behind unsubscribe links works with them, both ways."""
    url, port = url_of(role, database_url), free_port()
    public = f"http://127.0.0.1:{port}"
    web = open_web(DATABASE_URL=url, PUBLIC_URL=public, PUBLIC_PORT=str(port))
    token = UnsubscribeTokens([ENCRYPTION_KEY]).maker(crm.tenant_id, "email", "c")("asha@example.com")
    for action, listed in ((b"action=unsubscribe", 1), (b"action=undo", 0)):
        with urllib.request.urlopen(f"{public}/u/{token}", action, timeout=WAIT_SECONDS) as answer:  # noqa: S310
            assert answer.status == 200
        assert crm.value("SELECT count(*) FROM worker.suppression") == listed
    assert "permission denied" not in web.worker.log


def test_the_granted_rights_are_enough_to_retry(
    crm: Crm, world: World, start: Start, role: tuple[str, str], database_url: str
) -> None:
    """Failures are written, shown and tried again with them, and old ones deleted."""
    url = url_of(role, database_url)
    for address, text in (("gone@a.example", "5.1.1 unknown"), ("full@a.example", "5.2.2 full")):
        world.script("smtp", address, stage="rcpt", status=550, text=text)
    crm.execute(
        "INSERT INTO worker.failure VALUES ('old', 'old', 'old', 'refused', '', '', '', %s)",
        (utc_now() - timedelta(days=99),),
    )
    people = ("gone@a.example", "full@a.example", "asha@a.example")
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in people])
    for program in ("campaign", "call-cleanup"):
        assert start("--once", program=program, DATABASE_URL=url).wait() == 0
    assert crm.execute("SELECT kind FROM worker.failure ORDER BY 1") == [("address",), ("refused",)]
    assert crm.value("SELECT count(*) FROM worker.suppression WHERE source = 'bounce'") == 1
    for command in (("failures", campaign), ("retry", campaign, "--kind", "refused")):
        worker = start(*command, DATABASE_URL=url)
        assert worker.wait() == 0, worker.log
        assert "permission denied" not in worker.log
    assert crm.counts(campaign) == {"pending": 1, "failed": 1, "sent": 1}


def test_the_granted_rights_are_enough_to_look_at_campaigns(
    crm: Crm, world: World, start: Start, role: tuple[str, str], database_url: str
) -> None:
    """A campaign is checked, tested, listed and shown with them, by its recipients and by its target."""
    crm.add_lead()
    campaigns = [crm.add_campaign("email", recipients=2), crm.add_campaign("whatsapp", targetType="leads")]
    url = url_of(role, database_url)
    commands = [("list",), ("test", campaigns[0], "--to", TESTER)]
    commands += [(name, each) for name in ("check", "show") for each in campaigns]
    for command in commands:
        worker = start(*command, DATABASE_URL=url, SMTP_DAILY_LIMIT="100")
        assert worker.wait() in (0, 1), worker.log
        assert "permission denied" not in worker.log
    assert world.counts("smtp") == {TESTER: 1}


def url_of(role: tuple[str, str], database_url: str) -> str:
    """The test's database, for the role."""
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{role[0]}:{role[1]}@{place}").geturl()
