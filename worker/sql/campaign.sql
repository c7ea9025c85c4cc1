-- Statements of the campaign job. %(now)s is UTC without zone, as in the whole CRM.

-- name: survey  What there is to do: the one statement of an idle tick.
SELECT
    (SELECT min("scheduledAt") FROM "Campaign"
     WHERE status = 'scheduled' AND "scheduledAt" < '9000-01-01') AS next_scheduled, -- later: Python cannot hold it
    EXISTS (SELECT FROM "Campaign" WHERE status = 'running')                AS any_running,
    EXISTS (SELECT FROM worker.campaign_batch)                              AS any_batch,
    (SELECT min(next_batch_at) FROM worker.campaign_run)                    AS next_batch,
    (SELECT min(ask_at) FROM worker.unconfirmed_send)                       AS next_ask;

-- name: start_due  Moves due campaigns to 'running', as runs of the worker's own.
WITH due AS (
    SELECT id FROM "Campaign"
    WHERE status = 'scheduled' AND "scheduledAt" <= %(now)s
    ORDER BY "scheduledAt" LIMIT 100
    FOR UPDATE SKIP LOCKED
), started AS (
    UPDATE "Campaign" c SET status = 'running', "updatedAt" = %(now)s
    FROM due WHERE c.id = due.id
    RETURNING c.id, c."tenantId", c.name, c.channel, c."totalRecipients"
), run AS (
    INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, next_batch_at, log_rows)
    SELECT id, "tenantId", statement_timestamp() AT TIME ZONE 'UTC', %(now)s,
           -- include: log_rows
    FROM started c
    ON CONFLICT (campaign_id) DO UPDATE
    SET tenant_id = excluded.tenant_id, started_at = excluded.started_at, next_batch_at = excluded.next_batch_at,
        log_rows = excluded.log_rows, prepared = false, position = '', holds = 0, waits_for = NULL, waits_until = NULL
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
    SELECT gen_random_uuid()::text, "tenantId", id, 'started', 'The worker started sending',
           statement_timestamp() AT TIME ZONE 'UTC'
    FROM started
)
SELECT * FROM started;

-- name: disown  Gives up runs that a user paused, stopped, resumed or started: they are not the worker's any more.
DELETE FROM worker.campaign_run r
WHERE NOT EXISTS (
    SELECT FROM "Campaign" c WHERE c.id = r.campaign_id AND c.status = 'running'
) OR
    -- include: changed_by_crm
RETURNING r.campaign_id AS id;

-- name: adopt  Takes over running campaigns that no process seems to send: nothing changed for so many seconds.
WITH orphan AS (
    SELECT c.id FROM "Campaign" c, (
        SELECT statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(quiet_seconds)s) AS since
    ) AS quiet
    WHERE c.status = 'running'
      AND NOT EXISTS (SELECT FROM worker.campaign_run r WHERE r.campaign_id = c.id)
      AND c."updatedAt" <= quiet.since
      AND NOT EXISTS (
          SELECT FROM "CampaignRecipient" p
          WHERE p."campaignId" = c.id AND p."tenantId" = c."tenantId" AND p."updatedAt" > quiet.since
      )
    LIMIT 100
    FOR UPDATE OF c SKIP LOCKED
), adopted AS (
    INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, next_batch_at, log_rows)
    SELECT c.id, c."tenantId", statement_timestamp() AT TIME ZONE 'UTC', %(now)s,
           -- include: log_rows
    FROM "Campaign" c JOIN orphan USING (id)
    ON CONFLICT (campaign_id) DO NOTHING
    RETURNING campaign_id, tenant_id, started_at
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
    SELECT gen_random_uuid()::text, tenant_id, campaign_id, 'resumed',
           'The worker took over: no process was sending', started_at
    FROM adopted
)
SELECT campaign_id AS id FROM adopted;

-- name: ready  The runs that may send a batch now, the longest waiting first.
SELECT campaign_id AS id FROM worker.campaign_run
WHERE next_batch_at <= %(now)s AND NOT campaign_id = ANY (%(busy)s::text[])
ORDER BY next_batch_at LIMIT 50;

-- name: campaign  One campaign with all that its messages are made of, for the tenant that its run was started for.
-- Texts that are larger than any message may be are not read at all.
SELECT c.id, t.id AS "tenantId", c."userId", c.name, c.channel,
       CASE WHEN size.bytes <= %(largest)s THEN c.subject END AS subject,
       CASE WHEN size.bytes <= %(largest)s THEN c."htmlContent" END AS "htmlContent",
       CASE WHEN size.bytes <= %(largest)s THEN c."textContent" ELSE '' END AS "textContent",
       CASE WHEN size.bytes <= %(largest)s THEN c."whatsappCaption" END AS "whatsappCaption",
       CASE WHEN size.bytes <= %(largest)s THEN c."whatsappMediaUrl" END AS "whatsappMediaUrl",
       CASE WHEN size.bytes <= %(largest)s THEN c."whatsappTemplateParams" END AS "whatsappTemplateParams",
       size.bytes AS text_bytes, coalesce(c."tenantId" <> r.tenant_id, false) AS moved,
       c."whatsappMessageType", c."whatsappMediaType", c."whatsappTemplateName", c."whatsappTemplateLanguage",
       c."targetType", c."targetFilters",
       c."utmSource", c."utmMedium", c."utmCampaign", c."utmTerm", c."utmContent", c."platformUtmConfig",
       c."autoTagLinks", c."useShortLinks",
       (SELECT s.timezone FROM "CallSettings" s WHERE s."tenantId" = t.id) AS timezone,
       coalesce(r.prepared, true) AS prepared, coalesce(r.holds, 0) AS backoffs, r.started_at,
       coalesce(r.accepted_at > r.started_at, false) AS has_accepted,
       t.name AS tenant_name, t.settings AS tenant_settings,
       u.id AS user_id, u.name AS user_name, u.email AS user_email, u."googleEmail", u."gmailAccessToken",
       u."gmailRefreshToken",
       -- a time that Python cannot represent is taken as expired
       CASE WHEN u."gmailTokenExpiry" BETWEEN '1970-01-01' AND '9000-01-01' THEN u."gmailTokenExpiry" END
           AS "gmailTokenExpiry"
