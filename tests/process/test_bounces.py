"""The real bin/bounces with a real Dovecot: what reports change, also after kills and beside another worker."""

import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import redis
import trustme
from workers import Start, Worker, wait_for

from sandbox import reports
from sandbox.crm import Crm, utc_now
from sandbox.dovecot import Dovecot
from sandbox.world import World

LOCK = "lock:bounces"
ADDRESS = "bounces@mail.example"
OpenMailbox = Callable[..., Dovecot]
OWNER = "owner@crm.example.in"


@pytest.fixture
def start_bounces(start: Start, mailbox: Dovecot) -> Start:
    def start_one(*arguments: str, **settings: str) -> Worker:
        usual = {"BOUNCE_MAILBOX_URL": mailbox.url, "BOUNCE_ADDRESS": ADDRESS}
        return start(*arguments, program="bounces", **(usual | settings))

    return start_one


@pytest.fixture
def sent(crm: Crm, world: World, start: Start) -> Callable[[int], dict[str, str]]:
    """Sends a real campaign: the return path of each recipient, by address, as the SMTP server got it."""

    def send(recipients: int) -> dict[str, str]:
        crm.add_campaign("email", recipients=recipients)
        assert start("--once", BOUNCE_ADDRESS=ADDRESS).wait() == 0
        return {each.address: each.account for each in world.deliveries("smtp")}

    return send


def states(crm: Crm) -> dict[str, int]:
    return dict(crm.execute('SELECT status, count(*) FROM "CampaignRecipient" GROUP BY 1'))


def counts(crm: Crm) -> tuple[int, int]:
    return crm.execute('SELECT "sentCount", "failedCount" FROM "Campaign"')[0]


def suppressed(crm: Crm) -> dict[str, str]:
    return dict(crm.execute("SELECT address, source FROM worker.suppression"))


def bounces(redis_client: redis.Redis) -> dict[str, str]:
    found = redis_client.hgetall("worker:counters")
    return {key: value for key, value in found.items() if key.startswith("bounces_total")}


def test_from_the_campaign_to_the_list(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start, redis_client: redis.Redis
) -> None:
    """Reports of five servers, a complaint, an automatic answer, a broken report and a forged one."""
    paths = sent(10)
    assert len(set(paths.values())) == 10
    ten = list(paths)
    makers = [*reports.FAILURES.values(), reports.complaint, reports.vacation, reports.broken]
    for make, address in zip(makers, ten, strict=False):
        mailbox.deliver(make(paths[address], address))
    forged = paths[ten[8]].replace("+r", "+ra", 1)[: len("bounces+r") + 40] + "@mail.example"
    mailbox.deliver(reports.postfix(forged, ten[8]))
    worker = start_bounces("--once", LOG_LEVEL="debug")
    assert worker.wait() == 0
    hard = {ten[0], ten[1], ten[2], ten[4]}  # ten[3] is full: soft
    assert suppressed(crm) == dict.fromkeys(hard, "bounce") | {ten[5]: "complaint"}
    assert states(crm) == {"failed": 5, "sent": 5}
    assert counts(crm) == (5, 5)
    assert mailbox.folders() == {"INBOX": 0, "Processed": 6, "Unrecognised": 3}
    assert not any("Seen" in flags for flags in mailbox.flags("Processed")), "they are as unread as before"
    assert bounces(redis_client) == {
        'bounces_total{kind="hard"}': "4",
        'bounces_total{kind="soft"}': "1",
        'bounces_total{kind="complaint"}': "1",
        'bounces_total{kind="unrecognised"}': "3",
    }
    assert worker.said("delivery reports read all=True hard=4 soft=1 complaint=1 unrecognised=3") == 1
    assert mailbox.password not in worker.log
    assert not any(address in worker.log for address in ten)
    assert start_bounces("--once").wait() == 0
    assert mailbox.folders() == {"INBOX": 0, "Processed": 6, "Unrecognised": 3}


def test_notifications(crm: Crm, world: World, mailbox: Dovecot, start: Start, start_bounces: Start) -> None:
    """Reminders and mails about trials have return paths, too; a report suppresses the address for its tenant."""
    reminded, contact = "sales@gone.example", "contact@gone.example"
    crm.add_lead(createdAt=utc_now() - timedelta(days=3))
    crm.execute(
        """UPDATE "Tenant" SET settings = settings || jsonb_build_object('leadReminders',
               jsonb_build_object('enabled', true, 'recipientEmails', jsonb_build_array(%s::text)))""",
        (reminded,),
    )
    expired = {"plan": "FREE", "status": "TRIAL", "subscriptionEnd": utc_now() - timedelta(days=1)}
    trial = crm.add_tenant(contactEmail=contact, **expired)
    for program in ("reminders", "trial"):
        assert start("--once", program=program, BOUNCE_ADDRESS=ADDRESS, OWNER_EMAIL=OWNER).wait() == 0
    paths = {each.address: each.account for each in world.deliveries("smtp")}
    assert paths.pop(OWNER) == OWNER
    assert paths.keys() == {reminded, contact}
    for address, path in paths.items():
        mailbox.deliver(reports.exchange(path, address))
    assert start_bounces("--once").wait() == 0
    found = set(crm.execute("SELECT tenant_id, channel, address, source FROM worker.suppression"))
    assert found == {(crm.tenant_id, "email", reminded, "bounce"), (trial, "email", contact, "bounce")}


