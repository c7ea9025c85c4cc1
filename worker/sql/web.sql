-- Statements of the status page and bin/status. Each is cheap, however long the CRM's tables are.

-- name: work_in_progress  Running campaigns, and how much waits: each part by an index, no count above %(cap)s + 1.
-- Recipients are not counted: the campaign's own row has the numbers.
WITH clock AS (
    SELECT statement_timestamp() AT TIME ZONE 'UTC' AS now
), campaign AS (
    SELECT c.id, c.name, c.channel, c."totalRecipients" AS total, c."sentCount" AS sent, c."failedCount" AS failed,
           extract(epoch FROM clock.now - r.started_at)::float8 AS running_seconds,
           extract(epoch FROM r.next_batch_at - clock.now)::float8 AS next_batch_seconds, r.prepared,
           r.holds AS deferrals, r.waits_for, extract(epoch FROM r.waits_until - clock.now)::float8 AS waits_seconds,
           -- what was sent before the worker took over says nothing about the worker's rate
           EXISTS (
               SELECT FROM "CampaignLog" l
               WHERE l."campaignId" = c.id AND l."tenantId" = r.tenant_id
                 AND l.action = 'resumed' AND l."createdAt" = r.started_at
           ) AS adopted,
               -- include: later_retries
           AS retries
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id, clock
    WHERE c.status = 'running'
    ORDER BY r.started_at, c.id LIMIT %(campaigns)s
), due AS (
    SELECT c.id, c.name, c.channel, c."totalRecipients" AS total, c."tenantId" AS tenant_id, c."userId" AS user_id,
           extract(epoch FROM c."scheduledAt" - clock.now)::float8 AS due_seconds
    FROM "Campaign" c, clock
    WHERE c.status = 'scheduled' AND c."scheduledAt" > clock.now AND c."scheduledAt" < '9000-01-01'
    ORDER BY c."scheduledAt", c.id LIMIT %(scheduled)s
), account AS (  -- what each leaves through, as worker/sending/accounts.py chooses it
    SELECT planned.id, t.id AS tenant_id, s.timezone, n.people,
           CASE WHEN planned.channel = 'whatsapp' THEN 'whatsapp'
                WHEN u."gmailAccessToken" <> '' AND u."gmailRefreshToken" <> '' AND t.settings -> 'mail' ? 'oauth'
                    THEN 'gmail' ELSE 'smtp' END AS kind,
           lower(coalesce(nullif(u."googleEmail", ''), u.email, '')) AS address
    FROM (
        SELECT c.id, c.channel, r.tenant_id, c."userId" AS user_id
        FROM campaign JOIN "Campaign" c ON c.id = campaign.id JOIN worker.campaign_run r ON r.campaign_id = c.id
        UNION ALL SELECT id, channel, tenant_id, user_id FROM due
    ) AS planned
    JOIN "Tenant" t ON t.id = planned.tenant_id
    LEFT JOIN "User" u ON u.id = planned.user_id AND u."tenantId" = t.id
    LEFT JOIN "CallSettings" s ON s."tenantId" = t.id
    LEFT JOIN worker.whatsapp_number n
        ON n.tenant_id = t.id AND n.read_at > (SELECT now FROM clock) - interval '1 day'
), used AS (
    SELECT account.*, EXISTS (SELECT FROM "Tenant" t WHERE t.id <> account.tenant_id) AS is_shared, coalesce((
        SELECT json_agg(hours ORDER BY hour) FROM (
            SELECT q.hour, sum(q.used)::integer AS used,
                   coalesce(sum(q.used) FILTER (WHERE q.tenant_id = account.tenant_id), 0)::integer AS used_by_tenant
            FROM worker.quota q
            WHERE q.account_kind = account.kind AND q.hour >= date_trunc('hour', clock.now) - interval '24 hours'
              AND CASE account.kind WHEN 'whatsapp' THEN q.account = account.tenant_id
                                    WHEN 'gmail' THEN q.account = account.tenant_id || ' ' || account.address
                                    ELSE true END
            GROUP BY q.hour
        ) AS hours
    ), '[]') AS hours
    FROM account, clock
), recent AS (
    SELECT latest."campaignId", latest."tenantId", latest.message, latest."createdAt"
    FROM clock, (
        SELECT l."campaignId", l."tenantId", l.action, l.message, l."createdAt"
        FROM "CampaignLog" l ORDER BY l."createdAt" DESC LIMIT 1000
    ) AS latest
    WHERE latest."createdAt" > clock.now - interval '1 hour' AND latest.action IN ('completed', 'failed')
    ORDER BY latest."createdAt" DESC LIMIT %(campaigns)s
), shown AS (
    SELECT campaign.id, r.tenant_id, campaign.name, campaign.channel, 'running' AS status, '' AS reason
    FROM campaign JOIN worker.campaign_run r ON r.campaign_id = campaign.id
    UNION ALL
    (SELECT DISTINCT ON (c.id) c.id, c."tenantId", c.name, c.channel, c.status,
            CASE WHEN c.status = 'failed' THEN recent.message ELSE '' END
     FROM recent JOIN "Campaign" c ON c.id = recent."campaignId" AND c."tenantId" = recent."tenantId"
     WHERE c.status IN ('completed', 'failed')
     ORDER BY c.id, recent."createdAt" DESC)
), failing AS (
    SELECT shown.id, shown.name, shown.channel, shown.status, shown.reason, (
        SELECT json_agg(frequent ORDER BY frequent.number DESC)
        FROM (
            SELECT kind, pattern, count(*) AS number, sum(count(*)) OVER (PARTITION BY kind)::int AS of_kind,
                   row_number() OVER (PARTITION BY kind ORDER BY count(*) DESC, pattern) AS place
            FROM (
                SELECT f.recipient_id, f.kind, f.pattern FROM worker.failure f
                WHERE f.campaign_id = shown.id AND f.tenant_id = shown.tenant_id
                ORDER BY f.failed_at DESC LIMIT %(failures)s
            ) AS latest
            CROSS JOIN LATERAL ( -- the CRM may have set it back
                SELECT FROM "CampaignRecipient" p
                WHERE p.id = latest.recipient_id AND p.status || '' = 'failed'
                  AND p."campaignId" || '' = shown.id AND p."tenantId" || '' = shown.tenant_id
                OFFSET 0
            ) AS still_failed
            GROUP BY kind, pattern
        ) AS frequent
        WHERE frequent.place <= %(replies)s
    ) AS replies
    FROM shown
)
SELECT
    coalesce((SELECT json_agg(campaign) FROM campaign), '[]') AS campaigns,
    coalesce((
        SELECT json_agg(json_build_object('id', id, 'name', name, 'channel', channel, 'total', total,
                                          'due_seconds', due_seconds)) FROM due
    ), '[]') AS scheduled,
    coalesce((SELECT json_agg(used) FROM used), '[]') AS accounts,
    (SELECT now FROM clock) AS now,
    coalesce((SELECT json_agg(failing) FROM failing WHERE replies IS NOT NULL OR status = 'failed'), '[]') AS failures,
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
    waiting.calls AS calls_waiting, waiting.seconds AS calls_wait_seconds,
    (SELECT count(*) FROM worker.call_claim WHERE ask_at IS NULL) AS calls_being_placed,
    (SELECT count(*) FROM (
        SELECT FROM worker.call_claim WHERE ask_at IS NOT NULL LIMIT %(cap)s + 1) AS capped) AS calls_unconfirmed,
    (SELECT count(*) FROM (SELECT FROM worker.unconfirmed_send LIMIT %(cap)s + 1) AS capped) AS messages_unconfirmed,
    (SELECT count(*) FROM (SELECT FROM worker.notice LIMIT %(cap)s + 1) AS capped) AS notifications
