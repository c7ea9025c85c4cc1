-- Statements of the reminders job. %(now)s is UTC without zone, as in the whole CRM.

-- name: tenants  The tenants that saved reminders and did not switch them off, with the users they name and a sender.
WITH template AS (
    SELECT DISTINCT ON ("tenantId") "tenantId", id AS template_id
    FROM "EmailTemplate"
    WHERE type = 'reminder' AND "isActive"
    ORDER BY "tenantId", "isDefault", "createdAt" DESC, id
)
SELECT t.id AS tenant_id, t.name AS tenant_name,
       jsonb_build_object(
           'leadReminders', t.settings -> 'leadReminders', 'mail', t.settings -> 'mail',
           'whatsapp', t.settings -> 'whatsapp',
           'openai', jsonb_build_object('companyName', t.settings #> '{openai,companyName}')
       ) AS tenant_settings,
       sender.*, named.users, stage.stages, template.template_id
FROM "Tenant" t
LEFT JOIN template ON template."tenantId" = t.id
LEFT JOIN LATERAL (
    SELECT u.id AS user_id, u.name AS user_name, u.email AS user_email, u."googleEmail" AS google_email,
           u."gmailAccessToken" AS gmail_access_token, u."gmailRefreshToken" AS gmail_refresh_token,
           -- what Python cannot hold has expired
           CASE WHEN u."gmailTokenExpiry" BETWEEN '1970-01-01' AND '9000-01-01' THEN u."gmailTokenExpiry" END
               AS gmail_token_expiry
    FROM "User" u
    WHERE u."tenantId" = t.id AND u."isActive"
    ORDER BY u.role <> 'ADMIN', u."createdAt", u.id
    LIMIT 1
) AS sender ON true
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(u.id, jsonb_build_object('name', u.name, 'email', u.email)) AS users
    FROM "User" u
    WHERE u."tenantId" = t.id AND u."isActive" AND t.settings #> '{leadReminders,recipientUserIds}' ? u.id
) AS named ON true
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(p.slug, p.id) AS stages FROM "PipelineStage" p WHERE p."tenantId" = t.id
) AS stage ON true
WHERE t.settings #> '{leadReminders,enabled}' NOT IN ('false', 'null')
   OR jsonb_typeof(t.settings -> 'leadReminders') NOT IN ('object', 'null')
ORDER BY t.id;

-- name: claim  Claims a digest for each recipient who has leads to be reminded of, in one transaction of two statements.
SELECT pg_advisory_xact_lock(hashtext('worker.lead_reminder'));
-- Only one worker claims at a time: a statement sees what was committed before it began, so it would claim again what
-- another worker claims, sends and settles meanwhile.
WITH recipient AS MATERIALIZED (
    SELECT row_number() OVER () AS number, r.*
    FROM jsonb_to_recordset(%(recipients)s::jsonb) AS r (
        tenant_id text, channel text, address text, quiet_since timestamp, reminded_since timestamp,
        stage_ids text[], content jsonb
    )
    WHERE NOT EXISTS (
        SELECT FROM worker.notice n
        WHERE n.job = %(job)s AND n.tenant_id = r.tenant_id AND n.channel = r.channel AND n.address = r.address
    ) AND NOT EXISTS (
        SELECT FROM worker.suppression s
        WHERE s.tenant_id = r.tenant_id AND s.channel = r.channel
          AND s.address = worker.address(r.channel, r.address, '+' || r.address)
          AND s.source <> 'unsubscribe' AND -- that is from campaigns
              -- include: still_suppressed
    )
), due AS MATERIALIZED (
    -- A full join is hashed or merged. An anti join becomes nested loops, because the planner expects a row or two:
    -- half a minute for half a million leads.
    SELECT r.number, quiet.id, row_number() OVER longest AS rank, count(*) OVER (PARTITION BY r.number) AS total
    FROM recipient r
    CROSS JOIN LATERAL (
        SELECT lead.id, lead.quiet_at
        FROM (
            SELECT l.id, GREATEST(l."createdAt", l."lastContactedAt") AS quiet_at
            FROM "Lead" l
            WHERE l."tenantId" = r.tenant_id AND l."stageId" = ANY (r.stage_ids)
              AND GREATEST(l."createdAt", l."lastContactedAt") <= r.quiet_since
        ) AS lead
        FULL JOIN (
            SELECT m.lead_id AS id
            FROM worker.lead_reminder m
            WHERE m.tenant_id = r.tenant_id AND m.channel = r.channel AND m.address = r.address
              AND m.reminded_at > r.reminded_since
        ) AS reminded USING (id)
        WHERE reminded.id IS NULL
    ) AS quiet
    WINDOW longest AS (PARTITION BY r.number ORDER BY quiet.quiet_at, quiet.id)
), digest AS (
    SELECT d.number, d.total,
           jsonb_agg(jsonb_build_array(left(l.name, 200), left(l.email, 200), left(l.phone, 200)) ORDER BY d.rank)
               AS leads
    FROM due d JOIN recipient r USING (number) JOIN "Lead" l ON l.id = d.id AND l."tenantId" = r.tenant_id
    WHERE d.rank <= %(listed)s
    GROUP BY d.number, d.total
), claimed AS (
    INSERT INTO worker.notice
        (id, job, tenant_id, channel, address, content, created_at, due_at, holder, renewed_at)
    SELECT gen_random_uuid(), %(job)s, r.tenant_id, r.channel, r.address,
           r.content || jsonb_build_object('leadsCount', digest.total, 'leads', digest.leads),
           %(now)s, %(now)s, %(holder)s, statement_timestamp() AT TIME ZONE 'UTC'
    FROM recipient r JOIN digest USING (number)
    ON CONFLICT DO NOTHING
    RETURNING *
), remembered AS (
    INSERT INTO worker.lead_reminder (tenant_id, channel, address, lead_id, reminded_at, notice_id)
    SELECT c.tenant_id, c.channel, c.address, due.id, %(now)s, c.id
    FROM claimed c JOIN recipient r USING (tenant_id, channel, address) JOIN due USING (number)
    ON CONFLICT (tenant_id, channel, address, lead_id)
        DO UPDATE SET reminded_at = excluded.reminded_at, notice_id = excluded.notice_id
)
SELECT id::text, tenant_id, channel, address, content, created_at, attempts, handed_over
FROM claimed
ORDER BY id; -- at random: no recipient has to wait behind the same failing ones each time