FROM "Campaign" c
LEFT JOIN worker.campaign_run r ON r.campaign_id = c.id
-- the run's tenant may have been deleted since the CRM gave the campaign to another one
JOIN "Tenant" t ON t.id = coalesce((SELECT o.id FROM "Tenant" o WHERE o.id = r.tenant_id), c."tenantId")
LEFT JOIN "User" u ON u.id = c."userId" AND u."tenantId" = t.id,
LATERAL (
    SELECT coalesce(octet_length(c.subject), 0) + coalesce(octet_length(c."htmlContent"), 0)
         + octet_length(c."textContent") + coalesce(octet_length(c."whatsappCaption"), 0)
         + coalesce(octet_length(c."whatsappMediaUrl"), 0)
         + coalesce(octet_length(c."whatsappTemplateParams"::text), 0) AS bytes
) AS size
WHERE c.id = %(campaign_id)s;

-- name: lock_unprepared  Lets one worker at a time prepare a run.
SELECT r.campaign_id,
       -- whatever tenant they name: where the CRM has chosen recipients, nobody else may be written to
       EXISTS (SELECT FROM "CampaignRecipient" p WHERE p."campaignId" = r.campaign_id) AS has_recipients
FROM worker.campaign_run r
WHERE r.campaign_id = %(campaign_id)s AND NOT r.prepared
FOR UPDATE SKIP LOCKED;

-- name: build_targets  The recipients of a campaign that has none, from its target; each address once.
WITH
    -- include: campaign_target
, built AS (
    INSERT INTO "CampaignRecipient" (id, "tenantId", "campaignId", "recipientType", "recipientId",
        "recipientName", "recipientEmail", "recipientPhone", status, "createdAt", "updatedAt")
    -- always by the same id, also when they are built again after a fail-over that forgot them: journals name that id
    SELECT md5(concat_ws(' ', %(campaign_id)s, kind, id))::uuid::text, %(tenant_id)s, %(campaign_id)s, kind, id, name,
           email, phone, 'pending', %(now)s, %(now)s
    FROM reachable WHERE place = 1
    RETURNING 1
)
UPDATE "Campaign" SET "totalRecipients" = (SELECT count(*) FROM built), "updatedAt" = %(now)s
WHERE id = %(campaign_id)s
RETURNING "totalRecipients" AS built;

-- name: fail_duplicates  Fails pending recipients whose address another recipient of the campaign has.
-- One that failed for that reason says nothing when the campaign is prepared again: the one that it gave way to is left.
WITH
    -- include: campaign_duplicates
, failed AS (
    UPDATE "CampaignRecipient" r
    SET status = 'failed', "failedAt" = %(now)s, "updatedAt" = %(now)s,
        "errorMessage" = 'Another recipient of this campaign has the same address'
    FROM numbered n
    WHERE r.id = n.id AND n.place > 1 AND n.status = 'pending' AND r.status = 'pending'
    RETURNING r.id, r."errorMessage" AS reply
), recorded AS (
    INSERT INTO worker.failure (recipient_id, campaign_id, tenant_id, kind, reply, pattern, failed_at)
    SELECT id, %(campaign_id)s, %(tenant_id)s, 'address', reply, reply, %(now)s FROM failed
    ON CONFLICT (recipient_id) DO UPDATE
    SET campaign_id = excluded.campaign_id, tenant_id = excluded.tenant_id, kind = excluded.kind, code = excluded.code,
        reply = excluded.reply, pattern = excluded.pattern, failed_at = excluded.failed_at
)
UPDATE "Campaign" SET "failedCount" = "failedCount" + n.number, "updatedAt" = %(now)s
FROM (SELECT count(*) AS number FROM failed) AS n
WHERE id = %(campaign_id)s AND "tenantId" = %(tenant_id)s AND n.number > 0;

-- name: mark_prepared  From here on the run's recipients may be claimed, from the first one.
UPDATE worker.campaign_run SET prepared = true, position = '' WHERE campaign_id = %(campaign_id)s;

