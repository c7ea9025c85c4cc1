"""bin/campaign test: one message of a campaign to an address of the operator's choice.

It is made by the campaign's own content, for a recipient that does not exist, and leaves through its account, at its
pace, within its quota. No row of the campaign is written. Its unsubscribe link is for the address it is sent to, and
its links are not short: short ones lead somewhere only once the campaign runs.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

import redis

from worker.campaign_commands.arguments import MARK
from worker.campaign_commands.campaign_state import read_campaign, read_only, read_state
from worker.campaign_commands.expected_end import quota_of
from worker.campaigns.campaign import Campaign
from worker.campaigns.transport import Transport, TransportRouter
from worker.content.addresses import parse_address
from worker.content.one_line import one_line
from worker.content.phones import to_e164
from worker.errors import CommandRefused, SendError, TransportMissing, Unconfirmed
from worker.messages import Email, WhatsAppMessage
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.console import write
from worker.runtime.db import Database, queries
from worker.runtime.settings import Settings
from worker.sending.gmail_grants import update_grant
from worker.sending.quota import ACCOUNTS, QuotaLedger, Reservation

EXAMPLE_EMAIL, EXAMPLE_PHONE = "test@example.com", "+919876543210"  # for the placeholders of the other channel
PACE_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RecipientOfTest:
    """Who gets a test. Its id is a new one: no click and no report is taken for a real recipient's."""

    id: str
    name: str
    email: str | None
    phone: str | None

    @classmethod
    def at(cls, address: str, channel: str, name: str) -> "RecipientOfTest":
        """Raises CommandRefused for an address that is none of the campaign's channel."""
        try:
            if channel == "whatsapp":
                return cls(str(uuid4()), name, EXAMPLE_EMAIL, to_e164(address))
            return cls(str(uuid4()), name, parse_address(address), EXAMPLE_PHONE)
        except ValueError as error:
            raise CommandRefused(f"--to: {error}") from None


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns 0 when it was sent. Raises CommandRefused, SettingsError and psycopg2.Error."""
    with read_only(db):
        read_state(db, options.campaign)  # says when there is none
        campaign = _marked(read_campaign(db, options.campaign, settings.message_max_bytes))
        recipient = RecipientOfTest.at(options.to, campaign.channel, options.name)
        _require_not_suppressed(db, campaign, options.to)
    with (
        closing(program.redis_client(settings)) as client,
        closing(TransportRouter(settings, client, utc_now)) as transports,
    ):
        message, transport = _made(transports, campaign, recipient, settings)
        _SendingOfTest(db, transport, campaign.tenant_id, utc_now).send(message)
    write(f"Sent to {options.to}: {_what(campaign)}")
    return 0


def _marked(campaign: Campaign) -> Campaign:
    """With the mark where a reader sees it first, and without short links."""
    texts = campaign.texts
    if texts.channel == "email":
        texts = replace(texts, subject=f"{MARK}{texts.subject or texts.name}")
    else:
        caption = texts.whatsapp_caption
        texts = replace(
            texts, text=f"{MARK}{texts.text}", whatsapp_caption=f"{MARK}{caption}" if caption else caption
        )
    return replace(campaign, texts=replace(texts, use_short_links=False))


def _require_not_suppressed(db: Database, campaign: Campaign, address: str) -> None:
    which = {"tenant_id": campaign.tenant_id, "channel": campaign.channel, "address": address}
    if row := db.one(queries("campaign_check")["suppression_of"], **which):
        raise CommandRefused(
            f"Nothing was sent: {one_line(address, 200)} is on the tenant's suppression list "
            f"({one_line(row['reason'], 200)}). Take it off with bin/suppress remove, or test with another one."
        )


def _made(
    transports: TransportRouter, campaign: Campaign, recipient: RecipientOfTest, settings: Settings
) -> tuple[Email | WhatsAppMessage, Transport]:
    try:
        transport = transports.route(campaign)
        message = transport.message(recipient, utc_now())
    except (TransportMissing, SendError, ValueError) as error:
        raise CommandRefused(f"Nothing was sent: {error}.") from None
    if isinstance(message, Email) and transport.return_path and settings.return_paths:
        # a bounce is about the address alone: there is no such recipient
        envelope_from = settings.return_paths.of_notification(campaign.tenant_id, message.to)
        message = message._replace(envelope_from=envelope_from)
    return message, transport


def _what(campaign: Campaign) -> str:
    texts = campaign.texts
    if texts.channel == "email":
        return f"the subject begins with {MARK.strip()}."
    if texts.whatsapp_message_type == "template":
        return f"template {one_line(texts.whatsapp_template_name or '', 100)}, which cannot be marked as a test."
    return f"the text begins with {MARK.strip()}."


class _SendingOfTest:
    """Sends one message as a campaign would: at the pace and within the quota of its account."""

    def __init__(self, db: Database, transport: Transport, tenant_id: str, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._tenant_id = tenant_id
        self._transport = transport
        self._clock = clock
        self._ledger = QuotaLedger(db)

    def send(self, message: Email | WhatsAppMessage) -> None:
        """Raises CommandRefused when it was not sent, or may not have been."""
        reservation = self._reserve()
        try:
            self._wait_for_pace()
            self._transport.send(message)
        except Unconfirmed as error:
            raise CommandRefused(f"No answer came, it may have arrived: {error}") from None
        except (SendError, TransportMissing) as error:
            self._give_back(reservation)
            raise CommandRefused(f"It was not sent: {error}") from None
        except CommandRefused:
            self._give_back(reservation)
            raise
        if self._transport.gmail:
            update_grant(self._db, self._transport.gmail, self._clock(), revoked=False)

    def _reserve(self) -> Reservation | None:
        quota = quota_of(self._db, self._transport, self._tenant_id, self._clock())
        if quota is None:
            return None
        reservation = self._ledger.reserve_notification(quota, self._clock())
        if reservation is None:
            raise CommandRefused(
                f"Nothing was sent: the limit of {ACCOUNTS[quota.account_kind]}, {quota.limit:,} in 24 hours, is "
                "used up. bin/campaign check says what is left of it, docs/limits.md where it is set."
            )
        return reservation

    def _give_back(self, reservation: Reservation | None) -> None:
        if reservation:
            self._ledger.give_back(reservation, 1)

    def _wait_for_pace(self) -> None:
        if self._transport.pace is None:
            return
        deadline = time.monotonic() + PACE_WAIT_SECONDS
        try:
            while True:
                granted, wait_seconds = self._transport.pace.take_ahead()  # a campaign may want all tokens
                if time.monotonic() + wait_seconds > deadline:
                    raise CommandRefused(
                        f"Nothing was sent: the account's pace leaves no room for {wait_seconds:.0f} s. Try it then."
                    )
                time.sleep(wait_seconds)
                if granted:
                    return
        except redis.RedisError as error:
            raise CommandRefused(f"Nothing was sent: Redis, which has the account's pace: {error}") from None
