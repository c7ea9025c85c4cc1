"""E-mail through Gmail: the contract's table of errors, the search for unconfirmed messages, the access token."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from raw_server import Connection, RawServer

from worker.errors import AccountRejected, CampaignRejected, RecipientRefused, RetryLater, Unconfirmed
from worker.messages import Accepted, Email
from worker.providers.gmail import GmailProvider
from worker.providers.google_token import GoogleToken, InvalidGrant
from worker.providers.http import HttpPool

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAIL = Email("a@shop.example", "b@customer.example", "<1@shop.example>", b"Subject: Hi\r\n\r\n?>~\xff\r\n")
DAY = 24 * 3600.0
SECRETS = ("the-client-secret", "the-refresh-token", "old-token", "new-token")
Answer = tuple[int, Any]


class Google:
    """Gmail and the token endpoint in one server; a test sets what they answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, Any]] = []  # method, target, bearer, body
        self.token_requests: list[dict[str, list[str]]] = []
        self.mail: Callable[[str], Answer] = lambda bearer: (200, {"id": "g1", "threadId": "t1"})
        self.token: Callable[[], Answer] = lambda: (200, {"access_token": "new-token", "expires_in": 3599})

    def __call__(self, connection: Connection) -> None:
        while True:
            head = connection.until(b"\r\n\r\n").decode()
            method, target, _ = head.split("\r\n")[0].split(" ")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            body = connection.exactly(int(headers.get("content-length", 0)))
            if target == "/token":
                self.token_requests.append(parse_qs(body.decode()))
                status, answer = self.token()
            else:
                bearer = headers["authorization"].removeprefix("bearer ")
                self.requests.append((method, target, bearer, json.loads(body) if body else None))
                status, answer = self.mail(bearer)
            if status == 0:
                return
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            connection.say(f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)


class World:
    """A running Google and a provider that uses it; the clock is the test's."""

    def __init__(self, google: Google, port: int, pool: HttpPool, expires_at: datetime | None) -> None:
        self.google = google
        self.now = NOW
        secrets = ("the-client-id", "the-client-secret", "the-refresh-token", "old-token")
        self.token = GoogleToken(f"http://127.0.0.1:{port}/token", *secrets, expires_at, pool, clock=lambda: self.now)
        self.provider = GmailProvider(f"http://127.0.0.1:{port}/", self.token, pool, clock=lambda: self.now)


@pytest.fixture
def world_of() -> Iterator[Callable[..., World]]:
    google = Google()
    pool = HttpPool(8, read_timeout_seconds=5)
    with RawServer(google) as server:
        yield lambda expires_at=NOW + timedelta(hours=1): World(google, server.port, pool, expires_at)
        pool.close()


def error(status: int, reason: str, message: str = "said") -> Answer:
    return status, {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}