-- name: claim  Takes the next recipients of a run: those whose retry is due, then those never claimed.
-- The pause until the next batch begins here, for all processes. The settlement makes it longer.
WITH run AS (
    SELECT r.campaign_id, r.position
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id
    WHERE r.campaign_id = %(campaign_id)s AND r.prepared AND c.status = 'running'
      AND r.tenant_id = %(tenant_id)s AND c."tenantId" = %(tenant_id)s AND c."userId" = %(user_id)s
      -- else another server has taken over behind the same connection, and may have forgotten what was sent
      AND CASE %(timeline)s::text WHEN '' THEN true
          ELSE starts_with(pg_walfile_name(pg_current_wal_insert_lsn()), %(timeline)s) END
      AND r.next_batch_at <= %(now)s  -- another process may have claimed, or put the run off, since this one looked
      AND NOT
          -- include: changed_by_crm
      -- a session that changed the row while this statement waited for it may have paused and resumed: look again later
      AND c."updatedAt" = (SELECT seen."updatedAt" FROM "Campaign" seen WHERE seen.id = %(campaign_id)s)
    FOR SHARE OF c FOR NO KEY UPDATE OF r  -- in the order of the settlement, or the two could deadlock
), retried AS (
    -- who waited for CAMPAIGN_WINDOW was not deferred
    SELECT q.recipient_id AS id, q.attempts, q.reason <> '' AND NOT starts_with(q.reason, %(outside)s) AS deferred
    FROM run JOIN worker.campaign_retry q ON q.campaign_id = run.campaign_id
    WHERE q.campaign_id = %(campaign_id)s AND q.due_at <= %(now)s
    ORDER BY q.due_at LIMIT (%(size)s + 1) / 2
), fresh AS (
    SELECT p.id
    FROM run, LATERAL (
        SELECT p.id FROM "CampaignRecipient" p
        WHERE p."campaignId" = %(campaign_id)s AND p.status = 'pending' AND p.id > run.position
          AND coalesce(p."tenantId" = %(tenant_id)s, false) -- not by that column's index, and as if true for most
          -- a look at each row's own retry: as a join it would read those of all campaigns
          AND coalesce((SELECT false FROM worker.campaign_retry q WHERE q.recipient_id = p.id), true)
        ORDER BY p.id LIMIT %(size)s - (SELECT count(*) FROM retried)
        FOR UPDATE SKIP LOCKED
    ) AS p
), picked AS (
    SELECT id, 0 AS attempts, false AS deferred FROM fresh UNION ALL SELECT id, attempts, deferred FROM retried
), claimed AS (
    UPDATE "CampaignRecipient" p SET status = 'sending', "updatedAt" = %(now)s
    FROM picked
    WHERE p.id = picked.id
      AND p.id = ANY (ARRAY(SELECT id FROM picked)) AND p.status || '' = 'pending'  -- both: only by primary key
      AND p."campaignId" || '' = %(campaign_id)s AND p."tenantId" || '' = %(tenant_id)s
    RETURNING p.id, p."recipientName" AS name, p."recipientEmail" AS email, p."recipientPhone" AS phone,
              picked.attempts, picked.deferred, worker.address(%(channel)s, p."recipientEmail", p."recipientPhone") AS address
), numbered AS (
    -- the others tell first whether the account is accepted
    SELECT claimed.*, row_number() OVER (ORDER BY deferred) AS number FROM claimed
), stale AS (
    DELETE FROM worker.campaign_retry q USING retried
    WHERE q.recipient_id = retried.id AND NOT EXISTS (
        SELECT FROM "CampaignRecipient" p
        WHERE p.id = retried.id AND p.status IN ('pending', 'sending')
          AND p."campaignId" || '' = %(campaign_id)s AND p."tenantId" || '' = %(tenant_id)s
    )
), moved AS (
    UPDATE worker.campaign_run r
    SET position = greatest(r.position, taken.last_id),
        next_batch_at = CASE WHEN taken.pause_seconds > 0
            THEN %(now)s + make_interval(secs => taken.pause_seconds) ELSE r.next_batch_at END
    FROM (
        SELECT (SELECT max(id) FROM fresh) AS last_id, least(1.0, count(*)::float8 / %(full_size)s::int)
            * %(pause_seconds)s::float8 AS pause_seconds
        FROM claimed
    ) AS taken
    WHERE r.campaign_id = %(campaign_id)s AND (taken.last_id > r.position OR taken.pause_seconds > 0)
), batch AS (
    INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, recipient_ids, may_leave, renewed_at)
    SELECT %(batch_id)s::uuid, %(campaign_id)s, %(holder)s, %(machine)s, %(sender)s, array_agg(id ORDER BY number),
           %(may_leave)s::integer, statement_timestamp() AT TIME ZONE 'UTC'
    FROM numbered HAVING count(*) > 0
)
SELECT c.id, c.name, c.email, c.phone, c.attempts, c.deferred, c.address, s.reason AS opted_out
FROM numbered c
LEFT JOIN LATERAL (
    SELECT s.reason FROM worker.suppression s
    WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND s.address = c.address AND
        -- include: still_suppressed
    LIMIT 1
) AS s ON true
ORDER BY c.number;  -- in the order of recipient_ids, which is that in which they are written to

-- name: advance  Lets more messages of a batch leave, and keeps the outcomes that are known by now: only while its holder
-- has it. The lock makes it wait for take_over, and take_over for it.
INSERT INTO worker.batch_progress (batch_id, may_leave, outcomes)
SELECT b.id, %(may_leave)s::integer, %(outcomes)s
FROM worker.campaign_batch b WHERE b.id = %(batch_id)s::uuid AND b.holder = %(holder)s
FOR SHARE
RETURNING may_leave;

-- name: renew  Renews the lease of batches: their holder is alive.
UPDATE worker.campaign_batch SET renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
WHERE id = ANY (%(ids)s::uuid[]) AND holder = %(holder)s
RETURNING id;

