"""Calls through Twilio: what is sent, what the answers mean, and how the worker asks whether a call was placed."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from raw_server import Connection, RawServer

from sandbox.accounts import TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, TWILIO_NUMBER
from sandbox.world import World
from worker.content.calls import call_form
from worker.errors import (
    AccountRejected,
    CountryRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TooLate,
    TransportMissing,
    Unconfirmed,
)
from worker.providers.handover import handed_over_while
from worker.providers.http import HttpPool
from worker.providers.twilio import INDIAN_ADVICE, PlacedCall, TwilioProvider

ACCOUNT = "AC" + "0f" * 16
TOKEN = "s3cret-token"
BASIC = "QUMwZjBmMGYwZjBmMGYwZjBmMGYwZjBmMGYwZjBmMGYwZjpzM2NyZXQtdG9rZW4="  # ACCOUNT:TOKEN
CALLS = f"/2010-04-01/Accounts/{ACCOUNT}/Calls"
FORM = [("To", "+919800000001"), ("From", "+91 80"), ("StatusCallbackEvent", "a"), ("StatusCallbackEvent", "b&c=é")]
NUMBERS = ("+919800000001", "+918047112233")
NOW = datetime(2026, 3, 6, 12, tzinfo=UTC)
Script = Callable[[Connection], None]
Make = Callable[..., TwilioProvider]


def sid(number: int) -> str:
    return f"CA{number:032x}"


def request(connection: Connection) -> tuple[str, bytes]:
    """Head and body of one request."""
    head = connection.until(b"\r\n\r\n").decode("ascii")
    lengths = [int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    return head, connection.exactly(lengths[0] if lengths else 0)


def answer(connection: Connection, status: int, body: Any, *headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", f"Content-Length: {len(content)}", *headers, "", ""]
    connection.say("\r\n".join(lines).encode() + content)


def answering(status: int, body: Any, *headers: str) -> Script:
    """A server that gives every request on every connection this answer."""

    def script(connection: Connection) -> None:
        while True:
            request(connection)
            answer(connection, status, body, *headers)

    return script


def answering_each(targets: list[str], *bodies: Any) -> Script:
    """A server that answers one request after the other, on one connection, and notes what was asked for."""

    def script(connection: Connection) -> None:
        for body in bodies:
            targets.append(request(connection)[0].split(" ")[1])
            answer(connection, 200, body)
        connection.hang()

    return script


def listed(number: int, made_at: Any = NOW, **fields: Any) -> dict[str, Any]:
    """A call in a list; ``made_at``: a datetime, or a value in its place."""
    at = format_datetime(made_at) if isinstance(made_at, datetime) else made_at
    return {"sid": sid(number), "status": "queued", "date_created": at, "start_time": None} | fields


def page(*calls: Any, following: Any = None) -> dict[str, Any]:
    return {"calls": list(calls), "next_page_uri": following}


@pytest.fixture
def provider_of() -> Iterator[Make]:
    pools: list[HttpPool] = []

    def make(server: RawServer, **options: Any) -> TwilioProvider:
        pools.append(HttpPool(4, **options))
        return TwilioProvider(f"http://127.0.0.1:{server.port}/", ACCOUNT, TOKEN, pools[-1])

    yield make
    for pool in pools:
        pool.close()


class TestPlace:
    def test_a_call_is_posted_as_a_form_on_one_kept_connection(self, provider_of: Make) -> None:
        seen: list[tuple[str, bytes]] = []

        def script(connection: Connection) -> None:
            for number in range(2):
                seen.append(request(connection))
                answer(connection, 201, {"sid": sid(number), "status": "queued"})
            connection.hang()

        with RawServer(script) as server:
            provider = provider_of(server)
            assert [provider.place(FORM) for _ in range(2)] == [PlacedCall(sid(n), "queued") for n in range(2)]
            port = server.port
        assert server.connections == 1
        head, body = seen[0]
        first, *headers = head.removesuffix("\r\n\r\n").split("\r\n")
        assert first == f"POST {CALLS}.json HTTP/1.1"
        assert set(headers) == {
            f"Host: 127.0.0.1:{port}",
            f"Authorization: Basic {BASIC}",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(body)}",
            "Accept-Encoding: identity",
            next(line for line in headers if line.startswith("User-Agent: ")),
        }
        assert body == (b"To=%2B919800000001&From=%2B91+80&StatusCallbackEvent=a&StatusCallbackEvent=b%26c%3D%C3%A9")

    @pytest.mark.parametrize(
        ("code", "status", "kind"),
        [
            *[(code, 400, RecipientRefused) for code in (21211, 21214, 21216, 21217)],
            (21610, 400, RecipientOptedOut),
            *[(code, 400, AccountRejected) for code in (20003, 21205, 21210, 21212, 21213, 21219, 21606)],
            *[(code, 400, CountryRejected) for code in (13227, 21215, 21408, 32205)],
            *[(code, 400, RetryLater) for code in (10004, 22005)],
            (20429, 429, RetryLater),
            # the code has priority over the status
            (20429, 400, RetryLater),
            (21211, 404, RecipientRefused),
            (20003, 403, AccountRejected),
            (21215, 403, CountryRejected),
            (10004, 429, RetryLater),
            # for unknown codes the status decides
            (99999, 400, RecipientDeferred),
            (99999, 409, RecipientDeferred),
            (99999, 401, AccountRejected),
            (99999, 403, AccountRejected),
            (99999, 404, AccountRejected),
            (99999, 429, RetryLater),
            (99999, 500, RetryLater),
            (99999, 503, RetryLater),
        ],
    )
    def test_every_row_of_the_table(self, provider_of: Make, code: int, status: int, kind: type[Exception]) -> None:
        script = answering(status, {"code": code, "message": "the\ntext", "status": status}, "Retry-After: 7")
        with RawServer(script) as server, pytest.raises(kind) as caught:
            provider_of(server).place(FORM)
        assert type(caught.value) is kind
        assert str(caught.value) == f"Twilio {code}: the text"
        assert getattr(caught.value, "delay_seconds", 7.0) == 7.0

    @pytest.mark.parametrize(
        ("code", "status", "advice"),
        [
            *[(code, 400, "Geo permissions") for code in (13227, 21215, 21408, 32205)],
            (10004, 429, "limit of calls at once"),
            (21210, 400, "verify the tenant's twilioPhoneNumber"),
            (21212, 400, "correct the tenant's twilioPhoneNumber"),
            (21219, 400, "upgrade the Twilio account"),
            (22005, 429, "lower TWILIO_RATE"),
            *[(code, 400, "") for code in (20003, 20429, 21211, 21216, 21610, 99999)],
        ],
    )
    def test_what_to_change(self, provider_of: Make, code: int, status: int, advice: str) -> None:
        script = answering(status, {"code": code, "message": "no"})
        form = [("To", "+918047112233"), ("From", "+12125550100")]
        with RawServer(script) as server, pytest.raises(SendError) as caught:
            provider_of(server).place(form)
        assert advice in caught.value.advice
        assert bool(advice) is bool(caught.value.advice)

    @pytest.mark.parametrize(
        ("code", "status", "is_told"),
        [
            *[(code, 400, True) for code in (13227, 21210, 21212, 21214, 21215, 21216, 21408, 32205, 99999)],
            (99999, 403, True),
            *[(code, 400, False) for code in (20003, 21211, 21217, 21219, 21610, 10004, 20429, 22005)],
            *[(99999, status, False) for status in (401, 404, 429, 500, 503)],
        ],
    )
    @pytest.mark.parametrize("numbers", [("+919800000001", "+918047112233"), ("+12125550101", "+918047112233"),
                                         ("+919800000001", "+12125550100")])  # fmt: skip
    def test_an_indian_number_that_calls_an_indian_number(
        self, provider_of: Make, code: int, status: int, is_told: bool, numbers: tuple[str, str]
    ) -> None:
        """Twilio carries no such calls, and does not say so: we do, where its refusal may mean that."""
        form = list(zip(("To", "From"), numbers, strict=True))
        with (
            RawServer(answering(status, {"code": code, "message": "no"})) as server,
            pytest.raises(SendError) as caught,
        ):
            provider_of(server).place(form)
        is_indian = all(each.startswith("+91") for each in numbers)
        assert (caught.value.advice == INDIAN_ADVICE) is (is_told and is_indian)

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code":"21211"}', b'{"message":5}', b"\xff"])
    @pytest.mark.parametrize(
        ("status", "kind"), [(400, RecipientDeferred), (401, AccountRejected), (302, RetryLater), (502, RetryLater)]
    )
    def test_an_error_without_a_readable_body_goes_by_its_status(self, provider_of: Make, body, status, kind) -> None:
        with (
            RawServer(answering(status, body)) as server,
            pytest.raises(kind, match=f"^Twilio HTTP {status}$") as caught,
        ):
            provider_of(server).place(FORM)
        assert type(caught.value) is kind

    @pytest.mark.parametrize("body", [b"", b"<html>", {}, {"sid": 7}, {"sid": "CA1"}, {"sid": "../x"}, {"sid": None}])
    def test_success_without_a_sid_is_unconfirmed(self, provider_of: Make, body: Any) -> None:
        with RawServer(answering(201, body)) as server, pytest.raises(Unconfirmed, match="without a call sid"):
            provider_of(server).place(FORM)

    @pytest.mark.parametrize("status", [None, 5, "", "a\nb", "x" * 99])
    def test_a_call_without_a_readable_status_is_queued(self, provider_of: Make, status: Any) -> None:
        with RawServer(answering(201, {"sid": sid(1), "status": status})) as server:
            assert provider_of(server).place(FORM) == PlacedCall(sid(1), "queued")

    def test_a_redirect_is_not_followed(self, provider_of: Make) -> None:
        with RawServer(answering(201, {"sid": sid(1)})) as other:
            location = f"Location: http://127.0.0.1:{other.port}/"
            with RawServer(answering(307, b"", location)) as server:
                provider = provider_of(server)
                for ask in (lambda: provider.place(FORM), lambda: provider.status(sid(1))):
                    with pytest.raises(RetryLater, match="307"):
                        ask()
        assert other.connections == 0

    @pytest.mark.parametrize("parts", [0, 1], ids=["before the body", "within it"])
    def test_a_claim_that_was_lost_on_the_way(self, parts: int, provider_of: Make) -> None:
        """The process was frozen while it connected or wrote: the server never gets the whole request."""
        seen: list[bytes] = []
        looks = iter([True] * parts)

        def script(connection: Connection) -> None:
            connection.until(b"\r\n\r\n")
            while octets := connection.sock.recv(65536):
                seen.append(octets)

        with RawServer(script) as server:
            provider = provider_of(server)
            with pytest.raises(TooLate), handed_over_while(lambda: next(looks, False)):
                provider.place([*FORM, ("Twiml", "x" * 400_000)])
            assert server.closed.acquire(timeout=20)
        assert len(b"".join(seen)) < 400_000 * bool(parts) + 1

    @pytest.mark.parametrize("status", [100, 102, 103, 199])
    @pytest.mark.parametrize("times", [1, 30])
    def test_what_a_server_says_before_its_answer(self, times: int, status: int, provider_of: Make) -> None:
        """It is no answer: the call is placed, once."""

        def script(connection: Connection) -> None:
            request(connection)
            connection.say(f"HTTP/1.1 {status} Status\r\nLink: </style.css>\r\n\r\n".encode() * times)
            answer(connection, 201, {"sid": sid(1), "status": "queued"})
            connection.hang()

        with RawServer(script) as server:
            assert provider_of(server).place(FORM) == PlacedCall(sid(1), "queued")
        assert server.connections == 1

    def test_what_is_no_answer_to_a_request_is_unconfirmed(self, provider_of: Make) -> None:
        """The server changes to another protocol, and may have placed the call."""
        with RawServer(answering(101, b"")) as server, pytest.raises(Unconfirmed, match="answered 101"):
            provider_of(server).place(FORM)

    def test_nobody_listening_is_retry_later(self, provider_of: Make) -> None:
        with RawServer(Connection.hang) as server:
            provider = provider_of(server)
        with pytest.raises(RetryLater, match="not handed over"):
            provider.place(FORM)

    def test_a_request_that_was_not_taken_whole_is_retry_later(self, provider_of: Make) -> None:
        def script(connection: Connection) -> None:
            connection.until(b"\r\n\r\n")
            connection.exactly(1000)
            connection.reset()

        with RawServer(script) as server, pytest.raises(RetryLater, match="not handed over"):
            provider_of(server).place([("Url", "x" * 30_000_000)])

    @pytest.mark.parametrize(
        "end", [lambda _: None, Connection.reset, Connection.hang], ids=["close", "reset", "hang"]
    )
    def test_no_answer_to_a_whole_request_is_unconfirmed_and_not_repeated(self, provider_of: Make, end) -> None:
        def script(connection: Connection) -> None:
            request(connection)
            end(connection)

        with RawServer(script) as server, pytest.raises(Unconfirmed):
            provider_of(server, read_timeout_seconds=0.3).place(FORM)
        assert server.connections == 1


class TestPlacedSince:
    def test_calls_between_two_numbers_are_asked_for_without_a_time(self, provider_of: Make) -> None:
        targets: list[str] = []
        with RawServer(answering_each(targets, page(listed(2), listed(1, status="completed")))) as server:
            found = provider_of(server).placed_since(*NUMBERS, NOW)
        assert found == [PlacedCall(sid(2), "queued"), PlacedCall(sid(1), "completed")]
        assert targets == [f"{CALLS}.json?To=%2B919800000001&From=%2B918047112233&PageSize=100"]

    @pytest.mark.parametrize(
        ("made_at", "counts"),
        [
            (NOW, True),
            (NOW + timedelta(hours=1), True),
            (NOW - timedelta(seconds=1), False),
            ("Fri, 06 Mar 2026 17:30:00 +0530", True),
            ("Fri, 06 Mar 2026 17:29:59 +0530", False),
            ("Fri, 06 Mar 2026 12:00:00 -0000", True),
            ("Fri, 06 Mar 2026 11:59:59", False),
            # a date that cannot be read is never taken as "no call"
            *[(unreadable, True) for unreadable in (None, "", 5, "yesterday", "2026-03-01T00:00:00Z", "9" * 99, {})],
            ("Fri, 99 Mar 2020 12:00:00 +0000", True),
        ],
    )
    def test_the_date_of_a_call_decides(self, provider_of: Make, made_at: Any, counts: bool) -> None:
        with RawServer(answering(200, page(listed(1, made_at)))) as server:
            found = provider_of(server).placed_since(*NUMBERS, NOW)
        assert found == ([PlacedCall(sid(1), "queued")] if counts else [])

    def test_a_call_made_in_the_second_of_since_counts(self, provider_of: Make) -> None:
        """Twilio names no fractions: a call at 12:00:00.9 is listed as one at 12:00:00."""
        with RawServer(answering(200, page(listed(1, NOW)))) as server:
            assert provider_of(server).placed_since(*NUMBERS, NOW + timedelta(seconds=0.8))
            assert not provider_of(server).placed_since(*NUMBERS, NOW + timedelta(seconds=1))

    def test_pages_are_followed_until_one_ends_before_since(self, provider_of: Make) -> None:
        targets: list[str] = []
        old = NOW - timedelta(days=1)
        pages = [
            page(listed(4), listed(3), following=f"{CALLS}.json?Page=1&PageToken=PAx"),
            page(following=f"/2010-04-01/Accounts/AC{'0F' * 16}/Calls.json?Page=2"),
            page(listed(2), listed(1, old), following=f"{CALLS}.json?Page=3"),
        ]
        with RawServer(answering_each(targets, *pages)) as server:
            found = provider_of(server).placed_since(*NUMBERS, NOW)
        assert [call.sid for call in found] == [sid(4), sid(3), sid(2)]
        assert targets[1:] == [f"{CALLS}.json?Page=1&PageToken=PAx", f"{CALLS}.json?Page=2"]

    def test_an_old_call_in_front_of_a_new_one_hides_nothing(self, provider_of: Make) -> None:
        old = NOW - timedelta(days=1)
        with RawServer(answering(200, page(listed(3), listed(2, old), listed(1)))) as server:
            assert [call.sid for call in provider_of(server).placed_since(*NUMBERS, NOW)] == [sid(3), sid(1)]

    def test_more_than_20_pages_cannot_be_told(self, provider_of: Make) -> None:
        targets: list[str] = []
        endless = [page(listed(1), following=f"{CALLS}.json?Page=1")] * 30
        with RawServer(answering_each(targets, *endless)) as server, pytest.raises(RetryLater, match="more than 20"):
            provider_of(server).placed_since(*NUMBERS, NOW)
        assert len(targets) == 20

    @pytest.mark.parametrize(
        "following",
        [
            "http://127.0.0.1:{port}" + CALLS + ".json?Page=1",
            "//127.0.0.1:{port}" + CALLS + ".json?Page=1",
            "@127.0.0.1:{port}" + CALLS + ".json?Page=1",
            f"/2010-04-01/Accounts/AC{'1' * 32}/Calls.json?Page=1",
            f"{CALLS}.json/../../x?Page=1",
            f"{CALLS}.json",
            f"{CALLS}.json?",
            f"{CALLS}.json?a b",
            f"{CALLS}.json?a\r\nX-Y: z",
            f"{CALLS}.json?a#b",
            f"{CALLS}.json?é",
            f"{CALLS}.json?\0",
            "/",
            5,
            False,
            ["x"],
            {},
        ],
    )
    def test_a_next_page_elsewhere_is_refused(self, provider_of: Make, following: Any) -> None:
        targets: list[str] = []
        with RawServer(answering(200, page())) as other:
            if isinstance(following, str):
                following = following.replace("{port}", str(other.port))
            pages = [page(listed(1), following=following), page()]
            with (
                RawServer(answering_each(targets, *pages)) as server,
                pytest.raises(RetryLater, match="continues at another URL"),
            ):
                provider_of(server).placed_since(*NUMBERS, NOW)
        assert len(targets) == 1
        assert other.connections == 0

    @pytest.mark.parametrize(
        "body",
        [
            *[b"", b"<html>", b"[]", {}, {"calls": None}, {"calls": {"sid": sid(1)}}],
            *[page(call) for call in (None, "x", {}, listed(1, sid=None), listed(1, sid="CA1"))],
        ],
    )
    def test_an_answer_that_cannot_be_read_never_says_that_there_is_none(self, provider_of: Make, body: Any) -> None:
        with RawServer(answering(200, body)) as server, pytest.raises(RetryLater):
            provider_of(server).placed_since(*NUMBERS, NOW)

    def test_an_old_call_that_cannot_be_read_does_not_matter(self, provider_of: Make) -> None:
        with RawServer(answering(200, page(listed(1, NOW - timedelta(days=1), sid=None)))) as server:
            assert provider_of(server).placed_since(*NUMBERS, NOW) == []

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
    @given(
        st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,4} [A-Z][a-z]{2} \d{1,12} \d+:\d+:\d+ [+-]\d{4}")
    )
    @example("Fri, 06 Mar 99999999999999999999 12:00:00 +0000")
    @example("Fri, 06 Mar 2026 12:00:00 +9999")
    def test_no_date_is_too_strange(self, provider_of: Make, made_at: str) -> None:
        with RawServer(answering(200, page(listed(1, made_at)))) as server:
            assert len(provider_of(server).placed_since(*NUMBERS, NOW)) in (0, 1)


class TestStatus:
    def test_a_call_is_fetched_by_its_sid(self, provider_of: Make) -> None:
        targets: list[str] = []
        with RawServer(answering_each(targets, {"sid": sid(1), "status": "in-progress"})) as server:
            assert provider_of(server).status(sid(1)) == "in-progress"
        assert targets == [f"{CALLS}/{sid(1)}.json"]

    def test_a_call_that_twilio_does_not_know(self, provider_of: Make) -> None:
        with RawServer(answering(404, {"code": 20404})) as server:
            assert provider_of(server).status(sid(1)) is None

    @pytest.mark.parametrize("malformed", ["", "CA1", "CA" + "g" * 32, f"{sid(1)}\n", "../" + sid(1), sid(1) + "?x"])
    def test_what_is_no_sid_is_not_asked_for(self, provider_of: Make, malformed: str) -> None:
        with RawServer(answering(200, {"status": "queued"})) as server:
            assert provider_of(server).status(malformed) is None
        assert server.connections == 0

    @pytest.mark.parametrize("body", [b"", b"<html>", {}, {"status": None}, {"status": "a b"}])
    def test_an_answer_without_a_status_is_retry_later(self, provider_of: Make, body: Any) -> None:
        with RawServer(answering(200, body)) as server, pytest.raises(RetryLater):
            provider_of(server).status(sid(1))


QUESTIONS = [lambda provider: provider.placed_since(*NUMBERS, NOW), lambda provider: provider.status(sid(1))]


@pytest.mark.parametrize("ask", QUESTIONS, ids=["list", "fetch"])
class TestQuestions:
    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (401, 99999, AccountRejected),
            (403, 20003, AccountRejected),
            (403, 99999, RetryLater),
            (400, 99999, RetryLater),
            (429, 20429, RetryLater),
            (500, 99999, RetryLater),
            (302, 99999, RetryLater),
        ],
    )
    def test_what_refusals_mean(self, provider_of: Make, ask, status: int, code: int, kind: type[Exception]) -> None:
        script = answering(status, {"code": code, "message": "no"}, "Retry-After: 7")
        with RawServer(script) as server, pytest.raises(kind) as caught:
            ask(provider_of(server))
        assert type(caught.value) is kind
        assert str(caught.value) == f"Twilio {code}: no"
        assert getattr(caught.value, "delay_seconds", 7.0) == 7.0

    @pytest.mark.parametrize(
        "end", [lambda _: None, Connection.reset, Connection.hang], ids=["close", "reset", "hang"]
    )
    def test_no_answer_is_retry_later(self, provider_of: Make, ask, end) -> None:
        def script(connection: Connection) -> None:
            request(connection)
            end(connection)

        with RawServer(script) as server, pytest.raises(RetryLater, match="no answer came"):
            ask(provider_of(server, read_timeout_seconds=0.3))

    def test_the_account_is_shown(self, provider_of: Make, ask) -> None:
        heads: list[str] = []

        def script(connection: Connection) -> None:
            heads.append(request(connection)[0])
            answer(connection, 503, b"")

        with RawServer(script) as server, pytest.raises(RetryLater):
            ask(provider_of(server))
        assert heads[0].startswith("GET ")
        assert f"\r\nAuthorization: Basic {BASIC}\r\n" in heads[0]


class TestSecrets:
    @pytest.mark.parametrize(
        "account", [None, "", "AC1", "AC" + "g" * 32, ACCOUNT + "\n", ACCOUNT + "/..", "ac" + "0" * 32]
    )
    def test_a_malformed_account_is_missing(self, account: str | None) -> None:
        with pytest.raises(TransportMissing, match="twilioAccountSid"):
            TwilioProvider("http://127.0.0.1:1", account, TOKEN, HttpPool())

    @pytest.mark.parametrize("token", [None, "", " ", f"{TOKEN}\r\nX: y", f"{TOKEN} ", f"{TOKEN}\0", f"{TOKEN}é"])
    def test_a_token_that_can_be_none_is_missing_and_not_shown(self, token: str | None) -> None:
        with pytest.raises(TransportMissing, match="twilioAuthToken") as caught:
            TwilioProvider("http://127.0.0.1:1", ACCOUNT, token, HttpPool())
        assert TOKEN not in str(caught.value)

    @pytest.mark.parametrize("status", [400, 401, 503])
    def test_a_token_that_an_answer_repeats_is_masked(self, provider_of: Make, status: int) -> None:
        body = {"code": 99999, "message": f"bad {TOKEN} or {BASIC}", "calls": [], "next_page_uri": f"/{TOKEN}?x"}
        with RawServer(answering(status, body)) as server:
            provider = provider_of(server)
            for ask in (lambda each: each.place(FORM), *QUESTIONS):
                with pytest.raises((AccountRejected, RetryLater)) as caught:
                    ask(provider)
                assert str(caught.value) == "Twilio 99999: bad *** or ***"
        with RawServer(answering(200, body)) as server, pytest.raises(RetryLater) as elsewhere:
            provider_of(server).placed_since(*NUMBERS, NOW)
        assert str(elsewhere.value).endswith("at another URL: /***")
        assert repr(provider) == f"TwilioProvider(account {ACCOUNT})"


class TestStandIn:
    """With the stand-in that quickstart and the tests of whole programs use."""

    @pytest.fixture
    def twilio(self, world: World) -> Iterator[TwilioProvider]:
        pool = HttpPool(2)
        yield TwilioProvider(world.twilio_url, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, pool)
        pool.close()

    @staticmethod
    def form(to: str = NUMBERS[0]) -> list[tuple[str, str]]:
        usual = {"app_url": "https://crm.example.in", "lead_id": "l", "contact_id": None, "call_type": "ai"}
        recording = {"tenant_recording": True, "script_recording": None}
        return call_form(to=to, from_=TWILIO_NUMBER, timeout_seconds=300, **usual, **recording)

    def test_a_call_is_placed_found_and_fetched(self, twilio: TwilioProvider, world: World) -> None:
        before = datetime.now(UTC)
        call = twilio.place(self.form())
        [received] = world.deliveries("twilio", NUMBERS[0])
        assert (received.account, received.external_id) == (TWILIO_ACCOUNT_SID, call.sid)
        assert [tuple(pair) for pair in json.loads(received.content)] == self.form()
        assert twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, before) == [call] == [PlacedCall(call.sid, "queued")]
        assert twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, before + timedelta(minutes=1)) == []
        assert twilio.placed_since("+919800000002", TWILIO_NUMBER, before) == []
        world.set_call(call.sid, "completed")
        assert twilio.status(call.sid) == "completed"
        world.forget_call(call.sid)
        assert twilio.status(call.sid) is None

    def test_a_call_whose_answer_was_lost_is_found(self, twilio: TwilioProvider, world: World) -> None:
        before = datetime.now(UTC)
        world.script("twilio", action="cut-after", times=1)
        with pytest.raises(Unconfirmed):
            twilio.place(self.form())
        [received] = world.deliveries("twilio")
        assert twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, before) == [PlacedCall(received.external_id, "queued")]

    def test_a_call_that_never_arrived_is_not_found(self, twilio: TwilioProvider, world: World) -> None:
        world.script("twilio", action="cut-before", times=1)
        with pytest.raises(Unconfirmed):
            twilio.place(self.form())
        assert twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, datetime.now(UTC) - timedelta(hours=1)) == []

    def test_more_calls_than_a_page_holds_are_found(self, twilio: TwilioProvider) -> None:
        before = datetime.now(UTC)
        placed = [twilio.place(self.form()) for _ in range(101)]
        assert twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, before) == placed[::-1]

    def test_a_list_that_fails_says_nothing(self, twilio: TwilioProvider, world: World) -> None:
        world.script("twilio", stage="list", status=503, retry_after="9", times=1)
        with pytest.raises(RetryLater) as caught:
            twilio.placed_since(NUMBERS[0], TWILIO_NUMBER, datetime.now(UTC))
        assert caught.value.delay_seconds == 9.0

    def test_a_revoked_token_stops_the_account(self, twilio: TwilioProvider, world: World) -> None:
        world.revoke(TWILIO_AUTH_TOKEN)
        for ask in (lambda each: each.place(self.form()), *QUESTIONS):
            with pytest.raises(AccountRejected, match="20003"):
                ask(twilio)
