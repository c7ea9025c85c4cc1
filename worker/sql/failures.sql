-- Statements of bin/campaign failures and bin/campaign retry. %(now)s is UTC without zone.

-- name: campaign  A campaign by its id.
SELECT c.id, c."tenantId" AS tenant_id, c.name, c.channel, c.status FROM "Campaign" c WHERE c.id = %(campaign_id)s;

-- name: lock_campaign  The same, until the transaction ends: two retries follow one another.
SELECT c.id, c."tenantId" AS tenant_id, c.name, c.channel, c.status FROM "Campaign" c WHERE c.id = %(campaign_id)s
FOR UPDATE;

-- name: summary  The failures of a campaign by kind and pattern of their reply, the most frequent first.
SELECT f.kind, f.pattern, count(*) AS number
FROM worker.failure f CROSS JOIN LATERAL (
    -- include: failed_recipient_of
) AS p
WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND f.kind = ANY (%(kinds)s::text[])
GROUP BY f.kind, f.pattern ORDER BY number DESC, f.kind, f.pattern;

-- name: page  The next failures of a campaign after one of them, by time.
SELECT f.recipient_id, f.kind, f.code, f.reply, f.failed_at,
       CASE WHEN %(channel)s = 'email' THEN p."recipientEmail" ELSE p."recipientPhone" END AS address
FROM worker.failure f CROSS JOIN LATERAL (
    -- include: failed_recipient_of
) AS p
WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND f.kind = ANY (%(kinds)s::text[])
  AND (f.failed_at, f.recipient_id) > (%(after_at)s::timestamp, %(after)s)
ORDER BY f.failed_at, f.recipient_id LIMIT %(size)s;

-- name: count_retries  How many recipients a retry would set back, and how many stay because they are on the list.
WITH failed AS (
    SELECT f.recipient_id AS id, f.kind, EXISTS (
        SELECT FROM worker.suppression s
        WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s
          AND s.address = worker.address(%(channel)s, p."recipientEmail", p."recipientPhone") AND
            -- include: still_suppressed
    ) AS suppressed
    FROM worker.failure f CROSS JOIN LATERAL (
        -- include: failed_recipient_of
    ) AS p
    WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND f.kind = ANY (%(kinds)s::text[])
)
SELECT kind, count(*) FILTER (WHERE NOT suppressed) AS ready, count(*) FILTER (WHERE suppressed) AS suppressed
FROM failed GROUP BY kind ORDER BY kind;

-- name: set_back  Failed recipients become pending again, but those on the list; the campaign is due now.
WITH failed AS (
    SELECT f.recipient_id AS id, f.kind, EXISTS (
        SELECT FROM worker.suppression s
        WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s
          AND s.address = worker.address(%(channel)s, p."recipientEmail", p."recipientPhone") AND
            -- include: still_suppressed
    ) AS suppressed
    FROM worker.failure f CROSS JOIN LATERAL (
        -- include: failed_recipient_of
    ) AS p
    WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND f.kind = ANY (%(kinds)s::text[])
), released AS (
    UPDATE "CampaignRecipient" p
    SET status = 'pending', "sentAt" = NULL, "failedAt" = NULL, "errorMessage" = NULL, "updatedAt" = %(now)s
    FROM failed
    WHERE p.id = failed.id AND NOT failed.suppressed AND p.status || '' = 'failed'
    RETURNING p.id
), forgotten AS (
    DELETE FROM worker.failure f USING released WHERE f.recipient_id = released.id
), attempts AS (
    DELETE FROM worker.campaign_retry q USING released WHERE q.recipient_id = released.id
), scheduled AS (
    UPDATE "Campaign" c
    SET status = 'scheduled', "scheduledAt" = %(now)s, "completedAt" = NULL,
        "failedCount" = greatest(c."failedCount" - (SELECT count(*) FROM released), 0), "updatedAt" = %(now)s
    WHERE c.id = %(campaign_id)s AND c."tenantId" = %(tenant_id)s AND c.status IN ('completed', 'failed')
      AND EXISTS (SELECT FROM released)
    RETURNING c.id, c."tenantId"
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, metadata, "createdAt")
    SELECT gen_random_uuid()::text, "tenantId", id, 'scheduled', %(message)s, %(metadata)s::jsonb, %(now)s
    FROM scheduled
)
SELECT count(*) AS number FROM released;