-- name: settle  Writes the outcomes of a batch, once: only while its holder still has it.
WITH own_batch AS (
    SELECT id, campaign_id FROM worker.campaign_batch
    WHERE id = %(batch_id)s AND holder = %(holder)s
    FOR UPDATE
), outcome AS (
    SELECT o.*, own_batch.campaign_id
    FROM own_batch, json_to_recordset(%(outcomes)s::json)
        AS o (id text, status text, message_id text, reason text, attempts int, at timestamp(3))
), settled AS (
    UPDATE "CampaignRecipient" p
    SET status = o.status,
        -- of an earlier message, if the CRM has set the recipient back: one that fails now has none
        "sentAt" = CASE o.status WHEN 'sent' THEN o.at WHEN 'failed' THEN NULL ELSE p."sentAt" END,
        "failedAt" = CASE WHEN o.status = 'failed' THEN o.at END,
        "errorMessage" = CASE WHEN o.status = 'failed' THEN o.reason END,
        "messageId" = coalesce(o.message_id, p."messageId"),
        "updatedAt" = %(now)s
    FROM outcome o
    WHERE p.id = o.id AND o.status <> 'sending'
      AND p.id = ANY (ARRAY(SELECT id FROM outcome)) AND p.status || '' = 'sending'  -- both: only by primary key
      AND p."campaignId" || '' = o.campaign_id AND p."tenantId" || '' = %(tenant_id)s
    RETURNING p.id, p.status
), retries AS (
    INSERT INTO worker.campaign_retry AS q (recipient_id, campaign_id, attempts, due_at, reason)
    SELECT id, campaign_id, attempts, at, coalesce(reason, '') FROM outcome WHERE status = 'pending'
    ON CONFLICT (recipient_id) DO UPDATE
    SET attempts = excluded.attempts, due_at = excluded.due_at,
        reason = coalesce(nullif(excluded.reason, ''), q.reason)  -- who was deferred once comes last in its batch
), no_retries AS (
    DELETE FROM worker.campaign_retry q USING outcome o
    WHERE q.recipient_id = o.id AND o.status <> 'pending'  -- while a provider is asked, unconfirmed_send has the attempts
), to_ask AS (
    INSERT INTO worker.unconfirmed_send (recipient_id, campaign_id, sender, attempts, ask_at)
    SELECT id, campaign_id, %(sender)s, attempts, at FROM outcome WHERE status = 'sending'
    ON CONFLICT (recipient_id) DO UPDATE SET ask_at = excluded.ask_at
), failure AS (
    SELECT f.*, own_batch.campaign_id
    FROM own_batch, json_to_recordset(%(failures)s::json)
        AS f (id text, kind text, code text, reply text, pattern text, at timestamp(3), source text,
              until timestamp(3))
), failed AS (
    INSERT INTO worker.failure (recipient_id, campaign_id, tenant_id, kind, code, reply, pattern, failed_at)
    SELECT f.id, f.campaign_id, %(tenant_id)s, f.kind, f.code, f.reply, f.pattern, f.at
    FROM failure f JOIN settled s ON s.id = f.id
    ON CONFLICT (recipient_id) DO UPDATE
    SET campaign_id = excluded.campaign_id, tenant_id = excluded.tenant_id, kind = excluded.kind,
        code = excluded.code, reply = excluded.reply, pattern = excluded.pattern, failed_at = excluded.failed_at
), suppressed AS (
    INSERT INTO worker.suppression AS s (tenant_id, channel, address, source, reason, campaign_id, code, until, created_at)
    SELECT DISTINCT ON (a.address) %(tenant_id)s, %(channel)s, a.address, a.source,
           coalesce(nullif(a.reply, ''), a.source), a.campaign_id, a.code, a.until, %(now)s
    FROM (
        SELECT f.*, worker.address(%(channel)s, p."recipientEmail", p."recipientPhone") AS address
        FROM failure f JOIN "CampaignRecipient" p
            ON p.id = f.id AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = %(tenant_id)s
        WHERE f.source IS NOT NULL
    ) AS a
    WHERE a.address IS NOT NULL
    ON CONFLICT (tenant_id, channel, address, source) DO UPDATE
    SET reason = excluded.reason, campaign_id = excluded.campaign_id, code = excluded.code, until = excluded.until,
        changed_at = excluded.changed_at, changed_by = excluded.changed_by
    WHERE s.until < coalesce(excluded.until, 'infinity')  -- what ends later stays
), email AS (
    SELECT e.*, %(sender_address)s::text AS sender, 'Campaign' AS entity_type, own_batch.campaign_id AS entity_id,
           %(tenant_id)s::text AS tenant_id,
           (SELECT id FROM "User" WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s) AS user_id
    FROM own_batch, json_to_recordset(%(outbox)s::json)
        AS e (address text, subject text, body text, html text, message_id text, gmail_id text, gmail_thread_id text,
              at timestamp(3))
), outbox AS (
    -- include: email_log
), paced AS (
    UPDATE worker.campaign_run r
    SET next_batch_at = greatest(r.next_batch_at, %(next_batch_at)s),  -- a backoff by another batch stays
        holds = CASE WHEN r.next_batch_at > %(now)s THEN r.holds ELSE %(backoffs)s END,
        waits_for = CASE WHEN r.next_batch_at > %(now)s THEN r.waits_for END,
        accepted_at = greatest(r.accepted_at, %(accepted_at)s::timestamp(3))
    FROM own_batch WHERE r.campaign_id = own_batch.campaign_id
), released AS (
    DELETE FROM worker.campaign_batch b USING own_batch WHERE b.id = own_batch.id
), no_progress AS (
    DELETE FROM worker.batch_progress g USING own_batch WHERE g.batch_id = own_batch.id
), counted AS (
    UPDATE "Campaign" c
    SET "sentCount" = c."sentCount" + n.sent, "failedCount" = c."failedCount" + n.failed, "updatedAt" = %(now)s
    FROM own_batch, (
        SELECT count(*) FILTER (WHERE status = 'sent') AS sent, count(*) FILTER (WHERE status = 'failed') AS failed
        FROM settled
    ) AS n
    WHERE c.id = own_batch.campaign_id AND c."tenantId" || '' = %(tenant_id)s
    RETURNING c."sentCount", c."failedCount", c."totalRecipients", c.status
)
SELECT counted.* FROM own_batch LEFT JOIN counted ON true;

