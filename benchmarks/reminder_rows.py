"""Tenants with lead reminders and their leads, in as many rows as a benchmark wants, by a few statements.

Each tenant has one administrator, who is reminded by e-mail, and leads in five stages, of which three are included.
One lead of each tenant is due. The mix says what the others are:

    contacted  four fifths were contacted an hour ago; the rest are quiet, in stages that are not included
    reminded   half of them are quiet in included stages, and everybody was reminded of them an hour ago; the other
               half were contacted an hour ago
"""

from collections.abc import Sequence

from sandbox.crm import Crm

MIXES = ("contacted", "reminded")
STAGES = ("new", "contacted", "qualified", "won", "lost")
INCLUDED = STAGES[:3]

_TENANTS = """
INSERT INTO "Tenant" (id, name, slug, status, settings, "contactEmail", "updatedAt")
SELECT 'tenant-' || n, 'Tenant ' || n, 'tenant-' || n, 'ACTIVE', jsonb_build_object(
           'mail', jsonb_build_object('smtp', jsonb_build_object('fromEmail', 'crm@t' || n || '.example')),
           'whatsapp', jsonb_build_object('token', 'sandbox-' || n, 'phoneId', (100000000000 + n)::text),
           'leadReminders', jsonb_build_object(
               'enabled', true, 'recipientUserIds', jsonb_build_array('user-' || n),
               'recipientPhones', (
                   SELECT coalesce(jsonb_agg('+91' || (7000000000 + n * 10 + p)), '[]')
                   FROM generate_series(1, %(phones)s) AS p
               ),
               'includedStages', to_jsonb(%(included)s)
           )
       ), 'owner@t' || n || '.example', now()
FROM generate_series(1, %(tenants)s) AS n;
INSERT INTO "User" (id, email, name, role, "tenantId", "updatedAt")
SELECT 'user-' || n, 'user' || n || '@t' || n || '.example', 'User ' || n, 'ADMIN', 'tenant-' || n, now()
FROM generate_series(1, %(tenants)s) AS n;
INSERT INTO "PipelineStage" (id, name, slug, "order", "tenantId", "updatedAt")
SELECT 'stage-' || n || '-' || slug, slug, slug, 1, 'tenant-' || n, now()
FROM generate_series(1, %(tenants)s) AS n, unnest(%(stages)s) AS slug
"""
# Leads of a tenant lie apart from each other, as they do where many tenants work at the same time.
_LEADS = """
INSERT INTO "Lead" (id, name, company, email, phone, source, status, priority, "estimatedValue", "assignedTo", notes,
                    "tenantId", "userId", "stageId", "lastContactedAt", "createdAt", "updatedAt")
SELECT gen_random_uuid()::text, 'Lead ' || k || '-' || n, 'Company ' || k, 'lead' || k || '@l' || n || '.example',
       '+91' || (8000000000 + k), 'website', 'new', 'medium', 1000, 'user-' || n, repeat('a note ', 20),
       'tenant-' || n, 'user-' || n,
       'stage-' || n || '-' || CASE WHEN k > 1 AND {quiet} AND {outside} THEN 'won' ELSE 'new' END,
       CASE WHEN k = 1 OR {quiet} THEN at.now - interval '3 days' ELSE at.now - interval '1 hour' END,
       at.now - interval '90 days', at.now
FROM generate_series(1, %(leads)s) AS k, generate_series(1, %(tenants)s) AS n,
     (SELECT now() AT TIME ZONE 'UTC' AS now) AS at
"""
_REMINDED = """
INSERT INTO worker.lead_reminder (tenant_id, channel, address, lead_id, reminded_at, notice_id)
SELECT l."tenantId", who.channel, who.address, l.id, now() AT TIME ZONE 'UTC' - interval '1 hour', gen_random_uuid()
FROM "Lead" l
JOIN "User" u ON u.id = l."userId"
CROSS JOIN LATERAL (
    SELECT 'email' AS channel, u.email AS address
    UNION ALL
    SELECT 'whatsapp', ltrim(phone.value #>> '{{}}', '+')
    FROM "Tenant" t, jsonb_array_elements(t.settings #> '{{leadReminders,recipientPhones}}') AS phone
    WHERE t.id = l."tenantId"
) AS who
WHERE l."lastContactedAt" < now() AT TIME ZONE 'UTC' - interval '2 days' AND l.name NOT LIKE 'Lead 1-%%'
"""


def fill(crm: Crm, mix: str, tenants: int, leads: int, phones: int = 0) -> None:
    """``leads`` for each tenant; ``phones``: recipients by WhatsApp beside the administrator."""
    values: dict[str, int | list[str]] = {"tenants": tenants, "leads": leads, "phones": phones}
    crm.execute(_TENANTS, values | {"included": _listed(INCLUDED), "stages": _listed(STAGES)})
    quiet, outside = ("k % 5 = 0", "true") if mix == "contacted" else ("k % 2 = 0", "false")
    crm.execute(_LEADS.format(quiet=quiet.replace("%", "%%"), outside=outside), values)
    if mix == "reminded":
        crm.execute(_REMINDED.format(), {})
    crm.execute("VACUUM ANALYZE")


def _listed(names: Sequence[str]) -> list[str]:
    return list(names)
