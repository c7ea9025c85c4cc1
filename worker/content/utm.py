"""UTM parameters: where a campaign's values come from, and how they get into a URL."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import quote, unquote_plus


@dataclass(frozen=True, slots=True)
class UtmParameters:
    """The utm_* values of a campaign, as people read them (not yet percent-encoded); '' adds no parameter."""

    source: str = ""
    medium: str = ""
    campaign: str = ""
    term: str = ""
    content: str = ""

    @classmethod
    def of_campaign(cls, campaign: Mapping[str, Any]) -> "UtmParameters":
        """From a "Campaign" row: columns, else defaults, overridden by ``platformUtmConfig[channel]``."""
        channel = campaign["channel"]
        chosen = {
            "source": "bharat_crm",
            "medium": channel,
            "campaign": re.sub(r"[^a-z0-9]+", "_", str(campaign.get("name") or "").lower()),
        }
        platforms = campaign.get("platformUtmConfig")
        override = platforms.get(channel) if isinstance(platforms, dict) else None
        for field in fields(cls):
            column = f"utm{field.name.capitalize()}"
            chosen.update(_text(campaign, field.name, column))
            if isinstance(override, dict):
                chosen.update(_text(override, field.name, field.name, f"utm_{field.name}", column))
        return cls(**chosen)

    def pairs(self) -> list[tuple[str, str]]:
        """``("utm_source", value)`` and so on, only those that have a value."""
        named = [(f"utm_{field.name}", getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in named if value]


def _text(row: Mapping[str, Any], name: str, *keys: str) -> dict[str, str]:
    """``{name: value}`` for the last of ``keys`` that holds text, {} when none does."""
    found = [row[key].strip() for key in keys if isinstance(row.get(key), str) and row[key].strip()]
    return {name: found[-1]} if found else {}


def _encoded(value: str) -> str:
    """Percent-encoded; with a brace in it, every character is, so that no part of it is taken for a placeholder."""
    if "{" in value:
        return "".join(f"%{octet:02X}" for octet in value.encode())
    return quote(value, safe="")


def tag_url(url: str, utm: UtmParameters) -> str:
    """``url`` with the utm_* parameters at the end of its query, unless it has utm_source or utm_medium.

    Query, order and fragment stay byte for byte; a parameter that is there already is not added again.
    """
    address, hash_sign, fragment = url.partition("#")
    _, question_mark, query = address.partition("?")
    present = {unquote_plus(part.partition("=")[0]).lower() for part in re.split("[&;]", query)}
    if present & {"utm_source", "utm_medium"}:
        return url
    added = "&".join(f"{name}={_encoded(value)}" for name, value in utm.pairs() if name not in present)
    if not added:
        return url
    joint = "?" if not question_mark else "" if query.endswith("&") or not query else "&"
    return f"{address}{joint}{added}{hash_sign}{fragment}"
