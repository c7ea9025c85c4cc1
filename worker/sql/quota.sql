-- Statements about quotas. %(now)s is UTC without zone.

-- name: reserve  Reserves messages of an account, as many as are left. A tenant's share counts while there are other tenants;
-- a campaign leaves what waiting notifications need.
SELECT worker.reserve(
    %(account_kind)s, %(account)s, %(tenant_id)s, %(want)s, %(limit)s,
    CASE WHEN %(is_campaign)s THEN %(kept_back)s + (
        SELECT count(*) FROM worker.notice n WHERE n.waits_for = %(account_kind)s || ' ' || %(account)s
    )::integer ELSE 0 END,
    CASE WHEN %(is_campaign)s AND EXISTS (SELECT FROM "Tenant" t WHERE t.id <> %(tenant_id)s)
        THEN %(share)s::integer END,
    %(now)s::timestamp
) AS granted;

-- name: give_back  Messages that were reserved in this hour and did not leave.
UPDATE worker.quota SET used = greatest(used - %(number)s, 0)
WHERE account_kind = %(account_kind)s AND account = %(account)s AND tenant_id = %(tenant_id)s AND hour = %(hour)s;

-- name: used  What an account, and one tenant of it, used in each hour that counts, the oldest first.
SELECT hour, sum(used)::integer AS used,
       coalesce(sum(used) FILTER (WHERE tenant_id = %(tenant_id)s), 0)::integer AS used_by_tenant,
       EXISTS (SELECT FROM "Tenant" t WHERE t.id <> %(tenant_id)s) AS is_shared
FROM worker.quota
WHERE account_kind = %(account_kind)s AND account = %(account)s
  AND hour >= date_trunc('hour', %(now)s::timestamp) - interval '24 hours'
GROUP BY hour HAVING sum(used) > 0 ORDER BY hour;

-- name: drop_old  Hours of accounts that nothing is sent through any more.
DELETE FROM worker.quota WHERE hour < %(now)s::timestamp - interval '3 days';
