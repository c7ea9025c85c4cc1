-- Statements of the job bounces. %(now)s is UTC without zone, as in the whole CRM.

-- name: recipient  The row that a return path names, with its tenant, for which the return path has to be proved.
SELECT p."tenantId" AS tenant_id, p."campaignId" AS campaign_id, p."recipientEmail" AS email, p.status
FROM "CampaignRecipient" p
WHERE p.id = %(id)s;

-- name: lock_address  One transaction at a time counts the bounces of an address: the third one must see the others.
SELECT pg_advisory_xact_lock(hashtextextended(%(tenant_id)s || ' ' || %(address)s, 1651863150));

-- name: record  Remembers a report; no row, when it had its effect before.
INSERT INTO worker.bounce (report, message, tenant_id, address, kind, code, reported_at)
VALUES (%(report)s, %(message)s, %(tenant_id)s, %(address)s, %(kind)s, %(code)s, %(now)s)
ON CONFLICT (report) DO NOTHING
RETURNING report;

-- name: soft_bounces  How many messages to an address were not delivered for now, since a time.
SELECT count(DISTINCT message) AS number FROM worker.bounce
WHERE tenant_id = %(tenant_id)s AND address = %(address)s AND kind = 'soft' AND reported_at > %(since)s;

-- name: suppress  Puts an address on the list, for ever or until a time.
SELECT worker.suppress(
    %(tenant_id)s, 'email', %(address)s, %(reason)s, %(source)s, %(until)s::timestamp, %(campaign_id)s, %(code)s
) AS changed;

-- name: fail_recipient  The message was not delivered: counts the recipient as failed. Not if the CRM knows better.
WITH failed AS (
    UPDATE "CampaignRecipient" p
    SET status = 'failed', "failedAt" = %(now)s, "errorMessage" = %(reason)s, "updatedAt" = %(now)s
    WHERE p.id = %(id)s AND p."tenantId" = %(tenant_id)s AND p.status = 'sent'
    RETURNING p.id, p."campaignId" AS campaign_id, p."tenantId" AS tenant_id
), failure AS (
    INSERT INTO worker.failure (recipient_id, campaign_id, tenant_id, kind, code, reply, failed_at)
    SELECT id, campaign_id, tenant_id, %(failure)s, %(code)s, %(words)s, %(now)s FROM failed
    ON CONFLICT (recipient_id) DO UPDATE
    SET campaign_id = excluded.campaign_id, tenant_id = excluded.tenant_id, kind = excluded.kind,
        code = excluded.code, reply = excluded.reply, pattern = excluded.pattern, failed_at = excluded.failed_at
), counted AS (
    UPDATE "Campaign" c
    SET "sentCount" = greatest(c."sentCount" - 1, 0), "failedCount" = c."failedCount" + 1,
        "updatedAt" = %(now)s  -- another one each time: "finish" sees by it that what it has counted is old
    FROM failed
    WHERE c.id = failed.campaign_id AND c."tenantId" = failed.tenant_id
)
SELECT count(*) AS number FROM failed;

-- name: forget  Deletes what is remembered of old reports.
DELETE FROM worker.bounce WHERE report IN (
    SELECT report FROM worker.bounce WHERE reported_at < %(before)s LIMIT %(size)s
);