def test_a_message_is_posted_as_base64url_of_its_octets(world_of) -> None:
    world = world_of()
    assert world.provider.send(MAIL) == Accepted("<1@shop.example>", "g1", "t1")
    [(method, target, bearer, body)] = world.google.requests
    assert (method, target, bearer) == ("POST", "/gmail/v1/users/me/messages/send", "old-token")
    assert list(body) == ["raw"]
    assert not set("+/") & set(body["raw"])
    assert base64.urlsafe_b64decode(body["raw"]) == MAIL.content
    assert world.google.token_requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "delay"),
    [
        (error(429, "rateLimitExceeded"), RetryLater, None),
        (error(403, "rateLimitExceeded"), RetryLater, None),
        (error(403, "userRateLimitExceeded"), RetryLater, None),
        (error(403, "dailyLimitExceeded"), RetryLater, DAY),
        (error(429, "dailyLimitExceeded"), RetryLater, DAY),
        ((403, {"error": {"details": [{"reason": "RATE_LIMIT_EXCEEDED"}]}}), RetryLater, None),
        (error(429, "x", "Limit exceeded.  Retry after 2026-03-01T12:10:00.000Z"), RetryLater, 600.0),
        (error(429, "x", "Retry after 2026-99-01T12:10:00Z"), RetryLater, None),
        (error(500, "backendError"), RetryLater, None),
        ((503, b"<html>"), RetryLater, None),
        ((302, b""), RetryLater, None),
        (error(400, "invalidArgument", "Invalid To header"), RecipientRefused, None),
        (error(400, "invalidArgument", "Recipient address required"), RecipientRefused, None),
        (error(400, "invalidArgument", "Invalid From header"), CampaignRejected, None),
        (error(413, "uploadTooLarge"), CampaignRejected, None),
        (error(403, "insufficientPermissions"), AccountRejected, None),
        ((200, b"<html>"), Unconfirmed, None),
        ((200, {"threadId": "t1"}), Unconfirmed, None),
        ((0, None), Unconfirmed, None),
    ],
)
def test_every_row_of_the_table(world_of, answer: Answer, kind: type[Exception], delay: float | None) -> None:
    world = world_of()
    world.google.mail = lambda bearer: answer
    with pytest.raises(kind) as caught:
        world.provider.send(MAIL)
    assert type(caught.value) is kind
    assert getattr(caught.value, "delay_seconds", None) == delay
    assert len(world.google.requests) == 1


def test_a_message_is_found_by_its_message_id(world_of) -> None:
    world = world_of()
    world.google.mail = lambda bearer: (200, {"messages": [{"id": "g1", "threadId": "t1"}], "resultSizeEstimate": 1})
    assert world.provider.find("<1+a&b@shop.example>") == Accepted("<1+a&b@shop.example>", "g1", "t1")
    [(method, target, _, _)] = world.google.requests
    assert (method, urlsplit(target).path) == ("GET", "/gmail/v1/users/me/messages")
    assert parse_qs(urlsplit(target).query) == {"q": ["rfc822msgid:<1+a&b@shop.example>"]}
    world.google.mail = lambda bearer: (200, {"resultSizeEstimate": 0})
    assert world.provider.find("<1@shop.example>") is None


@pytest.mark.parametrize(
    "answer",
    [(200, b""), (200, b"<html>"), (200, {}), (200, {"messages": "x"}), (200, {"messages": [7]}), (500, b""), (0, 0)],
)
def test_a_search_without_a_clear_answer_never_says_that_nothing_was_sent(world_of, answer: Answer) -> None:
    world = world_of()
    world.google.mail = lambda bearer: answer
    with pytest.raises(RetryLater):
        world.provider.find("<1@shop.example>")


# The access token.


def only_new(bearer: str) -> Answer:
    return (200, {"id": "g1", "threadId": "t1"}) if bearer == "new-token" else error(401, "authError")


@pytest.mark.parametrize(
    ("expires_at", "refreshes"),
    [
        (NOW + timedelta(minutes=5, seconds=1), 0),
        (NOW + timedelta(minutes=5), 1),
        (NOW - timedelta(days=1), 1),
        (None, 1),
        ((NOW + timedelta(hours=1)).replace(tzinfo=None), 0),
    ],
)
def test_a_token_is_refreshed_5_minutes_before_it_expires(world_of, expires_at, refreshes: int) -> None:
    world = world_of(expires_at)
    world.provider.send(MAIL)
    world.provider.send(MAIL)
    assert len(world.google.token_requests) == refreshes
    bearers = [bearer for _, _, bearer, _ in world.google.requests]
    assert bearers == ["new-token" if refreshes else "old-token"] * 2
    if refreshes:
        assert world.google.token_requests[0] == {
            "grant_type": ["refresh_token"],
            "client_id": ["the-client-id"],
            "client_secret": ["the-client-secret"],
            "refresh_token": ["the-refresh-token"],
        }


