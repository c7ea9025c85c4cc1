"""WhatsApp over HTTP: the contract's table of errors, and what is known when a connection breaks.

The second half holds for all HTTP providers; WhatsApp, which can be asked nothing, is where it matters most.
"""

import itertools
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

import pytest
import trustme
from raw_server import Connection, RawServer

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientExcluded,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.messages import Accepted, WhatsAppMessage
from worker.providers.http import HttpPool
from worker.providers.whatsapp import WhatsAppProvider
from worker.sending.outcomes import (
    FailureKind,
    NextStep,
    OutcomeKind,
    RetryPolicy,
    Suppression,
    failed,
    failure_kind,
)

TOKEN = "EAABsecret"
MESSAGE = WhatsAppMessage("919800000001", {"to": "919800000001", "type": "text", "text": {"body": "नमस्ते"}})
DAY = 24 * 3600.0
NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it


def request(connection: Connection) -> tuple[bytes, bytes]:
    """Head and body of one request."""
    head = connection.until(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return head, connection.exactly(length)


def answer(connection: Connection, status: int, body: Any, *headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", *headers, "", ""]
    connection.say("\r\n".join(lines).encode() + content)


def answering(status: int, body: Any, *headers: str) -> Callable[[Connection], None]:
    """A server that gives every request on every connection this answer."""

    def script(connection: Connection) -> None:
        while True:
            request(connection)
            answer(connection, status, body, *headers)

    return script


def accepted(connection: Connection) -> None:
    request(connection)
    answer(connection, 200, {"messages": [{"id": "wamid.1"}]})


def refusing(code: int, status: int = 400) -> Callable[[Connection], None]:
    data = {"messaging_product": "whatsapp", "details": "the details"}
    return answering(status, {"error": {"message": f"(#{code}) text", "code": code, "error_data": data}})


@pytest.fixture
def provider_of() -> Iterator[Callable[..., WhatsAppProvider]]:
    pools: list[HttpPool] = []

    def make(server: RawServer, *, scheme: str = "http", **options: Any) -> WhatsAppProvider:
        pools.append(HttpPool(8, **options))
        return WhatsAppProvider(f"{scheme}://127.0.0.1:{server.port}/v26.0", "1055", TOKEN, pools[-1])

    yield make
    for pool in pools:
        pool.close()


def test_messages_are_posted_as_json_on_one_kept_connection(provider_of) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def script(connection: Connection) -> None:
        for number in range(3):
            seen.append(request(connection))
            answer(connection, 200, {"messages": [{"id": f"wamid.{number}"}]})
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        assert [provider.send(MESSAGE) for _ in range(3)] == [
            Accepted(message_id=f"wamid.{number}") for number in range(3)
        ]
        assert server.connections == 1
    head, body = seen[0]
    assert head.startswith(b"POST /v26.0/1055/messages HTTP/1.1\r\n")
    assert b"Authorization: Bearer EAABsecret\r\n" in head
    assert b"Content-Type: application/json\r\n" in head
    assert json.loads(body) == MESSAGE.payload


TABLE = [
    *[(code, 400, RetryLater) for code in (130429, 131016, 131000, 4, 80007)],
    *[(code, 400, RecipientDeferred) for code in (131049, 131056)],
    *[(code, 400, RecipientRefused) for code in (131026, 131047)],
    (131050, 400, RecipientOptedOut),
    (131030, 400, RecipientRefused),
    *[(code, 400, RetryLater) for code in (1, 2, 17, 613, 132069)],
    *[(code, 400, CampaignRejected) for code in (131051, 131052, 131053, 132068)],
    *[(code, 400, AccountRejected) for code in (131044, 133005, 133006, 133015, 133016, 134011, 200, 210, 299)],
    # even an error that is said to be a success
    *[(code, 200, kind) for code, kind in ((190, AccountRejected), (131026, RecipientRefused), (130429, RetryLater))],
    *[(code, 400, CampaignRejected) for code in (132000, 132001, 132007, 132008, 132012, 132015, 132016)],
    *[(code, 400, CampaignRejected) for code in (131008, 131009)],
    *[(code, 400, AccountRejected) for code in (131048, 368, 131031, 131042, 190, 10, 33, 131037, 133010)],
    (130497, 403, RecipientRefused),
    (130472, 403, RecipientExcluded),
    (100, 400, RecipientRefused),
    # the code has priority over the status
    (131026, 500, RecipientRefused),
    (190, 429, AccountRejected),
    (131000, 403, RetryLater),
    *[(code, status, AccountRejected) for code in (33, 131037, 133010) for status in (403, 404, 500)],
    # an unknown code with 4xx refuses one recipient only: REFUSAL_BREAKER finds out if everybody gets it
    *[(999999, status, RecipientRefused) for status in (400, 401, 403, 404, 405, 410, 422)],
    (999999, 429, RetryLater),
    (999999, 500, RetryLater),
    (999999, 503, RetryLater),
]


@pytest.mark.parametrize(("code", "status", "kind"), TABLE)
def test_every_row_of_the_table(provider_of, code: int, status: int, kind: type[Exception]) -> None:
    with RawServer(refusing(code, status)) as server, pytest.raises(kind) as caught:
        provider_of(server).send(MESSAGE)
    assert type(caught.value) is kind
    assert str(caught.value) == f"WhatsApp {code}: (#{code}) text: the details"
    assert caught.value.code == str(code)


# Whose fault each code is: (code, subcode, kind, what the outcome counts as).
FAULTS = [
    (100, 33, AccountRejected, None),
    (33, None, AccountRejected, None),
    (131037, None, AccountRejected, None),
    (133010, None, AccountRejected, None),
    (131031, None, AccountRejected, None),
    (190, 463, AccountRejected, None),
    (10, None, AccountRejected, None),
    (368, None, AccountRejected, None),
    (131026, None, RecipientRefused, FailureKind.ADDRESS),
    (130497, None, RecipientRefused, FailureKind.REFUSED),
    (131047, None, RecipientRefused, FailureKind.REFUSED),
    (130472, None, RecipientExcluded, FailureKind.SUPPRESSED),
    (131050, None, RecipientOptedOut, FailureKind.SUPPRESSED),
    (131049, None, RecipientDeferred, FailureKind.DEFERRED),
    (131056, None, RecipientDeferred, FailureKind.DEFERRED),
]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize(("code", "subcode", "kind", "counts_as"), FAULTS)
def test_whose_fault_it_is_whatever_the_status_says(
    provider_of, code: int, subcode: int | None, kind: type[SendError], counts_as: FailureKind | None, status: int
) -> None:
    """The account's: nobody fails. The recipient's: nobody else does, and 'refused' is what the breaker counts."""
    error = {"code": code, "error_subcode": subcode, "message": f"(#{code}) text"}
    with RawServer(answering(status, {"error": error})) as server, pytest.raises(SendError) as caught:
        provider_of(server).send(MESSAGE)
    assert type(caught.value) is kind
    outcome = failed(caught.value, NOON)
    assert (outcome.kind is OutcomeKind.REJECTED) is (counts_as is None)
    assert counts_as in (None, failure_kind(outcome))
    assert outcome.suppression == (Suppression("provider") if kind is RecipientOptedOut else None)


@pytest.mark.parametrize("code", [131021, 131026, 131030, 131047, 130472, 130497, 100, 999999])
def test_refusals_of_one_person_however_many_in_a_row(provider_of, code: int) -> None:
    """Whoever is not on WhatsApp, or in an experiment, is no sign of the sender's fault.

    A code that may concern the account is, and so are those that a whole list gets through the campaign's fault: its
    text is outside of the 24 hours, its country is one that the business may not write to.
    """
    with RawServer(refusing(code, 400)) as server, pytest.raises(RecipientRefused) as caught:
        provider_of(server).send(MESSAGE)
    assert caught.value.address_fault is (code in (131021, 131026))
    assert failed(caught.value, NOON).may_be_senders_fault is (code not in (131021, 131026, 130472))
    assert caught.value.suppress_seconds == 0.0


@pytest.mark.parametrize(
    ("code", "to", "delays", "attempts"),
    [
        (131049, "919800000001", [DAY, DAY], 3),
        (131049, "12025550123", [], 1),
        (131056, "919800000001", [6.0, 16.0, 64.0, 256.0, 1024.0, 3600.0, 3600.0], 12),
        (131056, "12025550123", [6.0, 16.0], 12),
    ],
)
def test_how_often_and_when_a_limited_person_is_written_to_again(
    provider_of, code: int, to: str, delays: list[float], attempts: int
) -> None:
    """Two more tries a day apart, none to +1; or after 6 seconds, then 4 to the power of the refusals so far."""
    message = WhatsAppMessage(to, MESSAGE.payload | {"to": to})
    with RawServer(refusing(code)) as server, pytest.raises(RecipientDeferred) as caught:
        provider_of(server).send(message)
    outcome = failed(caught.value, NOON)
    policy = RetryPolicy(12, 60.0, 3600.0, resend_unconfirmed=False, after_rejection=NextStep.RELEASE)
    steps = [policy.next_step(outcome, number, can_ask=False) for number in range(attempts)]
    assert steps == [NextStep.RETRY] * (attempts - 1) + [NextStep.FAIL]
    assert [policy.delay_seconds(outcome, number) for number, _ in enumerate(delays, 1)] == delays


@pytest.mark.parametrize("code", [190, "190", 190.0])
@pytest.mark.parametrize("more", [{}, {"error_data": "text"}, {"error_data": [1]}, {"message": None}, {"type": 3}])
def test_a_code_is_read_in_whatever_shape_it_comes(provider_of, code: object, more: dict[str, object]) -> None:
    with RawServer(answering(400, {"error": {"code": code, **more}})) as server, pytest.raises(AccountRejected):
        provider_of(server).send(MESSAGE)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_phone_id_that_is_not_there_is_the_accounts_fault(provider_of, status: int) -> None:
    """Code 100 is an invalid parameter of one message, unless its subcode says that the phone id is not there."""
    error = {"code": 100, "error_subcode": 33, "message": "(#100) no such object, or no permission"}
    with RawServer(answering(status, {"error": error})) as server, pytest.raises(AccountRejected):
        provider_of(server).send(MESSAGE)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("wamid." + "x" * 1_000_000, "wamid." + "x" * 249),
        ("wamid.a\x00b\ud800c\nd e", "wamid.abcde"),
        ("wamid.HBgMOTE=", "wamid.HBgMOTE="),
    ],
)
def test_a_message_id_fits_into_its_column(provider_of, sent: str, kept: str) -> None:
    """What PostgreSQL cannot store, and what is longer than any id, is left out; the message was accepted."""
    with RawServer(answering(200, {"messages": [{"id": sent}]})) as server:
        assert provider_of(server).send(MESSAGE) == Accepted(message_id=kept)


