-- Statements about quotas. %(now)s is UTC without zone.

-- name: reserve  Reserves messages of an account, as many as are left. A tenant's share counts while there are other tenants;
-- a campaign leaves what waiting notifications need, but for those of a job that has not run for two days.
SELECT worker.reserve(
    %(account_kind)s, %(account)s, %(tenant_id)s, %(want)s, %(limit)s,
    CASE WHEN %(is_campaign)s THEN %(kept_back)s + (
        SELECT count(*) FROM worker.notice n
        WHERE n.waits_for = %(account_kind)s || ' ' || %(account)s
          AND n.due_at > %(now)s::timestamp - interval '2 days'
    )::integer ELSE 0 END,
    CASE WHEN %(is_campaign)s AND EXISTS (SELECT FROM "Tenant" t WHERE t.id <> %(tenant_id)s)
        THEN %(share)s::integer END,
    %(now)s::timestamp
) AS granted;

-- name: give_back  Messages that were reserved in this hour and did not leave.
UPDATE worker.quota SET used = greatest(used - %(number)s, 0)
WHERE account_kind = %(account_kind)s AND account = %(account)s AND tenant_id = %(tenant_id)s AND hour = %(hour)s;

-- name: used  What an account, and one tenant of it, used in each hour that counts, the oldest first.
-- One row without an hour where nothing was used.
SELECT used.*, shared.is_shared
FROM (SELECT EXISTS (SELECT FROM "Tenant" t WHERE t.id <> %(tenant_id)s) AS is_shared) AS shared
LEFT JOIN (
    SELECT hour, sum(used)::integer AS used,
           coalesce(sum(used) FILTER (WHERE tenant_id = %(tenant_id)s), 0)::integer AS used_by_tenant
    FROM worker.quota
    WHERE account_kind = %(account_kind)s AND account = %(account)s
      AND hour BETWEEN date_trunc('hour', %(now)s::timestamp) - interval '24 hours'
                   AND date_trunc('hour', %(now)s::timestamp) + interval '24 hours'
    GROUP BY hour
) AS used ON true
ORDER BY used.hour;

-- name: used_ratios  How much the fullest account of each kind has used of its limit.
SELECT account_kind, max(used / most)::float8 AS ratio
FROM (
    SELECT account_kind, sum(used) AS used, (array_agg(most ORDER BY hour DESC))[1]::numeric AS most
    FROM worker.quota
    WHERE hour BETWEEN date_trunc('hour', %(now)s::timestamp) - interval '24 hours'
                   AND date_trunc('hour', %(now)s::timestamp) + interval '24 hours'
    GROUP BY account_kind, account
) AS accounts
GROUP BY account_kind;

-- name: drop_old  Hours of accounts that nothing is sent through any more, and those of a clock that was far ahead.
WITH numbers AS (
    DELETE FROM worker.whatsapp_number WHERE read_at < %(now)s::timestamp - interval '30 days'
)
DELETE FROM worker.quota
WHERE hour < %(now)s::timestamp - interval '3 days' OR hour > %(now)s::timestamp + interval '3 days';

-- name: other_campaigns  Whether other WhatsApp campaigns of a tenant sent something within a day.
SELECT EXISTS (
    SELECT FROM "Campaign" c
    WHERE c."tenantId" = %(tenant_id)s AND c.channel = 'whatsapp' AND c.id <> %(campaign_id)s
      AND c."updatedAt" >= date_trunc('hour', %(now)s::timestamp) - interval '24 hours' AND c."sentCount" > 0
) AS found;

-- name: count_once  People of a batch whom other WhatsApp campaigns of the tenant wrote to within a day: they count in the
-- hour of the batch, and no more in the earlier one. The recipients of the others are read once, not once for each person.
WITH batch AS MATERIALIZED (
    SELECT p.id, p."recipientPhone" AS phone, p."sentAt" AS sent_at FROM "CampaignRecipient" p
    WHERE p.id = ANY (%(ids)s::text[]) AND p."campaignId" || '' = %(campaign_id)s
      AND p."tenantId" || '' = %(tenant_id)s AND p."sentAt" IS NOT NULL
      AND p.status || '' NOT IN ('pending', 'sending', 'failed')  -- it has the time of a message before this batch
), earlier AS MATERIALIZED (
    SELECT p."recipientPhone" AS phone, p."sentAt" AS sent_at FROM "CampaignRecipient" p
    WHERE p."campaignId" = ANY (ARRAY(
              SELECT c.id FROM "Campaign" c
              WHERE c."tenantId" = %(tenant_id)s AND c.channel = 'whatsapp' AND c.id <> %(campaign_id)s
                AND c."updatedAt" >= date_trunc('hour', %(now)s::timestamp) - interval '24 hours'
                AND c."sentCount" > 0
          ))
      AND p."tenantId" || '' = %(tenant_id)s
      AND p."sentAt" >= date_trunc('hour', %(now)s::timestamp) - interval '24 hours'
      AND coalesce(p."recipientPhone" IN (SELECT phone FROM batch), false)  -- as no join: by a hash table
), again AS (
    -- earlier: of two campaigns at the same time, which count each other, only the later one does
    SELECT DISTINCT ON (batch.id) batch.id, date_trunc('hour', earlier.sent_at) AS hour
    FROM batch JOIN earlier ON earlier.phone = batch.phone AND earlier.sent_at < batch.sent_at
    ORDER BY batch.id, earlier.sent_at DESC
)
UPDATE worker.quota q SET used = greatest(q.used - counted.number, 0)
FROM (SELECT hour, count(*)::integer AS number FROM again GROUP BY hour) AS counted
WHERE q.account_kind = %(account_kind)s AND q.account = %(account)s AND q.tenant_id = %(tenant_id)s
  AND q.hour = counted.hour;

-- name: number  How many people a tenant's WhatsApp number may write to, if that was read since then.
SELECT people, read_at FROM worker.whatsapp_number
WHERE tenant_id = %(tenant_id)s AND phone_id = %(phone_id)s AND read_at > %(since)s;

-- name: numbers  All limits that were read since then.
SELECT tenant_id, people FROM worker.whatsapp_number WHERE people IS NOT NULL AND read_at > %(since)s;

-- name: keep_number  What Meta said about a number.
INSERT INTO worker.whatsapp_number AS n (tenant_id, phone_id, people, quality, read_at)
VALUES (%(tenant_id)s, %(phone_id)s, %(people)s, %(quality)s, %(now)s)
ON CONFLICT (tenant_id) DO UPDATE
SET phone_id = excluded.phone_id, people = excluded.people, quality = excluded.quality, read_at = excluded.read_at;

-- name: number_unread  Meta did not say: what is known of the same number stays, and it is not asked again at once.
INSERT INTO worker.whatsapp_number AS n (tenant_id, phone_id, people, quality, read_at)
VALUES (%(tenant_id)s, %(phone_id)s, NULL, '', %(now)s)
ON CONFLICT (tenant_id) DO UPDATE
SET phone_id = excluded.phone_id, read_at = excluded.read_at,
    people = CASE WHEN n.phone_id = excluded.phone_id THEN n.people END,
    quality = CASE WHEN n.phone_id = excluded.phone_id THEN n.quality ELSE '' END;
