"""What Meta says about a WhatsApp number: how many people it may write to first in 24 hours, and its quality.

Source: https://developers.facebook.com/documentation/business-messaging/whatsapp/messaging-limits, the field
whatsapp_business_manager_messaging_limit (Graph API v24.0 and newer), which holds for all numbers of the business
portfolio; quality_rating is the number's own.
"""

import re
from dataclasses import dataclass

from worker.errors import RetryLater
from worker.providers.http import HttpPool, bearer
from worker.providers.untrusted import safe_text, text_at

FIELDS = "whatsapp_business_manager_messaging_limit,quality_rating"
QUALITIES = ("GREEN", "YELLOW", "RED")
_TIER = re.compile(r"TIER_([0-9]{1,6})(K?)")


@dataclass(frozen=True, slots=True)
class NumberStatus:
    """``people``: the limit; None: there is none, or Meta does not say. ``quality``: one of QUALITIES, else ''."""

    people: int | None
    quality: str


class WhatsAppNumber:
    """The phone id of a tenant. May be used by several threads at the same time."""

    def __init__(self, api_url: str, phone_id: str, token: str, pool: HttpPool) -> None:
        """``pool`` is shared, and the caller closes it."""
        self.phone_id = phone_id
        self._url = f"{api_url.rstrip('/')}/{phone_id}?fields={FIELDS}"
        self._token = token
        self._pool = pool

    def __repr__(self) -> str:
        return f"WhatsAppNumber(phone id {self.phone_id})"

    def read(self) -> NumberStatus:
        """Asks Meta. Raises SendError when it does not say."""
        answer = self._pool.get(self._url, bearer(self._token))
        if not answer.success:
            message = text_at(answer.body, "error", "message")
            raise RetryLater(safe_text(f"WhatsApp HTTP {answer.status}: {message}", [self._token]))
        quality = text_at(answer.body, "quality_rating")
        return NumberStatus(
            people_of(text_at(answer.body, "whatsapp_business_manager_messaging_limit")),
            quality if quality in QUALITIES else "",
        )


def people_of(tier: str) -> int | None:
    """How many people a tier such as TIER_250 or TIER_2K allows; None for TIER_UNLIMITED and what is no tier."""
    match = _TIER.fullmatch(tier)
    return int(match[1]) * (1000 if match[2] else 1) or None if match else None
