"""A check of a campaign as text for an operator, and as JSON for a program (docs/operating.md has its shape)."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from worker.campaign_commands.campaign_check import CampaignCheck
from worker.campaign_commands.check_problems import ENDED, worst
from worker.campaign_commands.expected_end import ExpectedEnd
from worker.campaign_commands.preview import Preview
from worker.campaign_commands.recipient_review import RecipientReview
from worker.content.links import Link
from worker.content.one_line import one_line

EXCERPT = 400  # characters of a text or of HTML that are shown
SHOWN_LINKS = 20
LABEL_WIDTH = 14


def text_lines(check: CampaignCheck) -> Iterator[str]:
    """The problems first, then what was found."""
    state = check.state
    tenant = one_line(state.tenant or state.tenant_id, 100)
    status, channel = one_line(state.status, 20), one_line(state.channel, 20)
    yield f"Campaign {one_line(state.name, 100)!r} ({status}, {channel}) of {tenant}"
    if state.status in ENDED:
        yield "It has ended. What follows is about its recipients that are still pending."
    yield ""
    for problem in check.problems:
        yield f"{problem.level.name:<8} {one_line(problem.text, 1000)}"
    if not check.problems:
        yield "Nothing is wrong with it."
    yield ""
    for label, value in _facts(check):
        yield f"{label:<{LABEL_WIDTH}}{value}"


def as_json(check: CampaignCheck) -> dict[str, Any]:
    """Names that are there stay. Times are ISO 8601 in UTC, what is unknown is null."""
    state, review, message = check.state, check.review, check.message
    return {
        "campaign": {
            "id": state.id,
            "tenant": state.tenant_id,
            "name": state.name,
            "channel": state.channel,
            "status": state.status,
            "scheduled_at": _iso(state.scheduled_at),
        },
        "checked_at": _iso(state.now),
        "result": worst(list(check.problems)).name.lower(),
        "problems": [
            {"level": each.level.name.lower(), "code": each.code, "text": each.text} for each in check.problems
        ],
        "recipients": {
            "from_target": review.from_target,
            "to_send": review.to_send,
            "duplicates": review.duplicates,
            "suppressed": review.suppressed,
            "unfit": review.unfit,
            "without_address": review.without_address,
            "of_other_tenants": review.of_other_tenants,
            "statuses": review.statuses,
            "countries": dict(review.countries.most_common()),
            "missing_values": dict(review.missing),
            "examples": dict(review.examples),
        },
        "message": message and _message_json(message),
        "links": [
            {"url": each.original_url, "tagged": each.tagged_url, "short": each.short_url, "text": each.link_text}
            for each in check.links
        ],
        "limits": [asdict(each) for each in check.end.limits] if check.end else [],
        "forecast": check.end and _forecast_json(check.end),
    }


def _forecast_json(end: ExpectedEnd) -> dict[str, Any]:
    return {
        "per_second": end.rate.per_second,
        "rate": end.rate.source,
        "today": end.forecast.today,
        "begins_at": _iso(end.forecast.begins_at),
        "resumes_at": _iso(end.forecast.resumes_at),
        "ends_at": _iso(end.forecast.ends_at),
        "words": end.forecast.words,
    }


def _message_json(message: Preview) -> dict[str, Any]:
    return {
        "from": message.sender,
        "reply_to": message.reply_to,
        "to": message.to,
        "subject": message.subject,
        "text": message.text[:EXCERPT],
        "html": message.html[:EXCERPT],
        "template": message.template,
        "parameters": list(message.parameters),
        "media": message.media,
        "size_bytes": message.size_bytes,
        "html_bytes": message.html_bytes,
    }


def _facts(check: CampaignCheck) -> Iterator[tuple[str, str]]:
    yield from _recipients(check.review)
    if check.message:
        yield from _message(check.message)
    yield from _links(check)
    if check.end:
        for number, limit in enumerate(check.end.limits):
            yield "" if number else "Limits", f"{limit.name} {limit.value}: {limit.effect}"
        yield "Forecast", check.end.forecast.words
        if check.end.forecast.begins_at:
            yield "", f"at {check.end.rate.per_second:.3g} a second, {check.end.rate.source}"


def _recipients(review: RecipientReview) -> Iterator[tuple[str, str]]:
    others = ("duplicates", review.duplicates), ("suppressed", review.suppressed), ("unfit", review.unfit)
    yield "Recipients", f"{review.to_send:,} to send; " + ", ".join(f"{number:,} {what}" for what, number in others)
    if review.from_target:
        yield "", f"built from its target when it starts; {review.without_address:,} people there have no address"
    elif review.statuses:
        yield (
            "",
            "now: " + ", ".join(f"{number:,} {one_line(status, 20)}" for status, number in review.statuses.items()),
        )
    if review.countries:
        shown = [f"{country or 'none'} {number:,}" for country, number in review.countries.most_common(12)]
        more = len(review.countries) - len(shown)
        yield "Countries", ", ".join(shown) + (f" and {more} others" if more > 0 else "")


def _message(message: Preview) -> Iterator[tuple[str, str]]:
    parts = (
        ("From", message.sender),
        ("Reply-To", message.reply_to),
        ("For example", message.to),
        ("Subject", message.subject),
        ("Template", message.template),
        ("Media", message.media),
        ("Text", message.text),
        ("HTML", message.html),
    )
    for label, text in parts:
        if text.strip():
            yield label, one_line(text, EXCERPT)
    for number, parameter in enumerate(message.parameters, 1):
        yield f"  {{{{{number}}}}}", one_line(parameter, EXCERPT)
    html = f", its HTML {message.html_bytes:,}" if message.html else ""
    yield "Size", f"{message.size_bytes:,} bytes{html}"


def _links(check: CampaignCheck) -> Iterator[tuple[str, str]]:
    if not check.links:
        return
    tagged = sum(each.utm is not None for each in check.links)
    short = sum(each.short_url is not None for each in check.links)
    yield "Links", f"{len(check.links):,}, of them {tagged:,} tagged, {short:,} short"
    for link in check.links[:SHOWN_LINKS]:
        yield "", _link(link)
    if len(check.links) > SHOWN_LINKS:
        yield "", f"and {len(check.links) - SHOWN_LINKS:,} others"


def _link(link: Link) -> str:
    leads_to = f"{link.short_url} leads to {link.tagged_url}" if link.short_url else link.tagged_url
    return one_line(leads_to, EXCERPT)


def _iso(at: datetime | None) -> str | None:
    return f"{at.isoformat(timespec='seconds')}Z" if at else None