@pytest.mark.parametrize("wamid", ["", "\x00", " ", None, 17, ["x"]])
def test_a_message_id_that_is_none_leaves_the_message_unconfirmed(provider_of, wamid: object) -> None:
    with RawServer(answering(200, {"messages": [{"id": wamid}]})) as server, pytest.raises(Unconfirmed):
        provider_of(server).send(MESSAGE)


@pytest.mark.parametrize(
    ("code", "header", "delay"),
    [
        (131049, [], DAY),
        (131049, ["Retry-After: 60"], DAY),
        (131056, [], 6.0),
        (131056, ["Retry-After: 60"], 60.0),
        (130429, [], None),
        (130429, ["Retry-After: 7"], 7.0),
        (999999, ["Retry-After: Thu, 01 Jan 1970 00:16:55 GMT"], 15.0),
    ],
)
def test_retry_later_names_the_providers_delay(
    provider_of, code: int, header: list[str], delay: float | None
) -> None:
    script = answering(429, {"error": {"code": code}}, *header)
    with RawServer(script) as server, pytest.raises(RetryLater) as caught:
        provider_of(server, clock=lambda: 1000.0).send(MESSAGE)
    assert caught.value.delay_seconds == delay


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"error":"x"}',
        b'{"error":{"code":"a190"}}',
        b'{"error":{"code":true}}',
        b"\xff",
        b"[" * 99999,
    ],
)
@pytest.mark.parametrize(("status", "kind"), [(400, RecipientRefused), (401, AccountRejected), (502, RetryLater)])
def test_an_error_without_a_readable_body_goes_by_its_status(provider_of, body, status, kind) -> None:
    with RawServer(answering(status, body)) as server, pytest.raises(kind, match=f"WhatsApp HTTP {status}"):
        provider_of(server).send(MESSAGE)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"messages":[]}', b'{"messages":[{"id":7}]}', b'{"messages":{"id":"x"}}']
)
def test_success_without_a_readable_id_is_unconfirmed(provider_of, body: bytes) -> None:
    with RawServer(answering(200, body)) as server, pytest.raises(Unconfirmed, match="without a message id"):
        provider_of(server).send(MESSAGE)


