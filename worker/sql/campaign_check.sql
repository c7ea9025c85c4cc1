-- Statements of bin/campaign check, test, list and show. They only read. Times are UTC without zone.

-- name: state  A campaign by its id, with its run, as far as it is one of the worker's.
SELECT c.id, c."tenantId" AS tenant_id, t.name AS tenant, c.name, c.channel, c.status,
       c."totalRecipients" AS total, c."sentCount" AS sent, c."failedCount" AS failed,
       CASE WHEN c."scheduledAt" BETWEEN '1970-01-01' AND '9000-01-01' THEN c."scheduledAt" END AS scheduled_at,
       r.started_at, r.next_batch_at, coalesce(r.prepared, false) AS prepared, coalesce(r.holds, 0) AS backoffs,
       r.campaign_id IS NOT NULL AS is_run, r.waits_for, r.waits_until,
       (SELECT min(due_at) FROM worker.campaign_retry q WHERE q.campaign_id = c.id) AS next_retry,
           -- include: later_retries
       AS retries,
       (SELECT count(*) FROM worker.unconfirmed_send s WHERE s.campaign_id = c.id) AS unconfirmed,
       (SELECT s.timezone FROM "CallSettings" s WHERE s."tenantId" = c."tenantId") AS timezone,
       coalesce((
           SELECT n.quality FROM worker.whatsapp_number n
           WHERE n.tenant_id = c."tenantId" AND c.channel = 'whatsapp'
             AND n.read_at > statement_timestamp() AT TIME ZONE 'UTC' - interval '1 day'
       ), '') AS quality,
       statement_timestamp() AT TIME ZONE 'UTC' AS now
FROM "Campaign" c
LEFT JOIN "Tenant" t ON t.id = c."tenantId"
LEFT JOIN worker.campaign_run r ON r.campaign_id = c.id
WHERE c.id = %(campaign_id)s;

-- name: statuses  How many recipients of a campaign are in each status; those of other tenants apart, nobody writes to them.
SELECT p.status, coalesce(p."tenantId" = %(tenant_id)s, false) AS own, count(*) AS number,
       count(*) FILTER (WHERE p.status = 'sent' AND p."sentAt" > %(since)s) AS recently_sent
FROM "CampaignRecipient" p WHERE p."campaignId" = %(campaign_id)s
GROUP BY 1, 2 ORDER BY 1, 2;

-- name: pending  The pending recipients of a campaign, with what its preparation and its claims would find.
WITH
    -- include: campaign_duplicates
, listed AS (
    SELECT DISTINCT s.address FROM worker.suppression s
    WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND
        -- include: still_suppressed
)
SELECT p.id, p."recipientName" AS name, p."recipientEmail" AS email, p."recipientPhone" AS phone,
       coalesce(n.place > 1, false) AS duplicate, listed.address IS NOT NULL AS suppressed
FROM "CampaignRecipient" p LEFT JOIN numbered n ON n.id = p.id LEFT JOIN listed ON listed.address = n.address
WHERE p."campaignId" = %(campaign_id)s AND p."tenantId" = %(tenant_id)s AND p.status = 'pending';

-- name: targeted  The people that the recipients of a campaign will be made of, with what its claims would find.
WITH
    -- include: campaign_target
, listed AS (
    SELECT DISTINCT s.address FROM worker.suppression s
    WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND
        -- include: still_suppressed
)
SELECT r.id, r.name, r.email, r.phone, r.place > 1 AS duplicate, listed.address IS NOT NULL AS suppressed
FROM reachable r LEFT JOIN listed ON listed.address = r.address;

-- name: target_size  How many people a target means, also without an address of the campaign's channel.
WITH
    -- include: campaign_target
SELECT count(*) AS number FROM person;

-- name: suppression_of  Why one address must not be written to; no row: it may.
SELECT s.reason FROM worker.suppression s
WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s
  AND s.address = worker.address(%(channel)s, %(address)s, %(address)s) AND
      -- include: still_suppressed
LIMIT 1;

-- name: campaigns  The campaigns that are running, due next, or changed last, in this order.
SELECT c.id, c."tenantId" AS tenant_id, t.name AS tenant, c.name, c.channel, c.status,
       c."totalRecipients" AS total, c."sentCount" AS sent, c."failedCount" AS failed,
       CASE WHEN c."scheduledAt" BETWEEN '1970-01-01' AND '9000-01-01' THEN c."scheduledAt" END AS scheduled_at
FROM "Campaign" c LEFT JOIN "Tenant" t ON t.id = c."tenantId"
WHERE (%(statuses)s::text[] = '{}' OR c.status = ANY (%(statuses)s::text[]))
  AND (%(tenant_id)s::text IS NULL OR c."tenantId" = %(tenant_id)s)
ORDER BY array_position(ARRAY['running', 'scheduled'], c.status),
         CASE WHEN c.status = 'scheduled' THEN c."scheduledAt" END, c."updatedAt" DESC, c.id
LIMIT %(limit)s;

-- name: tenant  Whether there is a tenant with this id.
SELECT id FROM "Tenant" WHERE id = %(tenant_id)s;

-- name: failures  The failures of a campaign by kind, the most frequent first.
SELECT f.kind, count(*) AS number
FROM worker.failure f JOIN "CampaignRecipient" p
    ON p.id = f.recipient_id AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = f.tenant_id
WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND p.status || '' = 'failed'
GROUP BY f.kind ORDER BY number DESC, f.kind;
