"""The settings of the engine: whether one process sends campaigns, or many."""

from dataclasses import dataclass

from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import duration, one_of, whole_number

EMBEDDED, PROCRASTINATE = "embedded", "procrastinate"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Fields of ``Settings``."""

    campaign_engine: str = variable(
        "CAMPAIGN_ENGINE",
        one_of(EMBEDDED, PROCRASTINATE),
        EMBEDDED,
        "embedded: bin/campaign sends; procrastinate: it queues units for any number of bin/campaign-sender",
        programs="campaign migrate web",
    )
    campaign_spread: int = variable(
        "CAMPAIGN_SPREAD",
        whole_number(1, 256),
        "4",
        "how many senders at most work on one campaign at the same time, with CAMPAIGN_ENGINE=procrastinate",
        programs="campaign",
    )
    campaign_sender_timeout_seconds: float = variable(
        "CAMPAIGN_SENDER_TIMEOUT",
        duration("s", 1.0),
        "20s",
        "after how long without a sign of life a sender's units are given to others",
        programs="campaign web",
    )

    @property
    def is_spread(self) -> bool:
        """Whether campaigns are sent by bin/campaign-sender."""
        return self.campaign_engine == PROCRASTINATE