def test_a_redirect_is_not_followed(provider_of) -> None:
    with RawServer(accepted) as other:
        location = f"Location: http://127.0.0.1:{other.port}/"
        with RawServer(answering(307, b"", location)) as server, pytest.raises(RetryLater, match="307"):
            provider_of(server).send(MESSAGE)
        assert other.connections == 0


def test_a_token_that_the_answer_repeats_is_masked(provider_of) -> None:
    body = {"error": {"code": 190, "message": f"Malformed access token {TOKEN}"}}
    with RawServer(answering(401, body)) as server:
        provider = provider_of(server)
        with pytest.raises(AccountRejected) as caught:
            provider.send(MESSAGE)
    assert str(caught.value) == "WhatsApp 190: Malformed access token ***"
    assert TOKEN not in repr(provider)


@pytest.mark.parametrize("phone_id", ["", "1055/../me", "1055?x", "１０５５", "a"])
def test_a_phone_id_cannot_change_the_url(phone_id: str) -> None:
    with pytest.raises(TransportMissing):
        WhatsAppProvider("http://127.0.0.1:1", phone_id, TOKEN, HttpPool())


def test_a_token_that_no_header_can_hold_is_refused_and_not_shown() -> None:
    with pytest.raises(TransportMissing):
        WhatsAppProvider("http://127.0.0.1:1", "1055", "", HttpPool())
    with pytest.raises(AccountRejected) as caught:
        WhatsAppProvider("http://127.0.0.1:1", "1055", f"{TOKEN}\r\nX: y", HttpPool()).send(MESSAGE)
    assert TOKEN not in str(caught.value)


