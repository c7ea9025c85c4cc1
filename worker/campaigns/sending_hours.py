"""CAMPAIGN_WINDOW: the hours in which the recipients of a campaign may be written to.

E-mail goes by the clock of the tenant, since nobody knows where an address is. WhatsApp goes by the clocks of the
recipient's number, so that one campaign has recipients who wait and others who do not.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from worker.campaigns.campaign import Campaign
from worker.content.hours import tenant_zone
from worker.content.windows import Window, is_open, next_open
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind

OUTSIDE = "outside CAMPAIGN_WINDOW"  # how the reason begins of a recipient that waits


class BatchHours:
    """The hours of the recipients of one batch; any thread may ask.

    ``places``: the zones of each, by its id. ``openings``: when the window opens next in all of these zones, None:
    never, as far as it was looked up; for numbers of 40 zones, as +1 800, that takes a second, and less for +7.
    """

    def __init__(
        self,
        window: Window,
        places: Mapping[str, tuple[ZoneInfo, ...] | ValueError],
        clock: Callable[[], datetime],
        openings: dict[tuple[ZoneInfo, ...], datetime | None],
    ) -> None:
        self._window = window
        self._places = places
        self._clock = clock
        self._openings = openings

    def obstacle(self, recipient_id: str) -> Outcome | None:
        """Why this recipient may not be written to now: to be asked until its message leaves."""
        zones, now = self._places[recipient_id], self._clock()
        if isinstance(zones, ValueError):
            return Outcome(OutcomeKind.REFUSED, now, str(zones), fault=FailureKind.CONTENT)
        if is_open(self._window, zones, now):
            return None
        opens_at = self._opens_at(zones, now)
        if opens_at is None:
            reason = f"it is never {self._window} (CAMPAIGN_WINDOW) in all {len(zones)} time zones of the number"
            return Outcome(OutcomeKind.REFUSED, now, reason, fault=FailureKind.CONTENT)
        reason = f"{OUTSIDE} ({self._window})"
        return Outcome(OutcomeKind.NOT_SENT, now, reason, (opens_at - now).total_seconds())

    def _opens_at(self, zones: tuple[ZoneInfo, ...], now: datetime) -> datetime | None:
        """What was found earlier holds until then: the window is closed all the time before."""
        known = self._openings.get(zones, now)
        if known is None or known > now:
            return known
        found = self._openings[zones] = next_open(self._window, zones, now)
        return found


class SendingHours:
    """The hours of campaigns. ``window`` None: they may be sent at any time."""

    def __init__(self, window: Window | None, clock: Callable[[], datetime]) -> None:
        self._window = window
        self._clock = clock
        self._openings: dict[tuple[ZoneInfo, ...], datetime | None] = {}

    @property
    def reason(self) -> str:
        """Why a campaign waits."""
        return f"{OUTSIDE} ({self._window})"

    def opens_at(self, campaign: Campaign) -> datetime | None:
        """When an e-mail campaign may go on; None: now, or it depends on the recipient.

        Raises ValueError for a tenant's time zone that cannot be read.
        """
        if self._window is None or campaign.channel != "email":
            return None
        now = self._clock()
        opens_at = next_open(self._window, [tenant_zone(campaign.timezone)], now)
        return opens_at if opens_at and opens_at > now else None

    def of_batch(self, campaign: Campaign, phones: Mapping[str, str | None]) -> BatchHours | None:
        """``phones``: of its recipients, by their ids. None: they may be written to at any time.

        Raises ValueError as ``opens_at``.
        """
        if self._window is None:
            return None
        if campaign.channel == "email":
            zones = (tenant_zone(campaign.timezone),)
            return BatchHours(self._window, dict.fromkeys(phones, zones), self._clock, self._openings)
        places = {recipient_id: _places(phone, campaign) for recipient_id, phone in phones.items()}
        return BatchHours(self._window, places, self._clock, self._openings)


def _places(phone: str | None, campaign: Campaign) -> tuple[ZoneInfo, ...] | ValueError:
    """The zones of a number; the tenant's for one of no place; none for what is no number."""
    from worker.content.call_hours import zones_of  # some megabytes, and without a window nobody needs them
    from worker.content.phones import phone_number

    try:
        number = phone_number(phone or "")
    except ValueError:
        return ()  # it has no message either
    try:
        return zones_of(number) or (tenant_zone(campaign.timezone),)
    except ValueError as error:
        return error
