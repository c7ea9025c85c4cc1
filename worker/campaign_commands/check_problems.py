"""What is wrong with a campaign before it is sent: errors first, each with what to do about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from worker.campaign_commands.campaign_state import CampaignState
from worker.campaign_commands.preview import Preview
from worker.campaign_commands.recipient_review import RecipientReview
from worker.campaigns.campaign import Campaign
from worker.content.freemail import is_foreign_freemail
from worker.content.unsubscribe_link import UNSUBSCRIBE_NAME
from worker.runtime.settings import Settings

GMAIL_CLIPS_BYTES = 102 * 1024  # of HTML; what is longer is behind a link, with the unsubscribe link at its end
ENDED = ("completed", "failed")


class Level(IntEnum):
    """How bad a problem is: also the exit status of bin/campaign check."""

    FINE = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """``code`` stays the same in later versions; ``text`` says what is wrong and what to do."""

    level: Level
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class CheckedParts:
    """All that problems are found in. ``rejection``: why the campaign would fail as a whole, '' if it would not."""

    state: CampaignState
    campaign: Campaign
    review: RecipientReview
    message: Preview | None
    rejection: str
    sender_address: str  # '' for WhatsApp
    smtp_host: str | None  # None: it leaves through the user's Gmail, or by WhatsApp


def problems(parts: CheckedParts, settings: Settings) -> list[Problem]:
    """The worst first."""
    found = [
        *_of_campaign(parts, settings),
        *_of_sender(parts),
        *_of_recipients(parts),
        *_of_message(parts),
        *_of_links(parts, settings),
    ]
    return sorted(found, key=lambda each: -each.level)


def worst(found: list[Problem]) -> Level:
    return max((each.level for each in found), default=Level.FINE)


def _of_campaign(parts: CheckedParts, settings: Settings) -> Iterator[Problem]:
    if parts.rejection:
        yield Problem(Level.ERROR, "rejected", f"It will fail as a whole: {parts.rejection}.")
    if settings.campaign_window and not parts.state.has_zone and parts.state.channel == "email":
        yield Problem(
            Level.ERROR,
            "time-zone",
            "CAMPAIGN_WINDOW is set, and the tenant's time zone cannot be read, so it waits: correct it in the "
            "tenant's call settings.",
        )
    if parts.state.quality == "RED":
        yield Problem(
            Level.WARNING,
            "quality-red",
            "Meta rates the quality of the tenant's WhatsApp number RED, and may limit or block it: send nothing "
            "until it is better.",
        )
    if parts.state.status == "running" and not parts.state.is_run:
        yield Problem(
            Level.WARNING,
            "sent-by-crm",
            "An app server of the CRM sends it, and not the worker, which takes over when nothing has changed for "
            "CAMPAIGN_ADOPT_AFTER.",
        )


def _of_sender(parts: CheckedParts) -> Iterator[Problem]:
    address, host = parts.sender_address, parts.smtp_host
    if host is not None and is_foreign_freemail(address, host):
        yield Problem(
            Level.ERROR,
            "freemail-from",
            f"It is from {address}, a free mailbox, and leaves through SMTP_URL: DMARC fails, so receivers refuse "
            "it, or file it as spam. Set SMTP_FROM to an address of a domain of yours (the user then gets the "
            "replies), or mail.smtp.fromEmail in the tenant's settings, or connect the user's Gmail.",
        )


def _of_recipients(parts: CheckedParts) -> Iterator[Problem]:
    review, status = parts.review, parts.state.status
    if not review.to_send and status not in ENDED:
        yield Problem(
            Level.ERROR,
            "nobody",
            f"Nobody would get it: {review.duplicates:,} duplicates, {review.suppressed:,} suppressed, "
            f"{review.unfit:,} that cannot be written to, {review.without_address:,} without an address. Change its "
            f"{'target' if review.from_target else 'recipients'} in the CRM.",
        )
    if review.unfit:
        yield Problem(
            Level.WARNING,
            "unfit-recipients",
            f"{_people(review.unfit)} will fail: {'; '.join(review.examples['unfit'])}. Correct them in the CRM.",
        )
    if review.of_other_tenants:
        yield Problem(
            Level.WARNING,
            "other-tenants",
            f"{_people(review.of_other_tenants)} of another tenant: nobody writes to them. Take them out.",
        )
    for name, number in sorted(review.missing.items()):
        shown = ", ".join(review.examples[name])
        yield Problem(
            Level.WARNING,
            f"missing-{name}",
            f"{_people(number)} without a value for {{{{{name}}}}}, which is empty in their message: {shown}"
            f"{', ...' if number > len(review.examples[name]) else ''}.",
        )
    if (americans := review.countries["US"]) and parts.campaign.texts.whatsapp_message_type == "template":
        yield Problem(
            Level.WARNING,
            "us-numbers",
            f"{_people(americans)} with a number of the USA, where WhatsApp delivers no marketing templates.",
        )


def _of_message(parts: CheckedParts) -> Iterator[Problem]:
    texts, message = parts.campaign.texts, parts.message
    if message is None:
        return
    if texts.channel == "whatsapp":
        if not message.template:
            yield Problem(
                Level.WARNING,
                "free-text",
                "It is not a template: it reaches only people who wrote to the number within the last 24 hours.",
            )
    else:
        yield from _of_email(parts, message)
    for name in message.unknown_placeholders:
        if name == UNSUBSCRIBE_NAME:
            text = f"{{{{{name}}}}} stays as it is: set PUBLIC_URL, and its links lead to the worker's page."
        else:
            text = f"{{{{{name}}}}} is no placeholder of campaigns and stays as it is: name, email and phone are."
        yield Problem(Level.WARNING, "unknown-placeholder", text)


def _of_email(parts: CheckedParts, message: Preview) -> Iterator[Problem]:
    if not (message.text.strip() or message.html.strip()):
        yield Problem(Level.WARNING, "empty", "The message is empty: it has neither a text nor HTML.")
    if not parts.campaign.texts.subject:
        yield Problem(Level.WARNING, "no-subject", "It has no subject: its name is used.")
    if message.html_bytes > GMAIL_CLIPS_BYTES:
        yield Problem(
            Level.WARNING,
            "clipped",
            f"Its HTML has {message.html_bytes:,} bytes: Gmail shows about {GMAIL_CLIPS_BYTES:,} of them and "
            "hides the rest, mostly with the link to unsubscribe. Shorten it.",
        )
    if not message.unsubscribes:
        yield Problem(
            Level.WARNING,
            "no-unsubscribe",
            "Its readers cannot unsubscribe, which Gmail and Yahoo demand of bulk mail: set PUBLIC_URL.",
        )


def _of_links(parts: CheckedParts, settings: Settings) -> Iterator[Problem]:
    if parts.campaign.texts.use_short_links and not settings.app_url:
        yield Problem(
            Level.WARNING, "no-short-links", "It asks for short links, which need APP_URL: links stay long."
        )


def _people(number: int) -> str:
    return f"{number:,} recipient{'' if number == 1 else 's'}"