# Whether a request was sent when a connection breaks, for all HTTP providers.


def leave(_: Connection) -> None:
    """Ends the script, and with it the connection."""


def after_request(end: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        request(connection)
        end(connection)

    return script


def test_nobody_listening_is_retry_later(provider_of) -> None:
    with RawServer(leave) as server:
        provider = provider_of(server)
    with pytest.raises(RetryLater, match="not handed over"):
        provider.send(MESSAGE)


@pytest.mark.parametrize("end", ["close", "reset", "hang"])
def test_a_request_that_was_not_taken_whole_is_retry_later(provider_of, end: str) -> None:
    release = threading.Event()
    ends = {"close": leave, "reset": Connection.reset, "hang": lambda c: c.hang_unread(release)}
    huge = WhatsAppMessage(MESSAGE.to, {"text": {"body": "x" * 30_000_000}})

    def script(connection: Connection) -> None:
        connection.until(b"\r\n\r\n")
        connection.exactly(100_000)
        ends[end](connection)

    with RawServer(script) as server:
        with pytest.raises(RetryLater, match="not handed over"):
            provider_of(server, connect_timeout_seconds=2.0, read_timeout_seconds=2.0).send(huge)
        release.set()


@pytest.mark.parametrize(
    "end",
    [
        leave,
        Connection.reset,
        Connection.hang,
        lambda connection: connection.say(b"HTTP/1.1 2"),
        lambda connection: connection.say(b"220 smtp\r\n\r\n"),
        lambda connection: connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        lambda connection: connection.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        lambda c: (c.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), c.hang()),
    ],
    ids=["close", "reset", "hang", "half a line", "no HTTP", "half a body", "bad chunk", "hang in body"],
)
def test_no_answer_to_a_whole_request_is_unconfirmed_and_not_repeated(provider_of, end) -> None:
    with RawServer(after_request(end)) as server:
        with pytest.raises(Unconfirmed):
            provider_of(server, read_timeout_seconds=0.3).send(MESSAGE)
        assert server.connections == 1


def test_a_refusal_counts_although_its_body_breaks_off(provider_of) -> None:
    end = after_request(lambda connection: connection.say(b"HTTP/1.1 429 No\r\nContent-Length: 9\r\n\r\n{"))
    with RawServer(end) as server, pytest.raises(RetryLater, match="429"):
        provider_of(server).send(MESSAGE)


def test_an_answer_without_an_end_is_cut(provider_of) -> None:
    def endless(connection: Connection) -> None:
        request(connection)
        connection.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.say(b" " * 65536)

    with RawServer(endless) as server, pytest.raises(Unconfirmed):
        provider_of(server).send(MESSAGE)