-- name: release_refused  After the settlement of a batch, in its transaction: who was refused in it is pending again if
-- its run has failed meanwhile, or another one has begun since, because no streak counts them any more.
WITH refused AS (
    SELECT f.recipient_id, f.campaign_id, f.tenant_id
    FROM worker.failure f
        JOIN "Campaign" c ON c.id = f.campaign_id AND c."tenantId" || '' = f.tenant_id
        LEFT JOIN worker.campaign_run r ON r.campaign_id = f.campaign_id AND r.tenant_id = f.tenant_id
    WHERE f.recipient_id = ANY (%(refused)s::text[]) AND f.tenant_id = %(tenant_id)s
      AND f.kind = 'refused' AND f.code NOT LIKE '%% 5.2.2'
      AND (c.status = 'failed' OR r.started_at >= f.failed_at)
), released AS (
    -- include: released_refusals
), forgotten AS (
    DELETE FROM worker.failure f USING released WHERE f.recipient_id = released.id
)
UPDATE "Campaign" c SET "failedCount" = greatest(c."failedCount" - n.number, 0), "updatedAt" = %(now)s
FROM (SELECT campaign_id, count(*) AS number FROM released GROUP BY campaign_id) AS n
WHERE c.id = n.campaign_id AND c."tenantId" || '' = %(tenant_id)s
RETURNING c."sentCount", c."failedCount", c."totalRecipients", c.status;

-- name: file_emails  Files some of the e-mails of a batch that is settled in the same transaction.
WITH email AS (
    SELECT e.*, %(sender_address)s::text AS sender, 'Campaign' AS entity_type, b.campaign_id AS entity_id,
           %(tenant_id)s::text AS tenant_id,
           (SELECT id FROM "User" WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s) AS user_id
    FROM worker.campaign_batch b, json_to_recordset(%(outbox)s::json)
        AS e (address text, subject text, body text, html text, message_id text, gmail_id text, gmail_thread_id text,
              at timestamp(3))
    WHERE b.id = %(batch_id)s AND b.holder = %(holder)s
)
-- include: email_log
;

-- name: postpone  Nothing of the run can be claimed before this time, or a later one that another process has set.
UPDATE worker.campaign_run
SET next_batch_at = greatest(next_batch_at, %(next_batch_at)s),
    holds = CASE WHEN next_batch_at > %(now)s THEN holds ELSE %(backoffs)s END,
    waits_for = CASE WHEN next_batch_at > %(now)s THEN waits_for END
WHERE campaign_id = %(campaign_id)s;

-- name: look_again  The run is looked at again then; what it waits for stays.
UPDATE worker.campaign_run SET next_batch_at = greatest(next_batch_at, %(next_batch_at)s)
WHERE campaign_id = %(campaign_id)s;

-- name: wait_for  Nothing of the run may be sent for a reason that its user cares about, which is told once in a wait.
WITH run AS (
    SELECT r.campaign_id, r.tenant_id, r.waits_for
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id AND c."tenantId" = r.tenant_id
    WHERE r.campaign_id = %(campaign_id)s AND c.status = 'running'
    FOR KEY SHARE OF c FOR NO KEY UPDATE OF r  -- in the order of the settlement
), waiting AS (
    UPDATE worker.campaign_run r
    SET next_batch_at = greatest(r.next_batch_at, %(next_batch_at)s), waits_for = %(waits_for)s,
        waits_until = %(waits_until)s
    FROM run WHERE r.campaign_id = run.campaign_id
    RETURNING r.campaign_id, r.tenant_id, run.waits_for IS DISTINCT FROM r.waits_for AS is_new
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
    -- an action that the CRM's pages know, and that does not end the run
    SELECT gen_random_uuid()::text, tenant_id, campaign_id, 'scheduled', %(message)s, %(now)s FROM waiting WHERE is_new
)
SELECT is_new FROM waiting;

-- name: remaining  What keeps a run from its end, when nothing could be claimed.
SELECT
    (SELECT min(due_at) FROM worker.campaign_retry q
     WHERE q.campaign_id = %(campaign_id)s)                                             AS next_retry,
    (SELECT q.reason FROM worker.campaign_retry q
     WHERE q.campaign_id = %(campaign_id)s ORDER BY q.due_at LIMIT 1)                   AS next_retry_reason,
    EXISTS (SELECT FROM worker.campaign_batch b WHERE b.campaign_id = %(campaign_id)s)  AS claimed_elsewhere,
    (SELECT min(ask_at) FROM worker.unconfirmed_send s
     WHERE s.campaign_id = %(campaign_id)s)                                             AS next_ask,
    EXISTS (SELECT FROM "CampaignRecipient" p
            WHERE p."campaignId" = %(campaign_id)s AND p.status = 'pending' AND p.id > r.position
              AND coalesce(p."tenantId" = r.tenant_id, false)
              AND NOT EXISTS (SELECT FROM worker.campaign_retry q WHERE q.recipient_id = p.id)) AS ahead,
    EXISTS (SELECT FROM "CampaignRecipient" p
            WHERE p."campaignId" = %(campaign_id)s AND p.status = 'pending' AND p.id <= r.position
              AND coalesce(p."tenantId" = r.tenant_id, false)
              AND NOT EXISTS (SELECT FROM worker.campaign_retry q WHERE q.recipient_id = p.id)) AS behind
FROM worker.campaign_run r WHERE r.campaign_id = %(campaign_id)s;

-- name: unprepare  Makes the run start from the first recipient again: some were added or set back meanwhile.
UPDATE worker.campaign_run SET prepared = false, next_batch_at = greatest(next_batch_at, %(next_batch_at)s)
WHERE campaign_id = %(campaign_id)s;

