"""The settings of campaigns."""

from dataclasses import dataclass

from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import (
    duration,
    one_of,
    whole_number,
)

DEFAULT_MESSAGE_MAX_BYTES = 26_214_400  # 25 MiB, what Gmail and most mail servers accept
DEFAULT_REFUSAL_BREAKER = 20


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """Fields of ``Settings``."""

    campaign_interval_seconds: float = variable(
        "CAMPAIGN_INTERVAL",
        duration("s", 0.1),
        "60",
        "how often the worker looks for due campaigns",
        programs="campaign",
    )
    campaign_batch_size: int = variable(
        "CAMPAIGN_BATCH_SIZE",
        whole_number(1, 10_000),
        "100",
        "recipients in one batch; with CAMPAIGN_BATCH_DELAY=0 in the first, later ones take a tenth of a second",
        programs="campaign web",
    )
    campaign_batch_delay_seconds: float = variable(
        "CAMPAIGN_BATCH_DELAY",
        duration("ms"),
        "5000ms",
        "pause between two full batches of one campaign",
        programs="campaign web",
    )
    campaign_concurrency: int = variable(
        "CAMPAIGN_CONCURRENCY",
        whole_number(1, 256),
        "8",
        "how many messages are sent at the same time, each on a connection of its own",
        programs="campaign web",
    )
    campaign_adopt_after_seconds: float = variable(
        "CAMPAIGN_ADOPT_AFTER",
        duration("s"),
        "600s",
        "how long a running campaign of the app servers has to be unchanged before the worker adopts it; 0: at once",
        programs="campaign",
    )
    campaign_retry_delay_seconds: float = variable(
        "CAMPAIGN_RETRY_DELAY",
        duration("s", 0.1),
        "60s",
        "first delay of a deferred recipient when the provider names none; doubles up to 1 h",
        programs="campaign",
    )
    campaign_max_attempts: int = variable(
        "CAMPAIGN_MAX_ATTEMPTS", whole_number(1, 100), "12", "attempts before a recipient fails", programs="campaign"
    )
    refusal_breaker: int = variable(
        "REFUSAL_BREAKER",
        whole_number(1, 1_000_000),
        str(DEFAULT_REFUSAL_BREAKER),
        "recipients in a row refused with the same reply, through no fault of theirs, after which a campaign fails",
        programs="campaign",
    )
    unconfirmed_sends: str = variable(
        "UNCONFIRMED_SENDS",
        one_of("fail", "resend"),
        "fail",
        "what to do with a message whose answer never came: fail (never sent twice) or resend (never lost)",
        programs="campaign reminders trial",
    )
    message_max_bytes: int = variable(
        "MESSAGE_MAX_BYTES",
        whole_number(1_000, 100_000_000),
        str(DEFAULT_MESSAGE_MAX_BYTES),
        "the largest message that is sent, in bytes as it leaves; a campaign whose message is larger fails",
        programs="campaign reminders trial",
    )