@pytest.mark.parametrize("goodbye", [leave, Connection.reset], ids=["close", "reset"])
def test_a_connection_closed_while_idle_is_replaced_before_it_is_used(provider_of, goodbye) -> None:
    def once(connection: Connection) -> None:
        accepted(connection)
        goodbye(connection)

    with RawServer(once) as server:
        provider = provider_of(server)
        for count in range(1, 4):
            provider.send(MESSAGE)
            assert server.closed.acquire(timeout=10)
            assert server.connections == count


def test_a_close_that_crosses_the_request_is_unconfirmed(provider_of) -> None:
    def second_unanswered(connection: Connection) -> None:
        accepted(connection)
        request(connection)

    with RawServer(second_unanswered) as server:
        provider = provider_of(server)
        provider.send(MESSAGE)
        with pytest.raises(Unconfirmed):
            provider.send(MESSAGE)
        assert server.connections == 1


def test_many_threads_get_their_own_answers(provider_of) -> None:
    def echo(connection: Connection) -> None:
        while True:
            _, body = request(connection)
            answer(connection, 200, {"messages": [{"id": json.loads(body)["n"]}]})

    with RawServer(echo) as server, ThreadPoolExecutor(8) as threads:
        provider = provider_of(server)
        messages = [WhatsAppMessage("91", {"n": f"wamid.{n}"}) for n in range(400)]
        ids = [sent.message_id for sent in threads.map(provider.send, messages)]
        assert ids == [f"wamid.{n}" for n in range(400)]
        assert server.connections <= 8


def test_a_certificate_of_an_unknown_authority_stops_the_account(provider_of) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    script = partial(Connection.start_tls, context=context)
    with RawServer(script) as server, pytest.raises(AccountRejected, match="certificate is not valid"):
        provider_of(server, scheme="https").send(MESSAGE)


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b'{"messages": [{"id": "wamid.x"}]}        '


def dripping(answer: bytes, at_once: int) -> Callable[[Connection], None]:
    """A server that sends the first octets of its answer at once, and then one every 50 ms, for ever."""

    def script(connection: Connection) -> None:
        request(connection)
        connection.say(answer[:at_once])
        for octet in itertools.chain(answer[at_once:], itertools.repeat(32)):
            connection.say(bytes([octet]))
            time.sleep(0.05)

    return script


@pytest.mark.parametrize(
    ("answer", "at_once"),
    [
        (ANSWER, 0),
        (ANSWER, ANSWER.index(b"Content")),
        (ANSWER.replace(b" 40", b" 4000"), ANSWER.index(b"{")),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", 47),
    ],
    ids=["status line", "headers", "body", "continue", "chunk"],
)
def test_an_answer_that_drips_ends_at_the_deadline(provider_of, answer: bytes, at_once: int) -> None:
    """Every read succeeds in time; the exchange as a whole does not, and the connection is not used again."""
    with RawServer(dripping(answer, at_once), answering(200, {"messages": [{"id": "wamid.2"}]})) as server:
        provider = provider_of(server, exchange_seconds=0.6)
        began = time.monotonic()
        with pytest.raises(Unconfirmed, match=r"the exchange took longer than 0\.6 seconds in all"):
            provider.send(MESSAGE)
        assert time.monotonic() - began < 10.0
        assert provider.send(MESSAGE) == Accepted(message_id="wamid.2")


def test_an_answer_without_an_end_is_cut_off_by_its_size(provider_of) -> None:
    """A body of gigabytes is not read to its end."""

    def flood(connection: Connection) -> None:
        request(connection)
        connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            connection.say(b"x" * 1_000_000)

    with RawServer(flood) as server, pytest.raises(Unconfirmed, match="the answer is longer than 1048576 octets"):
        provider_of(server).send(MESSAGE)


def test_a_request_that_is_not_read_ends_at_the_deadline(provider_of) -> None:
    """A server that reads a few octets at a time: nothing was handed over."""
    message = WhatsAppMessage(MESSAGE.to, {"text": "x" * 20_000_000})

    def sip(connection: Connection) -> None:
        while connection.sock.recv(1000):
            time.sleep(0.05)

    with RawServer(sip) as server, pytest.raises(RetryLater, match="not handed over: the exchange took longer"):
        provider_of(server, exchange_seconds=0.6).send(message)
