"""UTM parameters: where a campaign's values come from, and how they are added to a URL."""

import re
from dataclasses import dataclass, fields
from urllib.parse import quote, unquote_plus

from worker.content.campaign_texts import CampaignTexts

LONGEST_VALUE = 255  # characters: each link of a campaign gets all values, and there may be thousands


@dataclass(frozen=True, slots=True)
class UtmParameters:
    """The utm_* values of a campaign, not yet percent-encoded; '' adds no parameter."""

    source: str = ""
    medium: str = ""
    campaign: str = ""
    term: str = ""
    content: str = ""

    @classmethod
    def of_campaign(cls, texts: CampaignTexts) -> "UtmParameters":
        """Defaults, overridden by the campaign's utm_* columns, overridden by ``platform_utm_config[channel]``."""
        chosen = {
            "source": "bharat_crm",
            "medium": texts.channel,
            "campaign": re.sub(r"[^a-z0-9]+", "_", texts.name[:LONGEST_VALUE].lower()),
        }
        platforms = texts.platform_utm_config
        override = platforms.get(texts.channel) if isinstance(platforms, dict) else None
        for field in fields(cls):
            values = [getattr(texts, f"utm_{field.name}")]
            if isinstance(override, dict):
                keys = (field.name, f"utm_{field.name}", f"utm{field.name.capitalize()}")
                values += [override.get(key) for key in keys]
            given = [value.strip() for value in values if isinstance(value, str) and value.strip()]
            chosen[field.name] = given[-1] if given else chosen.get(field.name, "")
        return cls(**{name: value[:LONGEST_VALUE] for name, value in chosen.items()})

    def pairs(self) -> list[tuple[str, str]]:
        """``("utm_source", value)`` and so on, only those that have a value."""
        named = [(f"utm_{field.name}", getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in named if value]


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