-- name: forget  Deletes digests that were not sent, and the memory of their leads: those are due again.
WITH gone AS (
    DELETE FROM worker.notice WHERE id = ANY (%(ids)s::uuid[]) AND holder = %(holder)s
    RETURNING id, tenant_id, channel, address
), due_again AS (
    DELETE FROM worker.lead_reminder m USING gone
    WHERE m.tenant_id = gone.tenant_id AND m.channel = gone.channel AND m.address = gone.address
      AND m.notice_id = gone.id
)
SELECT id::text FROM gone;

-- name: templates  E-mail templates that digests are made from, no more than %(most)s bytes of them (at least one).
SELECT id, tenant_id, bytes,
       -- one that is larger than any message may be is not read
       CASE WHEN bytes <= %(largest)s THEN subject END AS subject,
       CASE WHEN bytes <= %(largest)s THEN "htmlBody" END AS html
FROM (
    SELECT size.*, sum(least(size.bytes, %(largest)s)) OVER (ORDER BY size.bytes, size.id) AS until_here
    FROM (
        SELECT t.id, t."tenantId" AS tenant_id, t.subject, t."htmlBody",
               octet_length(t.subject) + octet_length(t."htmlBody") AS bytes
        FROM unnest(%(tenant_ids)s::text[], %(ids)s::text[]) AS wanted (tenant_id, id)
        JOIN "EmailTemplate" t ON t.id = wanted.id AND t."tenantId" = wanted.tenant_id
    ) AS size
) AS listed
WHERE until_here <= %(most)s OR until_here = least(bytes, %(largest)s);

-- name: count_template  Counts the digests that a template was used for; skipped while another session has it locked.
UPDATE "EmailTemplate"
SET "usageCount" = LEAST("usageCount"::bigint + %(used)s, 2147483647), "lastUsedAt" = %(now)s, "updatedAt" = %(now)s
WHERE id = (
    SELECT id FROM "EmailTemplate" WHERE id = %(template_id)s AND "tenantId" = %(tenant_id)s
    FOR NO KEY UPDATE SKIP LOCKED
);

-- name: drop_memory  Forgets deleted leads, and reminders longer ago than any checkIntervalHours.
DELETE FROM worker.lead_reminder
WHERE ctid = ANY (ARRAY (
    SELECT m.ctid
    FROM worker.lead_reminder m LEFT JOIN "Lead" l ON l.id = m.lead_id AND l."tenantId" = m.tenant_id
    WHERE l.id IS NULL OR m.reminded_at < %(oldest)s
));
