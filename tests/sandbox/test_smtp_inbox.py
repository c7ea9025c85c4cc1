"""The SMTP inbox records what it accepts and fails where a rule asks for it."""

import smtplib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sandbox.world import World

CONTENT = b"From: shop@chaiwala.example\r\nTo: priya@x.example\r\nSubject: Hi\r\nMessage-ID: <1@x>\r\n\r\n.dot\r\n"


@pytest.fixture
def client(world: World) -> Iterator[smtplib.SMTP]:
    client = smtplib.SMTP("127.0.0.1", world.options.smtp_port, timeout=20)
    yield client
    client.close()


def send(client: smtplib.SMTP, *recipients: str) -> dict[str, tuple[int, bytes]]:
    return client.sendmail("shop@chaiwala.example", recipients or ["priya@x.example"], CONTENT)


def test_messages_are_recorded_unchanged(world: World, client: smtplib.SMTP) -> None:
    send(client, "Priya@x.example", "rohan@x.example")
    received = world.deliveries("smtp")
    assert [each.address for each in received] == ["priya@x.example", "rohan@x.example"]
    assert {each.content for each in received} == {CONTENT}
    assert (received[0].account, received[0].message_id) == ("shop@chaiwala.example", "<1@x>")
    assert world.email("priya@x.example")["Subject"] == "Hi"


def test_duplicates_are_counted(world: World, client: smtplib.SMTP) -> None:
    send(client, "twice@x.example")
    send(client, "once@x.example")
    send(client, "TWICE@x.example")
    assert world.counts("smtp") == {"twice@x.example": 2, "once@x.example": 1}
    assert world.duplicates("smtp") == {"twice@x.example": 2}


def test_counts_survive_a_restart_and_a_kill(tmp_path: Path) -> None:
    world = World(tmp_path / "world of its own")
    world.start()
    try:
        for end in (world.stop, world.kill):
            with smtplib.SMTP("127.0.0.1", world.options.smtp_port, timeout=20) as client:
                send(client)
            end()
            assert world.counts("smtp") == {"priya@x.example": 1 if end == world.stop else 2}
            world.start()
            assert world.total("smtp") == (1 if end == world.stop else 2)
    finally:
        world.kill()


def test_pipelining_is_announced(client: smtplib.SMTP) -> None:
    client.ehlo()
    assert client.has_extn("pipelining")
    assert client.has_extn("8bitmime")


