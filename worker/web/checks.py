"""What would hurt although everything answers: Redis's memory policy, clocks, what a migration forgot.

Each finding is one sentence for an operator that says what is wrong and what to do; nothing is changed.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import redis

from worker.errors import SchemaError
from worker.runtime.db import Database
from worker.runtime.migrations import migrations, require_current

log = logging.getLogger(__name__)

CLOCK_LIMIT_SECONDS = 2.0
LOOK_SECONDS = 60.0  # from look to look

# The CRM's tables and columns that statements in worker/sql name. The CRM's own migrations may change all others.
CONTRACT: Mapping[str, str] = MappingProxyType(
    {
        "CallLog": "id tenantId leadId contactId phoneNumber phoneCountryCode direction callType twilioCallSid "
        "twilioStatus callScriptId triggerType automationRuleId callOutcome metadata createdById createdAt updatedAt",
        "CallQueue": "id tenantId leadId contactId phoneNumber phoneCountryCode status priority callType "
        "callScriptId triggerType automationRuleId attempts maxAttempts lastAttemptAt nextRetryAt callLogId "
        "errorMessage scheduledFor metadata createdById createdAt updatedAt",
        "CallScript": "id enableRecording usageCount lastUsedAt tenantId updatedAt",
        "CallSettings": "tenantId twilioAccountSid twilioAuthToken twilioPhoneNumber maxConcurrentCalls callTimeout "
        "enableRecording enableBusinessHours businessHoursStart businessHoursEnd businessDays timezone",
        "Campaign": "id name channel status subject htmlContent textContent whatsappMessageType whatsappMediaType "
        "whatsappMediaUrl whatsappCaption whatsappTemplateName whatsappTemplateLanguage whatsappTemplateParams "
        "scheduledAt completedAt targetType targetFilters totalRecipients sentCount failedCount utmSource utmMedium "
        "utmCampaign utmTerm utmContent platformUtmConfig autoTagLinks trackClicks useShortLinks tenantId userId "
        "updatedAt",
        "CampaignLog": "id tenantId campaignId action message metadata createdAt",
        "CampaignRecipient": "id tenantId campaignId recipientType recipientId recipientName recipientEmail "
        "recipientPhone status sentAt failedAt errorMessage messageId createdAt updatedAt",
        "Contact": "id name company email phone phoneNormalized whatsapp whatsappNormalized type industry tags "
        "assignedTo tenantId userId createdAt",
        "EmailLog": "id to from subject body htmlBody status messageId gmailMessageId gmailThreadId entityType "
        "entityId sentAt tenantId userId createdAt updatedAt",
        "EmailTemplate": "id type subject htmlBody isActive isDefault usageCount lastUsedAt tenantId createdAt "
        "updatedAt",
        "Lead": "id name company email phone phoneNormalized whatsapp whatsappNormalized status priority assignedTo "
        "tags tenantId userId stageId lastContactedAt lastCalledAt callCount createdAt updatedAt",
        "PipelineStage": "id slug tenantId",
        "Tenant": "id name slug status plan subscriptionEnd settings contactEmail updatedAt",
        "User": "id email name role isActive tenantId googleEmail gmailAccessToken gmailRefreshToken "
        "gmailTokenExpiry gmailConnectedAt gmailScopes createdAt updatedAt",
        "campaign_links": "id tenantId campaignId originalUrl taggedUrl shortCode shortUrl utmSource utmMedium "
        "utmCampaign utmTerm utmContent linkText linkPosition platform updatedAt",
    }
)


class WarningChecks:
    """What the checks found when they last looked. A finding is logged when it is new."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, tuple[str, ...]]] = {}  # by check: time.monotonic() of the look

    def look(self, name: str, check: Callable[[], Iterable[str]]) -> None:
        """Looks once a minute; raises what ``check`` raises, and then keeps what was found before."""
        looked_at, before = self._found.get(name, (-LOOK_SECONDS, ()))
        if time.monotonic() - looked_at < LOOK_SECONDS:
            return
        found = tuple(check())
        for sentence in found:
            if sentence not in before:
                log.warning("something would hurt", {"what": sentence})
        self._found[name] = time.monotonic(), found

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(sentence for _, (_, found) in sorted(self._found.items()) for sentence in found)


