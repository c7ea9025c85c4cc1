-- Statements of the status page and bin/status. Each is cheap, however long the CRM's tables are.

-- name: work_in_progress  Running campaigns, and how much waits: each part by an index, no count above %(cap)s + 1.
-- Recipients are not counted: the campaign's own row has the numbers.
WITH clock AS (
    SELECT statement_timestamp() AT TIME ZONE 'UTC' AS now
), campaign AS (
    SELECT c.id, c.name, c.channel, c."totalRecipients" AS total, c."sentCount" AS sent, c."failedCount" AS failed,
           extract(epoch FROM clock.now - r.started_at)::float8 AS running_seconds,
           extract(epoch FROM r.next_batch_at - clock.now)::float8 AS next_batch_seconds, r.prepared,
           r.holds AS deferrals,
           -- what was sent before the worker took over says nothing about the worker's rate
           coalesce((
               SELECT max(l."createdAt") FROM "CampaignLog" l
               WHERE l."campaignId" = c.id AND l.action IN ('paused', 'resumed')
           ) = r.started_at, false) AS adopted
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id, clock
    WHERE c.status = 'running'
    ORDER BY r.started_at, c.id LIMIT %(campaigns)s
)
SELECT
    coalesce((SELECT json_agg(campaign) FROM campaign), '[]') AS campaigns,
    (SELECT count(*) FROM worker.campaign_run) AS campaigns_in_all,
    (SELECT count(*) FROM (
        SELECT FROM "Campaign" c
        WHERE c.status = 'running' AND NOT EXISTS (SELECT FROM worker.campaign_run r WHERE r.campaign_id = c.id)
        LIMIT %(cap)s + 1) AS capped) AS campaigns_of_others,
    (SELECT extract(epoch FROM min("scheduledAt") - clock.now) FROM "Campaign" WHERE status = 'scheduled')::float8
        AS next_campaign_seconds,
    -- ordered, so that the index is used even when the server's statistics date from a time with many such rows
    (SELECT count(*) FROM (
        SELECT FROM "CallQueue" WHERE status = 'pending' ORDER BY "tenantId" LIMIT %(cap)s + 1) AS capped)
        AS calls_queued,
    (SELECT extract(epoch FROM min(GREATEST("scheduledFor", "nextRetryAt")) - clock.now) FROM "CallQueue"
     WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > clock.now)::float8 AS next_call_seconds,
    (SELECT count(*) FROM worker.call_claim WHERE ask_at IS NULL) AS calls_being_placed,
    (SELECT count(*) FROM (
        SELECT FROM worker.call_claim WHERE ask_at IS NOT NULL LIMIT %(cap)s + 1) AS capped) AS calls_unconfirmed,
    (SELECT count(*) FROM (SELECT FROM worker.unconfirmed_send LIMIT %(cap)s + 1) AS capped) AS messages_unconfirmed,
    (SELECT count(*) FROM (SELECT FROM worker.notice LIMIT %(cap)s + 1) AS capped) AS notifications
FROM clock;