-- name: fail_lost  Fails recipients that no batch holds: the worker's own tables were emptied.
WITH lost AS (
    UPDATE "CampaignRecipient" SET status = 'failed', "failedAt" = %(now)s, "updatedAt" = %(now)s,
        "errorMessage" = 'Unconfirmed: the worker lost its record of this message'
    WHERE "campaignId" = %(campaign_id)s AND "tenantId" = %(tenant_id)s AND status = 'sending'
      AND NOT EXISTS (SELECT FROM worker.campaign_batch b WHERE b.campaign_id = %(campaign_id)s)
      AND NOT EXISTS (SELECT FROM worker.unconfirmed_send s WHERE s.campaign_id = %(campaign_id)s)
    RETURNING id, "errorMessage" AS reply
)
INSERT INTO worker.failure (recipient_id, campaign_id, tenant_id, kind, reply, pattern, failed_at)
SELECT id, %(campaign_id)s, %(tenant_id)s, 'unconfirmed', reply, reply, %(now)s FROM lost
ON CONFLICT (recipient_id) DO UPDATE
SET campaign_id = excluded.campaign_id, tenant_id = excluded.tenant_id, kind = excluded.kind, code = excluded.code,
    reply = excluded.reply, pattern = excluded.pattern, failed_at = excluded.failed_at;

-- name: finish  Ends a run whose recipients are all settled, with its exact counts.
WITH total AS (
    SELECT count(*) FILTER (WHERE status IN ('sent', 'delivered', 'opened')) AS sent,
           count(*) FILTER (WHERE status = 'failed')                         AS failed,
           count(*) FILTER (WHERE status IN ('pending', 'sending'))          AS left_over
    FROM "CampaignRecipient" WHERE "campaignId" = %(campaign_id)s AND "tenantId" = %(tenant_id)s
), others AS (
    SELECT count(*) AS number
    FROM "CampaignRecipient" WHERE "campaignId" = %(campaign_id)s AND "tenantId" <> %(tenant_id)s
), ended AS (
    UPDATE "Campaign" c
    SET status = CASE WHEN total.failed > 0 AND total.sent = 0 THEN 'failed' ELSE 'completed' END,
        "completedAt" = %(now)s, "sentCount" = total.sent, "failedCount" = total.failed, "updatedAt" = %(now)s
    FROM total
    WHERE c.id = %(campaign_id)s AND c."tenantId" = %(tenant_id)s AND c.status = 'running' AND total.left_over = 0
      -- a session that changed the row while this statement waited for it may have changed the counts: look again later
      AND c."updatedAt" = (SELECT seen."updatedAt" FROM "Campaign" seen WHERE seen.id = %(campaign_id)s)
      AND EXISTS (
          SELECT FROM worker.campaign_run r
          WHERE r.campaign_id = c.id AND r.tenant_id = c."tenantId" AND r.prepared
      )
    RETURNING c.id, c."tenantId", c.status, c."sentCount", c."failedCount", c."totalRecipients"
), run AS (
    DELETE FROM worker.campaign_run r USING ended WHERE r.campaign_id = ended.id
), retries AS (
    DELETE FROM worker.campaign_retry q USING ended WHERE q.campaign_id = ended.id
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, metadata, "createdAt")
    SELECT gen_random_uuid()::text, "tenantId", id, status,
           CASE WHEN status = 'failed' THEN format('Every send failed: 0 sent, %%s failed', "failedCount")
                WHEN "sentCount" + "failedCount" > 0
                    THEN format('Completed: %%s sent, %%s failed', "sentCount", "failedCount")
                WHEN others.number > 0 THEN 'Completed: none of its recipients is one of its tenant''s'
                ELSE 'Completed: its target matched nobody' END
           || CASE WHEN others.number > 0
                   THEN format('; %%s recipients of another tenant were left out', others.number) ELSE '' END,
           jsonb_build_object('sentCount', "sentCount", 'failedCount', "failedCount"), %(now)s
    FROM ended, others
)
SELECT * FROM ended;

-- name: lock_runs  Before a statement that ends runs: it sees all settlements that have begun, and later ones see the end.
SELECT r.campaign_id FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id
WHERE r.campaign_id = ANY (%(campaign_ids)s::text[])
ORDER BY r.campaign_id
FOR UPDATE OF c, r;  -- in the order of the settlement

-- name: fail  Ends runs that cannot go on, with the reason; their recipients stay pending, and those that were refused
-- since the last accepted message are pending again.
WITH run AS (
    SELECT r.campaign_id, c."tenantId" AS tenant_id,
           -- include: taken_back_since
           AS since
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id
    WHERE r.campaign_id = ANY (%(campaign_ids)s::text[]) AND c.status = 'running'
    FOR UPDATE OF c, r
), refused AS (
    -- include: refused_in_a_row
), released AS (
    -- include: released_refusals
), forgotten AS (
    DELETE FROM worker.failure f USING released WHERE f.recipient_id = released.id
), ended AS (
    UPDATE "Campaign" c
    SET status = 'failed', "updatedAt" = %(now)s, "failedCount" = greatest(
        c."failedCount" - (SELECT count(*) FROM released WHERE released.campaign_id = c.id), 0
    )
    FROM run
    WHERE c.id = run.campaign_id AND c.status = 'running'
    RETURNING c.id, c."tenantId",
              (SELECT u.id FROM "User" u WHERE u.id = c."userId" AND u."tenantId" = c."tenantId") AS user_id
), ended_run AS (
    DELETE FROM worker.campaign_run r USING ended WHERE r.campaign_id = ended.id
), retries AS (
    DELETE FROM worker.campaign_retry q USING ended WHERE q.campaign_id = ended.id
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
    SELECT gen_random_uuid()::text, "tenantId", id, 'failed', %(reason)s, %(now)s FROM ended
)
SELECT * FROM ended;