def test_killed_at_any_instant(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start, redis_client: redis.Redis
) -> None:
    """Each report has its effect once, and is in the folder in the end, wherever kill -9 came."""
    for address, path in sent(60).items():
        mailbox.deliver(reports.postfix(path, address))
    for number in range(5, 50, 9):
        worker = start_bounces()
        wait_for(lambda: crm.value("SELECT count(*) FROM worker.bounce") >= number, "some reports were read")  # noqa: B023
        worker.kill()
        redis_client.delete(LOCK)
    assert start_bounces("--once").wait() == 0
    assert states(crm) == {"failed": 60}
    assert counts(crm) == (0, 60)
    assert crm.value("SELECT count(*) FROM worker.bounce") == 60
    assert mailbox.folders() == {"INBOX": 0, "Processed": 60, "Unrecognised": 0}


def test_two_at_once(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start, redis_client: redis.Redis
) -> None:
    """Two that both believe they have the lock do what one would do, and lose no message."""
    delivered = {path: reports.postfix(path, address) for address, path in sent(40).items()}
    for report in delivered.values():
        mailbox.deliver(report)
    workers = [start_bounces() for _ in range(2)]

    def all_moved() -> bool:
        redis_client.delete(LOCK)
        return mailbox.folders().get("INBOX") == 0

    wait_for(all_moved, "all reports were read")
    for worker in workers:
        assert worker.stop() == 0
    assert (states(crm), counts(crm)) == ({"failed": 40}, (0, 40))
    assert mailbox.folders().keys() - {"Processed"} == {"INBOX", "Unrecognised"}
    assert mailbox.folders()["INBOX"] == mailbox.folders()["Unrecognised"] == 0
    # twice where both moved one at the same moment: Dovecot copies for each of them, and removes the original once
    processed = mailbox.messages("Processed")
    assert all(any(path in message for message in processed) for path in delivered)


def test_stopped_while_it_reads(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start
) -> None:
    """SIGTERM ends it between two messages; the next one goes on."""
    for address, path in sent(40).items():
        mailbox.deliver(reports.postfix(path, address))
    worker = start_bounces()
    wait_for(lambda: crm.value("SELECT count(*) FROM worker.bounce"), "it reads")
    assert worker.stop(signal.SIGTERM) == 0
    assert start_bounces("--once").wait() == 0
    assert states(crm) == {"failed": 40}


def test_nothing_is_lost_when_nothing_can_be_moved(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start
) -> None:
    """The effects stand, the message stays, and is moved when that works again. Others go on."""
    paths = sent(2)
    first, second = paths
    assert start_bounces("--once").wait() == 0  # makes the folders
    mailbox.close_folder("Processed")
    mailbox.deliver(reports.postfix(paths[first], first))
    worker = start_bounces("--once")
    assert worker.wait() == 1
    assert worker.said("tick failed job=bounces")
    assert suppressed(crm) == {first: "bounce"}
    assert mailbox.folders()["INBOX"] == 1
    mailbox.open_folder("Processed")
    mailbox.deliver(reports.postfix(paths[second], second))
    assert start_bounces("--once").wait() == 0
    assert mailbox.folders() == {"INBOX": 0, "Processed": 2, "Unrecognised": 0}
    assert counts(crm) == (0, 2)


def test_a_report_that_the_database_refuses(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start
) -> None:
    """It stays in the mailbox and keeps nobody else's report from its effect."""
    paths = sent(3)
    for address, path in paths.items():
        mailbox.deliver(reports.postfix(path, address))
    refused = list(paths)[1]
    crm.execute("ALTER TABLE worker.bounce ADD CONSTRAINT refused CHECK (address <> %s) NOT VALID", (refused,))
    worker = start_bounces(BOUNCE_INTERVAL="1s")
    wait_for(lambda: mailbox.folders() == {"INBOX": 1, "Processed": 2, "Unrecognised": 0}, "the others are read")
    assert suppressed(crm).keys() == paths.keys() - {refused}
    crm.execute("ALTER TABLE worker.bounce DROP CONSTRAINT refused")
    wait_for(lambda: mailbox.folders()["INBOX"] == 0, "it is read when it can be")
    assert worker.stop() == 0
    assert suppressed(crm).keys() == paths.keys()


