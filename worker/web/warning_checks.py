"""Checks for problems that show although every server answers: Redis's memory policy, clocks, bad numbers, commits
that nobody waits for, missing tables, and calls that are not placed.

Each warning is one sentence for the operator that says what is wrong and what to do. The checks change nothing.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import psycopg2.errors
import redis

from worker.content.calls import WHAT_TO_DO
from worker.errors import SchemaError
from worker.runtime.db import Database, queries
from worker.runtime.migrations import migrations, require_current

log = logging.getLogger(__name__)

CLOCK_LIMIT_SECONDS = 2.0
CHECK_SECONDS = 60.0  # from one run of a check to the next
LATEST_CALLS = 1000  # whose reasons are looked at

# The CRM's tables and columns that the statements in worker/sql use. The CRM's migrations may change all others.
CONTRACT: Mapping[str, str] = MappingProxyType(
    {
        "AutomationRule": "id tenantId",
        "CallLog": "id tenantId leadId contactId phoneNumber phoneCountryCode direction callType twilioCallSid "
        "twilioStatus callScriptId triggerType automationRuleId callOutcome metadata createdById createdAt updatedAt",
        "CallQueue": "id tenantId leadId contactId phoneNumber phoneCountryCode status priority callType "
        "callScriptId triggerType automationRuleId attempts maxAttempts lastAttemptAt nextRetryAt callLogId "
        "errorMessage scheduledFor metadata createdById createdAt updatedAt",
        "CallScript": "id enableRecording usageCount lastUsedAt tenantId updatedAt",
        "CallSettings": "tenantId twilioAccountSid twilioAuthToken twilioPhoneNumber maxConcurrentCalls callTimeout "
        "enableRecording enableBusinessHours businessHoursStart businessHoursEnd businessDays timezone "
        "defaultCallScriptId",
        "Campaign": "id name channel status subject htmlContent textContent whatsappMessageType whatsappMediaType "
        "whatsappMediaUrl whatsappCaption whatsappTemplateName whatsappTemplateLanguage whatsappTemplateParams "
        "scheduledAt completedAt targetType targetFilters totalRecipients sentCount failedCount utmSource utmMedium "
        "utmCampaign utmTerm utmContent platformUtmConfig autoTagLinks useShortLinks tenantId userId "
        "updatedAt",
        "CampaignLog": "id tenantId campaignId action message metadata createdAt",
        "CampaignRecipient": "id tenantId campaignId recipientType recipientId recipientName recipientEmail "
        "recipientPhone status sentAt failedAt errorMessage messageId createdAt updatedAt",
        "Contact": "id name company email phone phoneCountryCode phoneNormalized whatsapp whatsappNormalized type "
        "industry tags assignedTo tenantId userId createdAt",
        "EmailLog": "id to from subject body htmlBody status messageId gmailMessageId gmailThreadId entityType "
        "entityId sentAt tenantId userId createdAt updatedAt",
        "EmailTemplate": "id type subject htmlBody isActive isDefault usageCount lastUsedAt tenantId createdAt "
        "updatedAt",
        "Lead": "id name company email phone phoneCountryCode phoneNormalized whatsapp whatsappNormalized status "
        "priority assignedTo tags tenantId userId stageId lastContactedAt lastCalledAt callCount createdAt updatedAt",
        "PipelineStage": "id slug tenantId",
        "Tenant": "id name slug status plan subscriptionEnd settings contactEmail updatedAt",
        "User": "id email name role isActive tenantId googleEmail gmailAccessToken gmailRefreshToken "
        "gmailTokenExpiry gmailConnectedAt gmailScopes createdAt updatedAt",
        "campaign_links": "id tenantId campaignId originalUrl taggedUrl shortCode shortUrl utmSource utmMedium "
        "utmCampaign utmTerm utmContent linkText linkPosition platform updatedAt",
    }
)


@dataclass(frozen=True)
class _Index:
    """An index of the worker on a table of the CRM."""

    name: str
    table: str
    source: str  # the file that creates it


class WarningChecks:
    """Runs checks once a minute and keeps their warnings. A warning is logged when it is new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` counts seconds."""
        self._clock = clock
        self._results: dict[str, tuple[float, tuple[str, ...]]] = {}  # check -> (when it ran, its warnings)

    def run(self, name: str, check: Callable[[], Iterable[str]]) -> None:
        """Runs ``check`` if it has not run for a minute. If it raises, so does this, and its warnings stay."""
        ran_at, before = self._results.get(name, (-math.inf, ()))
        if self._clock() - ran_at < CHECK_SECONDS:
            return
        found = tuple(check())
        for warning in found:
            if warning not in before:
                log.warning("a check found a problem", {"what": warning})
        self._results[name] = self._clock(), found

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those about numbers first: a number that Meta blocks cannot be had back."""
        results = sorted(self._results.items(), key=lambda each: (each[0] != NUMBERS, each[0]))
        return tuple(warning for _, (_, found) in results for warning in found)


# From the catalogue: information_schema hides what this user has no rights to.
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
_BAD_NUMBERS = """
SELECT tenant_id, phone_id FROM worker.whatsapp_number
WHERE quality = 'RED' AND read_at > statement_timestamp() AT TIME ZONE 'UTC' - interval '1 day'
ORDER BY tenant_id LIMIT 10
"""
# What sessions begin with: those of the worker turn off into on.
_COMMIT = "SELECT reset_val AS synchronous_commit FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'"
_CREATED = re.compile(r'CREATE (?:UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS "(worker_\w+)"\s+ON "(\w+)"')
NUMBERS = "numbers"  # the check
_DROPPED = re.compile(r'DROP INDEX CONCURRENTLY IF EXISTS "(worker_\w+)"')


def redis_warnings(client: redis.Redis) -> list[str]:
    """Whether Redis may evict locks and counters; nothing where it forbids INFO. Raises redis.RedisError.

    The policy is read from INFO, which hosted servers allow that forbid CONFIG.
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
    """Whether this machine's clock is wrong. ``offset_seconds``: PostgreSQL's clock minus this machine's."""
    if abs(offset_seconds) <= CLOCK_LIMIT_SECONDS:
        return None
    direction = "behind" if offset_seconds > 0 else "ahead of"
    return (
        f"This machine's clock is {abs(offset_seconds):.1f} s {direction} PostgreSQL's: "
        "campaigns, calls and reminders start at wrong times; set both machines' clocks by NTP."
    )


def database_warnings(db: Database) -> list[str]:
    """Commits that nobody waits for, and what the database lacks: tables and columns of the CRM, tables and indexes
    of the worker. Raises psycopg2.Error.
    """
    return [*_commit_warnings(db), *_contract_warnings(db), *_own_warnings(db)]


def number_warnings(db: Database) -> list[str]:
    """Which WhatsApp numbers Meta may block soon. Raises psycopg2.Error."""
    try:
        rows = db.all(_BAD_NUMBERS)
    except psycopg2.errors.UndefinedTable:
        return []  # another warning says that bin/migrate has to run
    return [
        f'Meta rates the quality of the WhatsApp number {row["phone_id"]} of tenant "{row["tenant_id"]}" RED, and '
        "may limit or block it: pause its campaigns, and write only to people who asked for it until it is better."
        for row in rows
    ]


def _commit_warnings(db: Database) -> Iterator[str]:
    row = db.one(_COMMIT)
    if row and row["synchronous_commit"] == "off":
        yield (
            "PostgreSQL confirms commits before they are on its disk (synchronous_commit is off), so a crash or a "
            "fail-over forgets what the CRM wrote last: set it to on for the server, the database and its users; the "
            "worker's own sessions have it on."
        )


def call_warnings(db: Database) -> list[str]:
    """Which tenants have to change something before their calls can be placed. Raises psycopg2.Error."""
    rows = db.all(queries("web")["refused_calls"], what_to_do=WHAT_TO_DO, latest=LATEST_CALLS)
    return [f"Calls of the tenant {row['tenant'][:60]} are not placed: {row['what']}." for row in rows]


def _contract_warnings(db: Database) -> Iterator[str]:
    rows = db.all(_COLUMNS, names=list(CONTRACT))
    missing = [row["name"] for row in rows if not row["present"]]
    if missing:
        yield (
            f"The CRM's {_listed('table', missing)} cannot be found: run the CRM's migrations, or check the database "
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
        yield f"Jobs do not start: {error}."
        return  # the migrations also create the indexes
    expected = list(_indexes())
    valid = {row["name"]: row["valid"] for row in db.all(_INDEXES, names=[index.name for index in expected])}
    for index in expected:
        if not valid.get(index.name):
            state = "invalid (half built, or being built now)" if index.name in valid else "missing"
            drop = f'DROP INDEX CONCURRENTLY "{index.name}", then ' if index.name in valid else ""
            yield (
                f'The worker\'s index "{index.name}" is {state}, so jobs read the whole table "{index.table}": '
                f"run {drop}its CREATE INDEX in {index.source}."
            )


def _indexes() -> Iterator[_Index]:
    """Those that all migrations together make."""
    found: dict[str, _Index] = {}
    for migration in migrations():
        source = f"worker/sql/migrations/{migration.version:04d}_{migration.name}.sql"
        for name, table in _CREATED.findall(migration.sql):
            found[name] = _Index(name, table, source)
        for name in _DROPPED.findall(migration.sql):
            found.pop(name, None)
    yield from found.values()


def _listed(noun: str, names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{noun}{'s' if len(names) > 1 else ''} {quoted}"