-- name: refusals  The refusals of a run since a message of it was accepted, by the pattern of their reply.
WITH run AS (
    SELECT r.campaign_id, r.tenant_id, greatest(r.started_at, r.accepted_at) AS since
    FROM worker.campaign_run r WHERE r.campaign_id = %(campaign_id)s
), refused AS (
    -- include: refused_in_a_row
)
SELECT pattern, count(*) AS number FROM refused GROUP BY pattern;

-- name: break_off  Ends a run of which so many recipients in a row were refused with the same reply: they, and those
-- that were refused meanwhile with another one, are pending again. Nothing happens while a batch of it is not settled, or
-- when a message was accepted meanwhile.
WITH run AS (
    SELECT r.campaign_id, r.tenant_id, greatest(r.started_at, r.accepted_at) AS counted_since,
           -- include: taken_back_since
           AS since
    FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id AND c."tenantId" = r.tenant_id
    WHERE r.campaign_id = %(campaign_id)s AND c.status = 'running'
      AND NOT EXISTS (SELECT FROM worker.campaign_batch b WHERE b.campaign_id = r.campaign_id)
    FOR UPDATE OF c, r
), refusals AS (
    -- include: refused_in_a_row
), streak AS (
    SELECT pattern, count(*) AS number
    FROM refusals JOIN run ON refusals.failed_at > run.counted_since
    GROUP BY pattern HAVING count(*) >= %(limit)s ORDER BY number DESC LIMIT 1
), refused AS (
    SELECT refusals.* FROM refusals, streak
), released AS (
    -- include: released_refusals
), forgotten AS (
    DELETE FROM worker.failure f USING released WHERE f.recipient_id = released.id
), ended AS (
    UPDATE "Campaign" c
    SET status = 'failed', "failedCount" = greatest(c."failedCount" - (SELECT count(*) FROM released), 0),
        "updatedAt" = %(now)s
    FROM run, streak
    WHERE c.id = run.campaign_id AND c.status = 'running'
    RETURNING c.id, c."tenantId", c.channel,
              (SELECT u.id FROM "User" u WHERE u.id = c."userId" AND u."tenantId" = c."tenantId") AS user_id,
              format('%%s recipients in a row were refused with the same reply: %%s. They are pending again: correct '
                     'what it says, then schedule the campaign again',
                     streak.number, (
                         SELECT regexp_replace(reply, '[^[:space:]<>]+@[^[:space:]<>]+', '…', 'g')
                         FROM refused WHERE refused.pattern = streak.pattern ORDER BY failed_at DESC LIMIT 1
                     )) AS reason
), ended_run AS (
    DELETE FROM worker.campaign_run r USING ended WHERE r.campaign_id = ended.id
), retries AS (
    DELETE FROM worker.campaign_retry q USING ended WHERE q.campaign_id = ended.id
), logged AS (
    INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
    SELECT gen_random_uuid()::text, "tenantId", id, 'failed', reason, %(now)s FROM ended
)
SELECT * FROM ended;

-- name: batches  All claimed batches, to find the orphaned ones.
SELECT id::text, campaign_id, holder, machine, sender, asking, recipient_ids, may_leave,
       renewed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s) AS lapsed
FROM worker.campaign_batch;

-- name: take_over  Takes an orphaned batch from its holder, which from then on can neither renew, advance nor settle it.
UPDATE worker.campaign_batch SET holder = %(new_holder)s
WHERE id = %(batch_id)s AND holder = %(holder)s
  AND renewed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s)
RETURNING id;

-- name: progress  How far a batch came after it was claimed.
SELECT may_leave, outcomes FROM worker.batch_progress WHERE batch_id = %(batch_id)s ORDER BY may_leave;

-- name: forgotten  Which of these recipients are to be sent to by the database, though a message to them has left. Who
-- was set back after it left ("at") is meant to get another one; clocks of app servers may be ahead.
SELECT p.id, p."campaignId" AS campaign_id
FROM json_to_recordset(%(messages)s::json) AS m (id text, at timestamp(3)) JOIN "CampaignRecipient" p ON p.id = m.id
WHERE p.status || '' = 'pending'
  AND (m.at IS NULL OR p."updatedAt" <= m.at + interval '1 minute' OR p."createdAt" > m.at);  -- built again

-- name: claim_again  Makes a batch, without a holder, of recipients of one campaign to whom messages have left.
WITH claimed AS (
    UPDATE "CampaignRecipient" p SET status = 'sending', "updatedAt" = %(now)s
    FROM "Campaign" c
    WHERE p.id = ANY (%(ids)s::text[]) AND p.status || '' = 'pending' AND p."campaignId" || '' = %(campaign_id)s
      AND c.id = %(campaign_id)s AND c."tenantId" = p."tenantId"
    RETURNING p.id
)
INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, recipient_ids, renewed_at)
SELECT %(batch_id)s::uuid, %(campaign_id)s, %(holder)s, %(machine)s, '', array_agg(id),
       statement_timestamp() AT TIME ZONE 'UTC'
FROM claimed HAVING count(*) > 0
RETURNING cardinality(recipient_ids) AS recipients;

-- name: batch_recipients  The recipients of an orphaned batch.
SELECT p.id, p."recipientName" AS name, p."recipientEmail" AS email, p."recipientPhone" AS phone,
       coalesce(q.attempts, 0) AS attempts, NULL AS opted_out
FROM "CampaignRecipient" p LEFT JOIN worker.campaign_retry q ON q.recipient_id = p.id
WHERE p.id = ANY (%(ids)s::text[]) AND p."campaignId" = %(campaign_id)s AND p."tenantId" = %(tenant_id)s;

