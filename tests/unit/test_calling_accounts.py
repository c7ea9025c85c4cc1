"""A tenant's Twilio account: what its settings have to hold, and how long it is in backoff after which answer."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from sandbox import accounts as sandbox_accounts
from sandbox.redis import Redis
from worker.calling.accounts import CallingAccounts, CallSettings, TwilioAccount
from worker.errors import (
    AccountRejected,
    RecipientDeferred,
    RecipientRefused,
    RetryLater,
    TransportMissing,
    Unconfirmed,
)
from worker.runtime.redis_client import connect
from worker.runtime.settings import load

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://127.0.0.1:1/crm",
    "REDIS_URL": "redis://127.0.0.1:1",  # the test's own is used instead
    "APP_URL": "https://app.crm.example.in",
}
ROW: dict[str, Any] = {
    "tenant_id": "t1",
    "twilioAccountSid": sandbox_accounts.TWILIO_ACCOUNT_SID,
    "twilioAuthToken": sandbox_accounts.TWILIO_AUTH_TOKEN,
    "twilioPhoneNumber": "080 4711 2233",
    "callTimeout": None,
    "enableRecording": None,
    "enableBusinessHours": True,
    "businessHoursStart": "09:00",
    "businessHoursEnd": "18:00",
    "businessDays": None,
    "timezone": "UTC",
}


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def process(redis_url: str) -> Iterator[Callable[[Clock], CallingAccounts]]:
    """What another process has, too: all of them share the same Redis."""
    with ExitStack() as stack:

        def make(clock: Clock) -> CallingAccounts:
            client = stack.enter_context(connect(redis_url))
            made = CallingAccounts(load(ENVIRONMENT, "calls"), client, concurrency=1, monotonic=clock)
            return stack.enter_context(closing(made))

        yield make


@pytest.fixture
def calling(process: Callable[[Clock], CallingAccounts], clock: Clock) -> CallingAccounts:
    return process(clock)


def account(calling: CallingAccounts, **columns: Any) -> TwilioAccount:
    return calling.account(CallSettings.from_row(ROW | columns))


def backoff_seconds(calling: CallingAccounts, clock: Clock, of: TwilioAccount) -> float:
    """Moves the clock to the second in which the account may call again; returns how long that took."""
    began = clock.seconds
    while calling.is_in_backoff(of):
        clock.seconds += 1
    return clock.seconds - began


def test_settings_with_defaults(calling: CallingAccounts) -> None:
    made = account(calling)
    assert (made.tenant_id, made.from_number, made.timeout_seconds) == ("t1", "+918047112233", 300)
    assert made.recording


def test_the_token_is_not_shown(calling: CallingAccounts) -> None:
    """Neither by the settings nor by the account that is made of them."""
    settings = CallSettings.from_row(ROW)
    assert sandbox_accounts.TWILIO_AUTH_TOKEN not in f"{settings!r} {calling.account(settings)!r}"


@pytest.mark.parametrize("column", ["twilioAccountSid", "twilioAuthToken", "twilioPhoneNumber"])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_settings_without_an_account(column: str, value: str | None, calling: CallingAccounts) -> None:
    with pytest.raises(TransportMissing, match="Twilio is not configured: enter account SID"):
        account(calling, **{column: value})


def test_an_account_that_is_deferred_again_and_again(calling: CallingAccounts, clock: Clock) -> None:
    """Its backoff doubles from 15 seconds to 5 minutes; a call that Twilio takes resets it."""
    deferred = account(calling)
    waited = []
    for _ in range(7):
        calling.record_answer(deferred, RetryLater("Twilio 20429"))
        waited.append(backoff_seconds(calling, clock, deferred))
    assert waited == [15, 30, 60, 120, 240, 300, 300]
    calling.record_answer(deferred, None)
    calling.record_answer(deferred, RetryLater("Twilio 20429"))
    assert backoff_seconds(calling, clock, deferred) == 15


@pytest.mark.parametrize(("wish_seconds", "waited"), [(3.0, 15), (90.0, 90), (900.0, 900)])
def test_twilios_own_delay_counts_when_it_is_longer(
    wish_seconds: float, waited: float, calling: CallingAccounts, clock: Clock
) -> None:
    calling.record_answer(account(calling), RetryLater("Twilio 20429", wish_seconds))
    assert backoff_seconds(calling, clock, account(calling)) == waited


def test_refused_credentials(calling: CallingAccounts, clock: Clock) -> None:
    """Ten minutes, for exactly these settings: neither for corrected ones nor for another tenant's."""
    refused, corrected = account(calling), account(calling, twilioAuthToken="another")
    calling.record_answer(refused, AccountRejected("Twilio 20003"))
    assert not calling.is_in_backoff(corrected)
    assert backoff_seconds(calling, clock, refused) == 600


def test_deferred_is_the_account_whatever_its_token(calling: CallingAccounts) -> None:
    calling.record_answer(account(calling), RetryLater("Twilio 20429"))
    assert calling.is_in_backoff(account(calling, tenant_id="t2", twilioAuthToken="another"))
    assert not calling.is_in_backoff(account(calling, twilioAccountSid=f"AC{7:032x}"))


def test_other_processes_know(calling: CallingAccounts, process: Callable[[Clock], CallingAccounts]) -> None:
    """A deferred account gets no token there, and settings that were refused are known; others call on."""
    other, columns = process(Clock()), {"twilioAccountSid": f"AC{7:032x}"}
    calling.record_answer(account(calling), RetryLater("Twilio 20429", 90.0))
    granted, wait_seconds = account(other).pace.take(1)
    assert granted == 0
    assert 80 < wait_seconds <= 90
    assert not other.is_refused(account(other))
    calling.record_answer(account(calling, **columns), AccountRejected("Twilio 20003"))
    assert other.is_refused(account(other, **columns))
    assert not other.is_refused(account(other, **columns, twilioAuthToken="another"))
    assert account(other, **columns).pace.take(1)[0] == 1


def test_without_redis_a_process_knows_what_it_was_answered(clock: Clock, new_redis: Callable[..., Redis]) -> None:
    server = new_redis()
    with (
        connect(server.url) as client,
        closing(CallingAccounts(load(ENVIRONMENT, "calls"), client, concurrency=1, monotonic=clock)) as calling,
    ):
        server.kill()
        calling.record_answer(account(calling), AccountRejected("Twilio 20003"))
        assert calling.is_in_backoff(account(calling))


@pytest.mark.parametrize("error", [RecipientDeferred("busy"), RecipientRefused("no such number"), Unconfirmed("cut")])
def test_answers_about_one_number_say_nothing_about_the_account(
    error: Any, calling: CallingAccounts, caplog: pytest.LogCaptureFixture
) -> None:
    calling.record_answer(account(calling), error)
    assert not calling.is_in_backoff(account(calling))
    assert caplog.records == []


def test_a_problem_is_reported_once(calling: CallingAccounts, caplog: pytest.LogCaptureFixture) -> None:
    """Again when it changes, and after a call that was placed."""
    caplog.set_level(logging.INFO)
    for reason in ("first", "first", "second"):
        calling.report_problem("t1", reason)
    calling.record_answer(account(calling), None)
    calling.report_problem("t1", "second")
    assert [record.args["reason"] for record in caplog.records] == ["first", "second", "second"]  # type: ignore[call-overload, index]