def test_a_refreshed_token_is_there_to_be_saved_once(world_of) -> None:
    world = world_of(None)
    assert world.token.take_changed() is None
    world.provider.send(MAIL)
    changed = world.token.take_changed()
    assert changed is not None
    assert (changed.access_token, changed.expires_at) == ("new-token", NOW + timedelta(seconds=3599))
    assert world.token.take_changed() is None
    assert "new-token" not in repr(changed)


def test_401_is_answered_by_one_refresh_and_one_repetition(world_of) -> None:
    world = world_of()
    world.google.mail = only_new
    assert world.provider.send(MAIL).gmail_message_id == "g1"
    assert len(world.google.token_requests) == 1
    world.google.mail = lambda bearer: error(401, "authError")
    with pytest.raises(AccountRejected, match="Gmail 401"):
        world.provider.send(MAIL)
    assert len(world.google.token_requests) == 2


def test_threads_that_meet_401_at_once_refresh_once(world_of) -> None:
    world = world_of()
    together = threading.Barrier(8)

    def mail(bearer: str) -> Answer:
        if bearer == "old-token":
            together.wait(10)
        return only_new(bearer)

    world.google.mail = mail
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: world.provider.send(MAIL), range(8)))
    assert [result.gmail_message_id for result in results] == ["g1"] * 8
    assert len(world.google.token_requests) == 1


def test_invalid_grant_is_told_apart_and_not_asked_again(world_of) -> None:
    world = world_of(None)
    world.google.token = lambda: (400, {"error": "invalid_grant", "error_description": "revoked: the-refresh-token"})
    for _ in range(2):
        with pytest.raises(InvalidGrant, match=r"invalid_grant: revoked: \*\*\*"):
            world.provider.send(MAIL)
    assert len(world.google.token_requests) == 1
    assert world.google.requests == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((401, {"error": "invalid_client"}), AccountRejected),
        ((400, b"<html>"), AccountRejected),
        ((429, b""), RetryLater),
        ((503, b""), RetryLater),
        ((200, b"<html>"), RetryLater),
        ((200, {"access_token": ""}), RetryLater),
        ((0, None), RetryLater),
    ],
)
def test_a_token_endpoint_that_fails(world_of, answer: Answer, kind: type[Exception]) -> None:
    world = world_of(None)
    world.google.token = lambda: answer
    with pytest.raises(kind) as caught:
        world.provider.send(MAIL)
    assert type(caught.value) is kind


def test_a_token_that_is_still_good_is_used_while_the_endpoint_fails(world_of) -> None:
    world = world_of(NOW + timedelta(minutes=2))
    world.google.token = lambda: (503, b"")
    world.provider.send(MAIL)
    world.provider.send(MAIL)
    assert len(world.google.token_requests) == 1  # asked again only after a pause
    world.now += timedelta(seconds=11)
    world.provider.send(MAIL)
    assert len(world.google.token_requests) == 2
    world.now += timedelta(minutes=2)
    with pytest.raises(RetryLater):
        world.provider.send(MAIL)


@pytest.mark.parametrize("seconds", [None, "3599", -1, 10**12])
def test_a_lifetime_that_cannot_be_is_taken_as_an_hour(world_of, seconds: object) -> None:
    world = world_of(None)
    world.google.token = lambda: (200, {"access_token": "new-token", "expires_in": seconds})
    world.provider.send(MAIL)
    assert world.token.take_changed().expires_at == NOW + timedelta(hours=1)


def test_no_secret_is_in_any_text(world_of) -> None:
    world = world_of()
    message = f"echo {' '.join(SECRETS)}"
    world.google.mail = lambda bearer: error(400, "x", message)
    world.google.token = lambda: (401, {"error": message})
    with pytest.raises(CampaignRejected) as refused:
        world.provider.send(MAIL)
    world.google.mail = lambda bearer: error(401, "x", message)
    with pytest.raises(AccountRejected) as rejected:
        world.provider.send(MAIL)
    texts = repr(refused.value) + repr(rejected.value) + repr(world.token) + repr(world.provider)
    assert not [secret for secret in SECRETS[:3] if secret in texts]