@pytest.mark.parametrize(
    ("options", "folders"),
    [
        ({"prefix": "INBOX.", "separator": "."}, {"INBOX": 0, "INBOX.Processed": 1, "INBOX.Unrecognised": 1}),
        ({"without": "MOVE"}, {"INBOX": 0, "Processed": 1, "Unrecognised": 1}),
        ({"without": "NAMESPACE"}, {"INBOX": 0, "Processed": 1, "Unrecognised": 1}),
    ],
    ids=["prefix", "no MOVE", "no NAMESPACE"],
)
def test_other_servers(
    crm: Crm,
    open_mailbox: OpenMailbox,
    sent: Callable[[int], dict[str, str]],
    start: Start,
    options: dict[str, str],
    folders: dict[str, int],
) -> None:
    """With folders below INBOX, or without MOVE: a message whose deletion others have marked stays in its folder."""
    mailbox = open_mailbox(**options)
    ((address, path),) = sent(1).items()
    large = reports.vacation(path, address) + b"x" * 70 * 20_000
    for raw in (reports.postfix(path, address), large):
        mailbox.deliver(raw)
    settings = {"BOUNCE_MAILBOX_URL": mailbox.url, "BOUNCE_ADDRESS": ADDRESS}
    assert start("--once", program="bounces", **settings).wait() == 0
    assert mailbox.folders() == folders
    (kept,) = mailbox.messages(next(name for name in folders if name.endswith("Unrecognised")))
    assert len(kept) > len(large) * 0.95
    assert suppressed(crm) == {address: "bounce"}


def test_tls(open_mailbox: OpenMailbox, start: Start, tmp_path: Path) -> None:
    """The certificate is checked: with its authority the mailbox is read, without it nothing is, not even a login."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    certificate, ca_file = tmp_path / "server.pem", tmp_path / "ca.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(ca_file)
    mailbox = open_mailbox(certificate=certificate)
    for url in (mailbox.tls_url, mailbox.url.replace("127.0.0.1", "localhost")):
        settings = {"BOUNCE_MAILBOX_URL": f"{url}?ca_file={ca_file}", "BOUNCE_ADDRESS": ADDRESS}
        worker = start("--once", program="bounces", **settings)
        assert worker.wait() == 0, worker.log
    untrusted = start("--once", program="bounces", BOUNCE_MAILBOX_URL=mailbox.tls_url, BOUNCE_ADDRESS=ADDRESS)
    assert untrusted.wait() == 1
    assert untrusted.said("its certificate is not valid")


def test_a_wrong_password(mailbox: Dovecot, start_bounces: Start) -> None:
    """It says so without the password, and tries again only at the next interval: a server locks who tries often."""
    worker = start_bounces("--once", BOUNCE_MAILBOX_URL=mailbox.url.replace(mailbox.password, "hunter2"))
    assert worker.wait() == 1
    assert worker.said('tick failed job=bounces reason="the mailbox refuses')
    assert "hunter2" not in worker.log


def test_a_server_that_is_down(
    crm: Crm, mailbox: Dovecot, sent: Callable[[int], dict[str, str]], start_bounces: Start
) -> None:
    """The job waits for it, and reads when it is back."""
    ((address, path),) = sent(1).items()
    mailbox.deliver(reports.postfix(path, address))
    mailbox.stop()
    worker = start_bounces(BOUNCE_INTERVAL="1s")
    wait_for(lambda: worker.said("a server is unavailable, the job waits for it"), "it says so")
    mailbox.start()
    wait_for(lambda: suppressed(crm), "it reads")
    assert worker.stop() == 0
    assert worker.said("the server is available again, the job continues") == 1


def test_without_a_mailbox(start: Start) -> None:
    """It says so and ends with status 0, which supervisord takes for an end."""
    worker = start(program="bounces", BOUNCE_ADDRESS=ADDRESS)
    assert worker.wait() == 0
    assert worker.said('nothing to do on this machine program=bounces reason="BOUNCE_MAILBOX_URL is not set"') == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"BOUNCE_MAILBOX_URL": "imaps://u:hunter2@h:99999"}, "BOUNCE_MAILBOX_URL"),
        ({"BOUNCE_MAILBOX_URL": "pop3://u:hunter2@h"}, "BOUNCE_MAILBOX_URL"),
        ({"BOUNCE_MAILBOX_URL": "imaps://h"}, "BOUNCE_MAILBOX_URL"),
        ({"BOUNCE_MAILBOX_URL": "imaps://u:hunter2@h", "BOUNCE_ADDRESS": ""}, "BOUNCE_ADDRESS"),
        ({"BOUNCE_MAILBOX_URL": "imaps://u:hunter2@h", "ENCRYPTION_KEY": ""}, "ENCRYPTION_KEY"),
        ({"BOUNCE_ADDRESS": "bounces"}, "BOUNCE_ADDRESS"),
        ({"BOUNCE_ADDRESS": "bounces-of-all-our-campaigns@mail.example"}, "BOUNCE_ADDRESS"),
        ({"BOUNCE_MAILBOX_URL": "imaps://u:hunter2@h?ca_file=/none.pem"}, "ca_file"),
    ],
)
def test_bad_settings(settings: dict[str, str], named: str, start: Start) -> None:
    """One line that names the variable, and status 2; no password."""
    worker = start("--once", program="bounces", **({"BOUNCE_ADDRESS": ADDRESS} | settings))
    assert worker.wait() == 2
    assert worker.said("cannot start") == 1
    assert named in worker.log
    assert "hunter2" not in worker.log
