-- Statements of the trial job. %(now)s is UTC without zone, as in the whole CRM.

-- name: lock_expired  Locks the expired trials with their active users; a tenant with a locked row is left.
WITH expired AS (
    -- FOR UPDATE: until this transaction ends the CRM cannot add a user, who would stay active
    SELECT id FROM "Tenant"
    WHERE plan = 'FREE' AND status IN ('ACTIVE', 'TRIAL') AND "subscriptionEnd" < %(now)s
    FOR UPDATE SKIP LOCKED
), active AS (
    SELECT u."tenantId" AS id FROM "User" u JOIN expired e ON e.id = u."tenantId" WHERE u."isActive"
), free AS (
    SELECT u."tenantId" AS id FROM "User" u JOIN expired e ON e.id = u."tenantId" WHERE u."isActive"
    FOR NO KEY UPDATE OF u SKIP LOCKED
)
-- counted rather than joined: linear, whatever sizes the planner expects
SELECT id FROM (
    SELECT id, 0 AS missed FROM expired UNION ALL SELECT id, 1 FROM active UNION ALL SELECT id, -1 FROM free
) AS locks
GROUP BY id HAVING sum(missed) = 0;

-- name: supersede  Deletes notifications of these tenants about an earlier suspension that were not sent yet.
DELETE FROM worker.notice WHERE id IN (
    SELECT id FROM worker.notice
    WHERE job = 'trial' AND tenant_id = ANY (%(ids)s::text[]) AND holder IS NULL AND NOT handed_over
    FOR UPDATE SKIP LOCKED
);

-- name: suspend  Suspends the locked tenants with their users, and writes down who has to be notified.
WITH suspended AS (
    UPDATE "Tenant" SET status = 'SUSPENDED', "updatedAt" = %(now)s
    WHERE id = ANY (%(ids)s::text[])
    -- cut to more than any address or name that is shown, and to what an index and a jsonb can take
    RETURNING id, left(name, 200) AS name, left(slug, 200) AS slug, left(btrim("contactEmail"), 320) AS contact,
              "subscriptionEnd" AS ended_at
), deactivated AS (
    UPDATE "User" SET "isActive" = false, "updatedAt" = %(now)s
    WHERE "tenantId" = ANY (%(ids)s::text[]) AND "isActive"
    RETURNING id
), writer AS (
    SELECT DISTINCT ON ("tenantId") "tenantId" AS tenant_id, id FROM "User"
    WHERE "tenantId" = ANY (%(ids)s::text[])
    ORDER BY "tenantId", role = 'ADMIN' DESC, "createdAt", id
), contacts AS (
    INSERT INTO worker.notice (id, job, tenant_id, channel, address, content, created_at, due_at, renewed_at)
    SELECT gen_random_uuid(), 'trial', s.id, 'email', s.contact,
           jsonb_build_object('name', s.name, 'slug', s.slug, 'ended_at', s.ended_at, 'user_id', w.id),
           %(now)s, %(now)s, %(now)s
    FROM suspended s LEFT JOIN writer w ON w.tenant_id = s.id
    ON CONFLICT (job, tenant_id, channel, address) DO NOTHING
), listed AS (
    SELECT jsonb_agg(jsonb_build_object('name', name, 'slug', slug, 'contact', contact, 'ended_at', ended_at)
                     ORDER BY ended_at, id) AS tenants
    FROM (SELECT * FROM suspended ORDER BY ended_at, id LIMIT %(listed)s) AS first
), owner AS (
    INSERT INTO worker.notice (id, job, tenant_id, channel, address, content, created_at, due_at, renewed_at)
    SELECT gen_random_uuid(), 'trial', NULL, 'email', %(owner)s,
           jsonb_build_object('count', (SELECT count(*) FROM suspended), 'tenants', tenants), %(now)s, %(now)s, %(now)s
    FROM listed
    WHERE %(owner)s::text IS NOT NULL
)
SELECT (SELECT count(*)::integer FROM suspended) AS tenants, (SELECT count(*)::integer FROM deactivated) AS users;

-- name: any_expired  Whether a tenant was left to the next tick.
SELECT EXISTS (
    SELECT FROM "Tenant"
    WHERE plan = 'FREE' AND status IN ('ACTIVE', 'TRIAL') AND "subscriptionEnd" < %(now)s
) AS found;

-- name: drop_stale  Deletes notifications that are no longer true: too old, or the tenant is not suspended now.
DELETE FROM worker.notice n
WHERE n.job = 'trial' AND n.holder IS NULL AND (
    n.created_at < %(oldest)s
    OR n.tenant_id IS NOT NULL
       AND NOT EXISTS (SELECT FROM "Tenant" t WHERE t.id = n.tenant_id AND t.status = 'SUSPENDED')
)
RETURNING n.tenant_id, n.created_at < %(oldest)s AS too_old;