def test_a_refused_recipient_leaves_the_others(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", "Gone@x.example", status=550, text="5.1.1 moved away")
    assert send(client, "gone@x.example", "here@x.example") == {"gone@x.example": (550, b"5.1.1 moved away")}
    assert world.counts("smtp") == {"here@x.example": 1}
    assert [(each.address, each.status) for each in world.refusals("smtp")] == [("gone@x.example", 550)]


def test_a_recipient_is_deferred_twice_and_then_accepted(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", "busy@x.example", status=451, times=2)
    for _ in range(2):
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refusal:
            send(client, "busy@x.example")
        assert refusal.value.recipients["busy@x.example"][0] == 451
    send(client, "busy@x.example")
    assert world.counts("smtp") == {"busy@x.example": 1}


def test_a_refused_sender(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", "shop@chaiwala.example", stage="mail", status=553)
    with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
        send(client)
    assert refusal.value.smtp_code == 553
    client.sendmail("other@chaiwala.example", ["priya@x.example"], CONTENT)


def test_refused_content(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", stage="data", status=554, times=1)
    with pytest.raises(smtplib.SMTPDataError) as refusal:
        send(client)
    assert refusal.value.smtp_code == 554
    assert world.total("smtp") == 0
    send(client)


@pytest.mark.parametrize("stage", ["mail", "rcpt", "data"])
def test_421_and_close(world: World, client: smtplib.SMTP, stage: str) -> None:
    world.script("smtp", action="close", stage=stage, times=1)
    with pytest.raises(smtplib.SMTPException) as error:
        send(client)
    assert "421" in str(error.value)
    with pytest.raises((smtplib.SMTPServerDisconnected, smtplib.SMTPSenderRefused)):
        send(client)
    assert world.total("smtp") == 0


def test_a_message_whose_answer_is_cut_was_accepted(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", "priya@x.example", action="cut-after", times=1)
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(client)
    assert [each.outcome for each in world.deliveries("smtp")] == ["unanswered"]


def test_a_message_that_is_cut_before_was_not(world: World, client: smtplib.SMTP) -> None:
    world.script("smtp", "priya@x.example", action="cut-before", times=1)
    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(client)
    assert world.total("smtp") == 0


def test_an_answer_that_hangs_comes_late_or_never(world: World) -> None:
    world.script("smtp", "slow@x.example", action="hang", seconds=60)
    client = smtplib.SMTP("127.0.0.1", world.options.smtp_port, timeout=0.5)
    with pytest.raises((TimeoutError, smtplib.SMTPServerDisconnected)):
        send(client, "slow@x.example")
    client.close()
    assert world.counts("smtp") == {"slow@x.example": 1}


def test_a_rule_without_a_whole_message_cannot_hang(world: World) -> None:
    with pytest.raises(ValueError, match="whole message"):
        world.script("smtp", action="hang", stage="rcpt")
    with pytest.raises(ValueError, match="unexpected keyword"):
        world.script("smtp", actoin="hang")
    with pytest.raises(ValueError, match="no stage"):
        world.script("whatsapp", stage="rcpt")


class TestWithTls:
    """STARTTLS or TLS from the first byte, and AUTH."""

    @pytest.fixture(params=["starttls", "implicit"])
    def secured(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        world = World(
            tmp_path / "world",
            ca_file=tmp_path / "ca.pem",
            smtp_tls=request.param,
            certificate=tmp_path / "server.pem",
            smtp_user="worker",
            smtp_password="a b/c",
        )
        world.start()
        yield world
        world.kill()

    def connect(self, world: World) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=str(world.folder.parent / "ca.pem"))
        port = world.options.smtp_port
        if world.options.smtp_tls == "implicit":
            return smtplib.SMTP_SSL("127.0.0.1", port, timeout=20, context=context)
        client = smtplib.SMTP("127.0.0.1", port, timeout=20)
        client.starttls(context=context)
        return client

    def test_a_user_with_the_password_sends(self, secured: World) -> None:
        with self.connect(secured) as client:
            client.login("worker", "a b/c")
            send(client)
        assert [each.credential for each in secured.deliveries("smtp")] == ["worker"]

    def test_nobody_else_does(self, secured: World) -> None:
        with self.connect(secured) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
                client.login("worker", "wrong")
            assert refusal.value.smtp_code == 535
            with pytest.raises(smtplib.SMTPSenderRefused):
                send(client)

    def test_a_login_can_be_scripted_to_fail(self, secured: World) -> None:
        secured.script("smtp", stage="auth", status=454, text="4.7.0 later")
        with self.connect(secured) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as refusal:
                client.login("worker", "a b/c")
            assert refusal.value.smtp_code == 454
            secured.clear_script("smtp")
            client.login("worker", "a b/c")

    def test_the_url_leads_there(self, secured: World) -> None:
        scheme = "smtps" if secured.options.smtp_tls == "implicit" else "smtp"
        assert secured.smtp_url.startswith(
            f"{scheme}://worker:a%20b%2Fc@127.0.0.1:{secured.options.smtp_port}?ca_file="
        )


def test_clear_text_is_refused_where_tls_is_required(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    world = World(tmp_path / "world", smtp_tls="starttls", certificate=tmp_path / "server.pem")
    world.start()
    try:
        client = smtplib.SMTP("127.0.0.1", world.options.smtp_port, timeout=20)
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            send(client)
        assert refusal.value.smtp_code == 530
        client.close()
    finally:
        world.kill()
