"""The settings of hours: when phones may ring, and when campaigns are sent."""

from dataclasses import dataclass

from worker.content.windows import Window
from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import call_windows


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """Fields of ``Settings``."""

    call_window: Window = variable(
        "CALL_WINDOW",
        Window.parse,
        "08:00-21:00",
        "when phones may ring, by the clock of the called number; 09:00-21:00 for +91",
        programs="calls",
    )
    call_windows: dict[int, Window] = variable(
        "CALL_WINDOWS",
        call_windows,
        "",
        "other hours for numbers of some countries: +44=08:00-20:00 +971=09:00-18:00",
        programs="calls",
    )
    campaign_window: Window | None = variable(
        "CAMPAIGN_WINDOW",
        Window.parse,
        None,
        "when campaigns are sent, as 09:00-21:00: e-mail by the tenant's clock, WhatsApp by the recipient's",
        programs="campaign web",
    )
