-- Statements of the status page and bin/status: cheap however long the CRM's tables are.

-- name: work  What is under way: one look, each part by an index, counts only up to %(cap)s + 1.
-- Recipients are never counted: the campaign's own row says how many there are and were.
WITH clock AS (
    SELECT statement_timestamp() AT TIME ZONE 'UTC' AS now
), run AS (
    SELECT c.id, c.name, c.channel, c."totalRecipients" AS total, c."sentCount" AS sent, c."failedCount" AS failed,
           extract(epoch FROM clock.now - r.started_at)::float8 AS running_seconds,
           extract(epoch FROM r.next_batch_at - clock.now)::float8 AS next_batch_seconds, r.prepared, r.holds,
           -- what was sent before the worker took over says nothing of its pace
           coalesce((
               SELECT max(l."createdAt") FROM "CampaignLog" l
               WHERE l."campaignId" = c.id AND l.action IN ('paused', 'resumed')
           ) = r.started_at, false) AS adopted
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id, clock
    WHERE c.status = 'running'
    ORDER BY r.started_at, c.id LIMIT %(runs)s
)
SELECT
    coalesce((SELECT json_agg(run) FROM run), '[]') AS runs,
    (SELECT count(*) FROM worker.campaign_run) AS runs_in_all,
    (SELECT count(*) FROM (
        SELECT FROM "Campaign" c
        WHERE c.status = 'running' AND NOT EXISTS (SELECT FROM worker.campaign_run r WHERE r.campaign_id = c.id)
        LIMIT %(cap)s + 1) AS capped) AS others_running,
    (SELECT extract(epoch FROM min("scheduledAt") - clock.now) FROM "Campaign" WHERE status = 'scheduled')::float8
        AS next_campaign_seconds,
    -- ordered, so that it is by index also when the server's statistics are of a time with many such rows
    (SELECT count(*) FROM (
        SELECT FROM "CallQueue" WHERE status = 'pending' ORDER BY "tenantId" LIMIT %(cap)s + 1) AS capped)
        AS calls_queued,
    (SELECT extract(epoch FROM min(GREATEST("scheduledFor", "nextRetryAt")) - clock.now) FROM "CallQueue"
     WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > clock.now)::float8 AS next_call_seconds,
    (SELECT count(*) FROM worker.call_claim WHERE ask_at IS NULL) AS calls_in_hand,
    (SELECT count(*) FROM (
        SELECT FROM worker.call_claim WHERE ask_at IS NOT NULL LIMIT %(cap)s + 1) AS capped) AS calls_in_doubt,
    (SELECT count(*) FROM (SELECT FROM worker.unconfirmed_send LIMIT %(cap)s + 1) AS capped) AS messages_in_doubt,
    (SELECT count(*) FROM (SELECT FROM worker.notice LIMIT %(cap)s + 1) AS capped) AS notices
FROM clock;
