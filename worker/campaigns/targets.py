"""Prepares a run before its first claim: recipients from the campaign's target, double addresses; and its links."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from worker.campaigns.transport import Transport
from worker.content.links import Link
from worker.errors import CampaignRejected
from worker.runtime.db import Database, Row

LIST_FILTERS = ("status", "priority", "type", "industry", "tags")
UTM_NAMES = ("source", "medium", "campaign", "term", "content")
TARGETS = ("all", "leads", "contacts", "tags", "custom")


def prepare(db: Database, sql: Mapping[str, str], campaign: Row, now: datetime) -> bool:
    """Builds the recipients if the CRM left that to the worker, and takes out double addresses, in one transaction.

    Returns False when another worker is at it: then nothing can be claimed yet.
    Raises CampaignRejected when the target cannot be understood.
    """
    target = target_parameters(campaign)
    which = {"campaign_id": campaign["id"], "channel": campaign["channel"], "now": now}
    with db.transaction():
        locked = db.one(sql["lock_unprepared"], campaign_id=campaign["id"])
        if locked is None:
            return False
        if not locked["has_recipients"]:
            db.all(
                sql["build_targets"],
                tenant_id=campaign["tenantId"],
                user_id=campaign["userId"],
                **target,
                **which,
            )
        db.all(sql["fail_doubles"], **which)
        db.all(sql["mark_prepared"], campaign_id=campaign["id"])
    return True


def write_links(db: Database, sql: Mapping[str, str], campaign: Row, transport: Transport, now: datetime) -> None:
    """Writes the rows of the campaign's links, once for each content: the short links lead nowhere before."""
    content = transport.content
    if content.links and not content.links_written:
        which = {"tenant_id": campaign["tenantId"], "campaign_id": campaign["id"], "channel": campaign["channel"]}
        db.all(sql["add_links"], now=now, **_link_columns(content.links), **which)
    content.links_written = True


def _link_columns(links: list[Link]) -> dict[str, list[str | None]]:
    utms = [link.utm for link in links]
    return {
        "ids": [link.id for link in links],
        "originals": [link.original_url for link in links],
        "taggeds": [link.tagged_url for link in links],
        "codes": [link.short_code for link in links],
        "shorts": [link.short_url for link in links],
        "labels": [link.link_text for link in links],
        **{f"{name}s": [getattr(utm, name) or None if utm else None for utm in utms] for name in UTM_NAMES},
    }


def target_parameters(campaign: Row) -> dict[str, Any]:
    """The parameters of build_targets, from "targetType" and "targetFilters".

    Raises CampaignRejected for what cannot be understood: to narrow less than the user meant would write to
    people who were not chosen.
    """
    target = campaign["targetType"]
    if target not in TARGETS:
        raise CampaignRejected(f"its target {target!r} is unknown; known are {', '.join(TARGETS)}")
    filters = campaign["targetFilters"] or {}
    if not isinstance(filters, dict):
        raise CampaignRejected("its targetFilters are no object")
    custom = filters.get("customList") or {}
    if not isinstance(custom, dict):
        raise CampaignRejected("its targetFilters.customList is no object")
    return {
        "target": target,
        **{name: _texts(name, filters.get(name)) for name in LIST_FILTERS},
        "assigned_to": _text("assignedTo", filters.get("assignedTo")),
        "search": _text("searchQuery", filters.get("searchQuery")),
        "created_after": _time("createdAfter", filters.get("createdAfter")),
        "custom": _texts("customList", custom.get("emails" if campaign["channel"] == "email" else "phones")),
    }


def _texts(name: str, value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise CampaignRejected(f"its targetFilters.{name} is no list of texts")
    return values


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CampaignRejected(f"its targetFilters.{name} is no text")
    return (value or "").strip() or None


def _time(name: str, value: object) -> datetime | None:
    text = _text(name, value)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise CampaignRejected(f"its targetFilters.{name} is no date: {text[:40]!r}") from None
