"""Prepares a run before its first claim: recipients from the campaign's target, each address once."""

from datetime import UTC, datetime
from typing import Any

from worker.campaigns.campaign import Campaign, CampaignTarget
from worker.errors import CampaignRejected
from worker.runtime.db import Database, queries

LIST_FILTERS = ("status", "priority", "type", "industry", "tags")
TARGETS = ("all", "leads", "contacts", "tags", "custom")


def prepare(db: Database, campaign: Campaign, now: datetime) -> bool:
    """Builds the recipients if the CRM left that to the worker, and takes out duplicates, in one transaction.

    Returns False when another worker prepares the run: then nothing can be claimed yet.
    Raises CampaignRejected when the target cannot be understood.
    """
    target, sql = target_parameters(campaign.target, campaign.channel), queries("campaign")
    which = {"campaign_id": campaign.id, "channel": campaign.channel, "now": now}
    with db.transaction():
        locked = db.one(sql["lock_unprepared"], campaign_id=campaign.id)
        if locked is None:
            return False
        if not locked["has_recipients"]:
            db.execute(
                sql["build_targets"],
                tenant_id=campaign.tenant_id,
                user_id=campaign.user_id,
                **target,
                **which,
            )
        db.execute(sql["fail_duplicates"], **which)
        db.execute(sql["mark_prepared"], campaign_id=campaign.id)
    return True


def target_parameters(target: CampaignTarget, channel: str) -> dict[str, Any]:
    """The parameters of the statement ``build_targets``.

    Raises CampaignRejected for a filter that cannot be understood: without it the campaign would be sent to people
    whom the user did not choose.
    """
    if target.kind not in TARGETS:
        raise CampaignRejected(f"its target {target.kind!r} is unknown; known are {', '.join(TARGETS)}")
    filters = target.filters or {}
    if not isinstance(filters, dict):
        raise CampaignRejected("its targetFilters are not an object")
    custom = filters.get("customList") or {}
    if not isinstance(custom, dict):
        raise CampaignRejected("its targetFilters.customList is not an object")
    return {
        "target": target.kind,
        **{name: _strings(name, filters.get(name)) for name in LIST_FILTERS},
        "assigned_to": _string("assignedTo", filters.get("assignedTo")),
        "search": _string("searchQuery", filters.get("searchQuery")),
        "created_after": _time("createdAfter", filters.get("createdAfter")),
        "custom": _strings("customList", custom.get("emails" if channel == "email" else "phones")),
    }


def _strings(name: str, value: object) -> list[str]:
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise CampaignRejected(f"its targetFilters.{name} is not a list of strings")
    return values


def _string(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise CampaignRejected(f"its targetFilters.{name} is not a string")
    return (value or "").strip() or None


def _time(name: str, value: object) -> datetime | None:
    text = _string(name, value)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise CampaignRejected(f"its targetFilters.{name} is not a date: {text[:40]!r}") from None