-- name: drop_batch  Deletes a batch whose campaign was deleted.
WITH progress AS (
    DELETE FROM worker.batch_progress WHERE batch_id = %(batch_id)s
)
DELETE FROM worker.campaign_batch WHERE id = %(batch_id)s;

-- name: drop_progress  Deletes the progress of batches that an older version has settled.
DELETE FROM worker.batch_progress g WHERE NOT EXISTS (SELECT FROM worker.campaign_batch b WHERE b.id = g.batch_id);

-- name: drop_unconfirmed  Deletes unconfirmed messages whose campaign, its tenant or recipient was deleted.
DELETE FROM worker.unconfirmed_send s
WHERE NOT EXISTS (
    SELECT FROM "CampaignRecipient" p WHERE p.id = s.recipient_id AND p."campaignId" || '' = s.campaign_id
) OR NOT EXISTS (
    SELECT FROM "Campaign" c LEFT JOIN worker.campaign_run r ON r.campaign_id = c.id
    JOIN "Tenant" t ON t.id IN (r.tenant_id, c."tenantId")
    WHERE c.id = s.campaign_id
);

-- name: drop_retries  Deletes retries of campaigns that ended without the worker, or were deleted.
DELETE FROM worker.campaign_retry q
WHERE NOT EXISTS (
    SELECT FROM "Campaign" c WHERE c.id = q.campaign_id AND c.status NOT IN ('completed', 'failed')
);

-- name: end_other_waits  Who waits for another CAMPAIGN_WINDOW than the present one may be claimed now.
UPDATE worker.campaign_retry SET due_at = %(now)s
WHERE starts_with(reason, %(outside)s) AND reason <> %(reason)s AND due_at > %(now)s;

-- name: due_to_ask  Campaigns with messages that a provider can be asked about now, and the accounts they left through.
SELECT DISTINCT campaign_id, sender FROM worker.unconfirmed_send WHERE ask_at <= %(now)s;

-- name: claim_unconfirmed  Takes unconfirmed messages of a campaign, to ask the provider whether it has them.
WITH picked AS (
    DELETE FROM worker.unconfirmed_send s
    WHERE s.recipient_id IN (
        SELECT recipient_id FROM worker.unconfirmed_send
        WHERE campaign_id = %(campaign_id)s AND sender = %(sender)s AND ask_at <= %(now)s
        ORDER BY ask_at LIMIT %(size)s FOR UPDATE SKIP LOCKED
    )
    RETURNING recipient_id, attempts
), claimed AS (
    SELECT p.id, p."recipientName" AS name, p."recipientEmail" AS email, p."recipientPhone" AS phone,
           picked.attempts, NULL AS opted_out
    FROM picked JOIN "CampaignRecipient" p ON p.id = picked.recipient_id AND p.status || '' = 'sending'
        AND p."campaignId" || '' = %(campaign_id)s AND p."tenantId" || '' = %(tenant_id)s
), batch AS (
    INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, asking, recipient_ids, renewed_at)
    SELECT %(batch_id)s::uuid, %(campaign_id)s, %(holder)s, %(machine)s, %(sender)s, true, array_agg(id),
           statement_timestamp() AT TIME ZONE 'UTC'
    FROM claimed HAVING count(*) > 0
)
SELECT * FROM claimed;

-- name: add_links  One row for each distinct link of a campaign.
INSERT INTO campaign_links (id, "tenantId", "campaignId", "originalUrl", "taggedUrl", "shortCode", "shortUrl",
    "utmSource", "utmMedium", "utmCampaign", "utmTerm", "utmContent", "linkText", "linkPosition", platform, "updatedAt")
SELECT l.id, %(tenant_id)s, %(campaign_id)s, l.original, l.tagged, l.code, l.short,
       l.source, l.medium, l.campaign, l.term, l.content, l.label, NULL, %(channel)s, %(now)s
FROM unnest(%(ids)s::text[], %(originals)s::text[], %(taggeds)s::text[], %(codes)s::text[], %(shorts)s::text[],
            %(labels)s::text[], %(sources)s::text[], %(mediums)s::text[], %(campaigns)s::text[],
            %(terms)s::text[], %(contents)s::text[])
    AS l (id, original, tagged, code, short, label, source, medium, campaign, term, content)
ON CONFLICT (id) DO UPDATE
SET "taggedUrl" = excluded."taggedUrl", "shortCode" = excluded."shortCode", "shortUrl" = excluded."shortUrl",
    "utmSource" = excluded."utmSource", "utmMedium" = excluded."utmMedium", "utmCampaign" = excluded."utmCampaign",
    "utmTerm" = excluded."utmTerm", "utmContent" = excluded."utmContent", "updatedAt" = excluded."updatedAt"
WHERE campaign_links."tenantId" = excluded."tenantId" AND campaign_links."campaignId" = excluded."campaignId";

-- name: account_runs  The running campaigns of a tenant that send through one account.
SELECT c.id FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id
WHERE r.tenant_id = %(tenant_id)s AND c."tenantId" = %(tenant_id)s AND c.channel = %(channel)s
  AND (%(user_id)s::text IS NULL OR c."userId" = %(user_id)s);

-- name: backlog  What waits, for the metrics.
SELECT coalesce(sum(greatest(c."totalRecipients" - c."sentCount" - c."failedCount", 0)), 0)::float AS pending,
       coalesce(extract(epoch FROM %(now)s - min(c."scheduledAt")), 0)::float                      AS oldest_due_seconds,
       count(*) FILTER (WHERE r.waits_for = 'window')::float                                       AS outside_hours
FROM worker.campaign_run r JOIN "Campaign" c ON c.id = r.campaign_id AND c."tenantId" = r.tenant_id;