# By the catalogue rather than information_schema, which hides what this user has no rights to.
_COLUMNS = """
SELECT wanted.name, to_regclass(quote_ident(wanted.name)) IS NOT NULL AS present, ARRAY(
    SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = to_regclass(quote_ident(wanted.name)) AND a.attnum > 0 AND NOT a.attisdropped
) AS columns
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS wanted (name, place)
ORDER BY wanted.place
"""
_INDEXES = """
SELECT wanted.name, i.indisvalid AS valid
FROM unnest(%(names)s::text[]) AS wanted (name)
JOIN pg_catalog.pg_index i ON i.indexrelid = to_regclass(quote_ident(wanted.name))
"""
_CREATED = re.compile(r'CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS "(worker_\w+)"\s+ON "(\w+)"')


def redis_warnings(client: redis.Redis) -> list[str]:
    """Whether Redis may throw away locks and counters. Nothing where it does not tell. Raises redis.RedisError.

    INFO has the policy too, and hosted servers that forbid CONFIG allow it.
    """
    try:
        policy = str(client.info("memory").get("maxmemory_policy") or "noeviction")
    except redis.ResponseError:
        return []
    if policy == "noeviction":
        return []
    return [
        f"Redis may evict locks and counters when its memory is full (maxmemory-policy is {policy}): "
        "set it to noeviction, or give the worker a Redis of its own."
    ]


def clock_warning(offset_seconds: float) -> str | None:
    """Whether this machine's clock is off. ``offset_seconds``: PostgreSQL's clock less ours."""
    if abs(offset_seconds) <= CLOCK_LIMIT_SECONDS:
        return None
    direction = "behind" if offset_seconds > 0 else "ahead of"
    return (
        f"This machine's clock is {abs(offset_seconds):.1f} s {direction} PostgreSQL's: "
        "campaigns, calls and reminders start at wrong times; set both machines' clocks by NTP."
    )


def database_warnings(db: Database) -> list[str]:
    """What the database lacks of the CRM's contract, of the worker's indexes and tables. Raises psycopg2.Error."""
    return [*_contract_warnings(db), *_own_warnings(db)]


def _contract_warnings(db: Database) -> Iterator[str]:
    rows = db.all(_COLUMNS, names=list(CONTRACT))
    lost = [row["name"] for row in rows if not row["present"]]
    if lost:
        yield (
            f"The CRM's {_listed('table', lost)} cannot be found: run the CRM's migrations, or check the database "
            "and the schema in DATABASE_URL."
        )
    for row in rows:
        columns = sorted(set(CONTRACT[row["name"]].split()) - set(row["columns"]))
        if row["present"] and columns:
            yield (
                f'The CRM\'s table "{row["name"]}" lacks {_listed("column", columns)}, which the worker needs: '
                "compare the CRM's release with the worker's."
            )


def _own_warnings(db: Database) -> Iterator[str]:
    try:
        require_current(db)
    except SchemaError as error:
        yield f"Jobs do not start because {error}."
        return  # the indexes come with them
    expected = dict(_indexes())
    valid = {row["name"]: row["valid"] for row in db.all(_INDEXES, names=list(expected))}
    for name, (table, source) in expected.items():
        if not valid.get(name):
            state = "invalid (half built, or being built just now)" if name in valid else "missing"
            drop = f'DROP INDEX CONCURRENTLY "{name}", then ' if name in valid else ""
            yield (
                f'The worker\'s index "{name}" is {state}, so jobs read the whole table "{table}": '
                f"run {drop}its CREATE INDEX in {source}."
            )


def _indexes() -> Iterator[tuple[str, tuple[str, str]]]:
    """Name of each of the worker's indexes on the CRM's tables -> its table, and the file that makes it."""
    for migration in migrations():
        source = f"worker/sql/migrations/{migration.version:04d}_{migration.name}.sql"
        for name, table in _CREATED.findall(migration.sql):
            yield name, (table, source)


def _listed(noun: str, names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{noun}{'s' if len(names) > 1 else ''} {quoted}"