FROM clock, LATERAL (
    -- for the hours of their numbers
    SELECT count(*) AS calls, extract(epoch FROM min(q.at) - clock.now)::float8 AS seconds
    FROM (
        SELECT GREATEST("scheduledFor", "nextRetryAt") AS at FROM "CallQueue"
        WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > clock.now
          AND starts_with("errorMessage", %(waiting)s)
        ORDER BY GREATEST("scheduledFor", "nextRetryAt") LIMIT %(cap)s + 1
    ) AS q
) AS waiting;

-- name: refused_calls  What tenants have to change before their calls can be placed, by the reasons of the latest calls.
SELECT t.name AS tenant, what.text AS what, count(*) AS calls
FROM (
    (SELECT q."tenantId", q."errorMessage" FROM "CallQueue" q
     WHERE q.status = 'pending' AND GREATEST(q."scheduledFor", q."nextRetryAt") > statement_timestamp() AT TIME ZONE 'UTC'
     ORDER BY GREATEST(q."scheduledFor", q."nextRetryAt") LIMIT %(latest)s)
    UNION ALL
    (SELECT q."tenantId", q."errorMessage" FROM "CallQueue" q
     WHERE q.status IN ('completed', 'failed', 'cancelled')
       AND q."updatedAt" > statement_timestamp() AT TIME ZONE 'UTC' - interval '1 hour'
     ORDER BY q."updatedAt" DESC LIMIT %(latest)s)
) AS recent
JOIN "Tenant" t ON t.id = recent."tenantId",
LATERAL (SELECT split_part(recent."errorMessage", %(what_to_do)s, 2) AS text) AS what
WHERE what.text <> ''
GROUP BY t.id, what.text ORDER BY calls DESC, t.id LIMIT 5;
