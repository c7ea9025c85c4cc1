-- Statements of the calls job. %(now)s is UTC without a zone, as in the whole CRM.
-- A row that another one names is used only when it is of the same tenant: the CRM's columns may name any row, or none.
-- IS TRUE keeps PostgreSQL from looking for it among all rows of the tenant instead of by its id.

-- name: survey  What there is to do; the only statement of an idle tick.
-- ordered, so that it goes by index also when the server's statistics are from a time with many such rows
SELECT
    (SELECT "tenantId" FROM "CallQueue" WHERE status = 'pending'
     ORDER BY "tenantId", priority DESC LIMIT 1) IS NOT NULL AS any_pending,
    -- within a day: a page's date field takes a year of five digits, which the worker cannot read
    (SELECT min(GREATEST("scheduledFor", "nextRetryAt")) FROM "CallQueue"
     WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > %(now)s
       AND GREATEST("scheduledFor", "nextRetryAt") < %(now)s::timestamp + interval '1 day') AS next_due,
    (SELECT "updatedAt" FROM "CallQueue" WHERE status = 'processing' ORDER BY 1 LIMIT 1) IS NOT NULL AS any_processing,
    EXISTS (SELECT FROM worker.call_claim) AS any_claim,
    (SELECT min(ask_at) FROM worker.call_claim) AS next_ask,
    (SELECT "tenantId" FROM "CallLog" WHERE "twilioStatus" IN ('queued', 'ringing', 'in-progress')
     ORDER BY 1 LIMIT 1) IS NOT NULL AS any_live;

-- name: backlog  How many calls are due, and for how long the oldest has been; how many wait for their numbers' hours.
-- By tenant, so that it goes by index.
SELECT coalesce(sum(q.due), 0)::float8 AS due,
       coalesce(extract(epoch FROM %(now)s::timestamp - min(q.since)), 0)::float8 AS oldest_due_seconds,
       (SELECT count(*) FROM (
           SELECT "errorMessage" AS reason FROM "CallQueue"
           WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > %(now)s
           ORDER BY GREATEST("scheduledFor", "nextRetryAt")
        ) AS later WHERE starts_with(later.reason, %(reason)s))::float8 AS waiting
FROM "Tenant" t
CROSS JOIN LATERAL (
    SELECT count(*) AS due, min(GREATEST(q."createdAt", q."scheduledFor", q."nextRetryAt")) AS since
    FROM "CallQueue" q
    WHERE q."tenantId" = t.id AND q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
) q;

-- name: due_tenants  The tenants with due calls, their call settings, and how many more calls they may have at once.
SELECT t.id AS tenant_id, s."twilioAccountSid", s."twilioAuthToken", s."twilioPhoneNumber", s."callTimeout",
       s."enableRecording", s."enableBusinessHours", s."businessHoursStart", s."businessHoursEnd",
       s."businessDays", s.timezone,
       coalesce(s."maxConcurrentCalls", 5) - (
           SELECT count(*) FROM "CallLog" l
           WHERE l."tenantId" = t.id AND l."twilioStatus" IN ('queued', 'ringing', 'in-progress')
       ) - (SELECT count(*) FROM worker.call_claim c WHERE c.tenant_id = t.id) AS slots
FROM "Tenant" t
LEFT JOIN "CallSettings" s ON s."tenantId" = t.id
WHERE EXISTS (
    SELECT FROM "CallQueue" q
    WHERE q."tenantId" = t.id AND q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
);

-- name: call_settings  The call settings of one tenant, whether or not calls of it are due.
SELECT "tenantId" AS tenant_id, "twilioAccountSid", "twilioAuthToken", "twilioPhoneNumber", "callTimeout",
       "enableRecording", "enableBusinessHours", "businessHoursStart", "businessHoursEnd", "businessDays", timezone
FROM "CallSettings" WHERE "tenantId" = %(tenant_id)s;

-- name: candidates  The next calls of each tenant: highest priority first, then oldest.
SELECT q.*
FROM unnest(%(tenant_ids)s::text[], %(limits)s::integer[]) AS t (tenant_id, row_limit)
CROSS JOIN LATERAL (
    SELECT q.id, q."tenantId" AS tenant_id, left(q."phoneNumber", 1000) AS phone_number,
           left(q."phoneCountryCode", 1000) AS phone_country_code, q.attempts,
           (SELECT u.id FROM "User" u
            WHERE u.id = q."createdById" AND (u."tenantId" = q."tenantId") IS TRUE) AS created_by_id
    FROM "CallQueue" q
    WHERE q."tenantId" = t.tenant_id AND q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
      -- not one that the CRM made pending again while it was being placed
      AND NOT EXISTS (SELECT FROM worker.call_claim c WHERE c.queue_id = q.id)
      AND NOT q.id = ANY (%(left_alone)s)
    ORDER BY q.priority DESC, q."createdAt", q.id
    LIMIT t.row_limit
) q;

-- name: blocked_numbers  Which numbers opted out of their tenant's calls, and which have an unsettled call (no reason).
SELECT n.tenant_id, n.number, s.reason
FROM unnest(%(tenant_ids)s::text[], %(numbers)s::text[]) AS n (tenant_id, number)
CROSS JOIN LATERAL (
    SELECT s.reason FROM worker.suppression s
    WHERE s.tenant_id = n.tenant_id AND s.channel = 'call' AND s.address = worker.address('call', NULL, n.number) AND
        -- include: still_suppressed
    LIMIT 1
) AS s
UNION ALL
SELECT n.tenant_id, n.number, NULL
FROM unnest(%(tenant_ids)s::text[], %(account_sids)s::text[], %(numbers)s::text[]) AS n (tenant_id, account_sid, number)
JOIN worker.call_claim c
  -- also a call of another tenant through the same account, or of this tenant through its former account
  ON c.to_number = n.number AND (c.account_sid = n.account_sid OR c.tenant_id = n.tenant_id);

-- name: lock_claiming  One worker at a time claims, so that no two fill the same slot; a frozen one loses this lock.
SELECT pg_try_advisory_xact_lock(hashtext('worker.call_claim'))
           -- else another server has taken over behind the same connection, and may have forgotten what was called
           AND CASE %(timeline)s::text WHEN '' THEN true
               ELSE starts_with(pg_walfile_name(pg_current_wal_insert_lsn()), %(timeline)s) END AS is_mine,
       set_config('idle_in_transaction_session_timeout', %(claim_seconds)s || 's', true);

-- name: claim  Claims those of the wanted calls that are still pending and for which their tenant has a slot.
WITH wanted AS (
    SELECT * FROM jsonb_to_recordset(%(wanted)s::jsonb) AS w (
        id text, tenant_id text, account_sid text, from_number text, to_number text, place integer)
), pending AS (
    SELECT w.account_sid, w.from_number, w.to_number, w.place, q.id, q."tenantId", q."leadId", q."contactId",
           q."phoneCountryCode", q."callType", q."callScriptId", q."triggerType", q."automationRuleId", q.attempts,
           q."createdById", q.metadata
    FROM wanted w JOIN "CallQueue" q ON q.id = w.id AND (q."tenantId" = w.tenant_id) IS TRUE
    WHERE q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
      -- a look at each number: as a join it would change the order in which the tables are read
      AND (
          SELECT s.reason FROM worker.suppression s
          WHERE s.tenant_id = w.tenant_id AND s.channel = 'call'
            AND s.address = worker.address('call', NULL, w.to_number) AND
                -- include: still_suppressed
          LIMIT 1
      ) IS NULL
    FOR UPDATE OF q SKIP LOCKED
), capacity AS (
    SELECT t.tenant_id, coalesce((
        SELECT s."maxConcurrentCalls" FROM "CallSettings" s WHERE s."tenantId" = t.tenant_id
    ), 5) - (
        SELECT count(*) FROM "CallLog" l
        WHERE l."tenantId" = t.tenant_id AND l."twilioStatus" IN ('queued', 'ringing', 'in-progress')
    ) - (SELECT count(*) FROM worker.call_claim c WHERE c.tenant_id = t.tenant_id) AS slots
    FROM (SELECT DISTINCT tenant_id FROM wanted) AS t
), ranked AS (
    SELECT p.*, row_number() OVER (PARTITION BY p."tenantId" ORDER BY p.place) AS rank FROM pending p
), claimed AS (
    INSERT INTO worker.call_claim (queue_id, tenant_id, account_sid, from_number, to_number, holder, claimed_at, item)
    SELECT q.id, q."tenantId", q.account_sid, q.from_number, q.to_number, %(holder)s,
           statement_timestamp() AT TIME ZONE 'UTC',
           -- include: call_item
    FROM ranked q JOIN capacity ON capacity.tenant_id = q."tenantId"
    WHERE q.rank <= capacity.slots
    ON CONFLICT DO NOTHING
    RETURNING queue_id, tenant_id, item
), moved AS (
    UPDATE "CallQueue" q SET status = 'processing', "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
    FROM claimed
    WHERE q.id = claimed.queue_id AND (q."tenantId" = claimed.tenant_id) IS TRUE AND q.status = 'pending'
)
SELECT c.queue_id AS id, c.item ->> 'leadId' AS lead_id, c.item ->> 'contactId' AS contact_id,
       c.item ->> 'callType' AS call_type,
       (SELECT s."enableRecording" FROM "CallScript" s
        WHERE s.id = c.item ->> 'callScriptId' AND (s."tenantId" = c.tenant_id) IS TRUE) AS script_recording
FROM claimed c;

-- name: book  Calls were placed: writes lead, script, CallLog and queue of each, and ends the claims.
WITH claim AS (
    -- include: call_booking_claim
), lead AS (
    -- before the queue's row is locked: that is the order in which the CRM deletes a lead
    UPDATE "Lead" l
    SET "lastCalledAt" = %(now)s, "callCount" = LEAST(l."callCount" + n.calls, 2147483647), "updatedAt" = %(now)s
    FROM (SELECT "leadId", tenant_id, count(*) AS calls FROM claim GROUP BY 1, 2) AS n
    WHERE l.id = n."leadId" AND (l."tenantId" = n.tenant_id) IS TRUE
    RETURNING l.id, l."tenantId"
), script AS (
    UPDATE "CallScript" s
    SET "usageCount" = LEAST(s."usageCount" + n.calls, 2147483647), "lastUsedAt" = %(now)s, "updatedAt" = %(now)s
    FROM (SELECT "callScriptId", tenant_id, count(*) AS calls FROM claim GROUP BY 1, 2) AS n
    WHERE s.id = n."callScriptId" AND (s."tenantId" = n.tenant_id) IS TRUE
    RETURNING s.id, s."tenantId"
), logged AS (
    INSERT INTO "CallLog" (id, "tenantId", "leadId", "contactId", "phoneNumber", "phoneCountryCode", direction,
        "callType", "twilioCallSid", "twilioStatus", "callScriptId", "triggerType", "automationRuleId",
        "callOutcome", metadata, "createdById", "createdAt", "updatedAt")
    SELECT gen_random_uuid()::text, c.tenant_id, lead.id,
           (SELECT p.id FROM "Contact" p WHERE p.id = c."contactId" AND (p."tenantId" = c.tenant_id) IS TRUE),
           c.to_number, c."phoneCountryCode", 'outbound', c."callType", c.sid, c.status, script.id, c."triggerType",
           (SELECT r.id FROM "AutomationRule" r
            WHERE r.id = c."automationRuleId" AND (r."tenantId" = c.tenant_id) IS TRUE),
           'initiated', c.metadata, c."createdById", %(now)s, %(now)s
    FROM claim c
    LEFT JOIN lead ON lead.id = c."leadId" AND lead."tenantId" = c.tenant_id
    LEFT JOIN script ON script.id = c."callScriptId" AND script."tenantId" = c.tenant_id
    -- a webhook may have written the row already
    ON CONFLICT ("twilioCallSid") DO UPDATE SET "updatedAt" = EXCLUDED."updatedAt"
        WHERE "CallLog"."tenantId" = EXCLUDED."tenantId"
    RETURNING *
),
-- include: call_booking_end

-- name: book_without_references  The same for a call whose booking was refused: only what a CallLog row cannot lack.
WITH claim AS (
    -- include: call_booking_claim
), logged AS (
    INSERT INTO "CallLog" (id, "tenantId", "phoneNumber", "phoneCountryCode", direction, "callType", "twilioCallSid",
        "twilioStatus", "triggerType", "callOutcome", "createdById", "createdAt", "updatedAt")
    SELECT gen_random_uuid()::text, c.tenant_id, c.to_number, left(c."phoneCountryCode", 8), 'outbound',
           CASE c."callType" WHEN 'manual' THEN 'manual' ELSE 'ai' END, c.sid, c.status,
           left(c."triggerType", 100), 'initiated', c."createdById", %(now)s, %(now)s
    FROM claim c
    ON CONFLICT ("twilioCallSid") DO UPDATE SET "updatedAt" = EXCLUDED."updatedAt"
        WHERE "CallLog"."tenantId" = EXCLUDED."tenantId"
    RETURNING *
),
-- include: call_booking_end

-- name: booking_obstacles  Why a claim of this process was not booked, though nothing was refused; no row: it has ended.
SELECT (SELECT u.id FROM "User" u
        WHERE u.id = c.item ->> 'createdById' AND (u."tenantId" = c.tenant_id) IS TRUE) IS NULL AS lacks_creator,
       (SELECT l.id FROM "CallLog" l WHERE l."twilioCallSid" = %(sid)s) IS NOT NULL AS is_logged
FROM worker.call_claim c
WHERE c.queue_id = %(id)s AND c.holder = %(holder)s;

-- name: plain_rows  The same two rows; null for lists and objects, which may have any depth, and for long texts.
SELECT (
    SELECT jsonb_object_agg(e.key, CASE
        WHEN jsonb_typeof(e.value) IN ('array', 'object') OR octet_length(e.value::text) > 1000 THEN 'null'
        ELSE e.value END)::text
    FROM jsonb_each(to_jsonb(l)) AS e
) AS call_log, (
    SELECT jsonb_object_agg(e.key, CASE
        WHEN jsonb_typeof(e.value) IN ('array', 'object') OR octet_length(e.value::text) > 1000 THEN 'null'
        ELSE e.value END)::text
    FROM "CallQueue" q, jsonb_each(to_jsonb(q)) AS e
    WHERE q."callLogId" = l.id AND (q."tenantId" = l."tenantId") IS TRUE
) AS queue_item
FROM "CallLog" l WHERE l.id = %(call_log_id)s AND (l."tenantId" = %(tenant_id)s) IS TRUE;

-- name: fail  A call was not placed: it is tried again at retry_at, or fails after its last attempt; ends the claim.
WITH claim AS (
    DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s
    RETURNING queue_id, tenant_id
), queue AS (
    UPDATE "CallQueue" q
    SET attempts = LEAST(q.attempts, 2147483646) + 1,
        status = CASE WHEN %(is_final)s OR q.attempts + 1::bigint >= q."maxAttempts" THEN 'failed' ELSE 'pending' END,
        "nextRetryAt" = CASE WHEN %(is_final)s OR q.attempts + 1::bigint >= q."maxAttempts" THEN NULL
                             ELSE %(retry_at)s::timestamp END,
        "errorMessage" = %(reason)s, "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
    FROM claim
    WHERE q.id = claim.queue_id AND (q."tenantId" = claim.tenant_id) IS TRUE AND q.status = 'processing'
    RETURNING q.status
), moved AS (
    -- the CRM gave the row to another tenant, whose account would place the call again, which may have been placed
    UPDATE "CallQueue" q
    SET status = 'failed', "errorMessage" = 'Given to another tenant while it was called', "updatedAt" = %(now)s
    FROM claim
    WHERE %(is_final)s AND q.id = claim.queue_id AND q."tenantId" <> claim.tenant_id
      AND q.status || '' = 'processing'  -- only by primary key
)
SELECT (SELECT status FROM queue) AS status FROM claim;

-- name: fail_unclaimed  The same for calls that cannot be placed and therefore were not claimed.
UPDATE "CallQueue" q
SET attempts = LEAST(q.attempts, 2147483646) + 1,
    status = CASE WHEN f.is_final OR q.attempts + 1::bigint >= q."maxAttempts" THEN 'failed' ELSE 'pending' END,
    "nextRetryAt" = CASE WHEN f.is_final OR q.attempts + 1::bigint >= q."maxAttempts" THEN NULL ELSE f.retry_at END,
    "errorMessage" = f.reason, "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
FROM jsonb_to_recordset(%(failures)s::jsonb) AS f (
    id text, tenant_id text, reason text, is_final boolean, retry_at timestamp)
WHERE q.id = f.id AND (q."tenantId" = f.tenant_id) IS TRUE AND q.status = 'pending'
RETURNING q.id, q.status;

-- name: put_off  These calls may not be placed before a time of their own: they stay pending, no attempt is counted.
WITH wait AS (
    SELECT * FROM jsonb_to_recordset(%(calls)s::jsonb) AS w (id text, tenant_id text, until timestamp, reason text)
), moved AS (
    UPDATE "CallQueue" q
    SET "nextRetryAt" = wait.until, "errorMessage" = wait.reason, "updatedAt" = %(now)s
    FROM wait
    WHERE q.id = wait.id AND (q."tenantId" = wait.tenant_id) IS TRUE AND q.status = 'pending'
      AND coalesce(q."nextRetryAt" <= %(now)s, true)  -- unless it was put off meanwhile
    RETURNING q.id, wait.tenant_id, wait.until, wait.reason
)
SELECT tenant_id, reason, count(*) AS calls, min(until) AS until FROM moved GROUP BY tenant_id, reason;

-- name: reasons_to_wait  Why calls wait for the hours of their numbers; the worker's reasons are short.
SELECT DISTINCT later.reason FROM (
    SELECT "errorMessage" AS reason FROM "CallQueue"
    WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > %(now)s
    ORDER BY GREATEST("scheduledFor", "nextRetryAt")
) AS later
WHERE starts_with(later.reason, %(waiting)s) AND length(later.reason) < 1000
LIMIT 1000;

-- name: end_waits  Calls that wait for one of these reasons are due again.
WITH ended AS (
    UPDATE "CallQueue" SET "nextRetryAt" = %(now)s, "updatedAt" = %(now)s
    WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > %(now)s  -- by index
      AND "nextRetryAt" > %(now)s AND "errorMessage" = ANY (%(reasons)s)
    RETURNING id
)
SELECT count(*) AS calls FROM ended;

-- name: release  A call that Twilio does not know, or that was not tried: it is due again at once.
WITH claim AS (
    DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s RETURNING queue_id, tenant_id
)
UPDATE "CallQueue" q SET status = 'pending', "updatedAt" = %(now)s
FROM claim WHERE q.id = claim.queue_id AND (q."tenantId" = claim.tenant_id) IS TRUE AND q.status = 'processing';

-- name: abandon  Ends a claim whose row in the queue cannot be changed.
DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s;

-- name: mark_unconfirmed  No answer came: Twilio is asked later whether it has the call.
UPDATE worker.call_claim SET ask_at = %(ask_at)s, reason = %(reason)s, asked = %(asked)s
WHERE queue_id = %(id)s AND holder = %(holder)s;

-- name: claims_in_hand  The claims that some process works on, and whether they have lapsed.
SELECT queue_id AS id, holder,
       claimed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s) AS lapsed
FROM worker.call_claim WHERE ask_at IS NULL;

-- name: mark_orphans_unconfirmed  The holders of these claims are dead: Twilio is asked whether it has the calls.
UPDATE worker.call_claim c SET ask_at = %(ask_at)s, reason = NULL
FROM unnest(%(ids)s::text[], %(holders)s::text[]) AS orphan (id, holder)
WHERE c.queue_id = orphan.id AND c.holder = orphan.holder AND c.ask_at IS NULL;

-- name: stuck_calls  Calls that are 'processing' without a claim: left by a worker of a version without claims.
SELECT q.id, q."tenantId" AS tenant_id, left(q."phoneNumber", 1000) AS phone_number,
       left(q."phoneCountryCode", 1000) AS phone_country_code, q.attempts, q."createdById" AS created_by_id
FROM "CallQueue" q
WHERE q.status = 'processing' AND q."updatedAt" < %(before)s
  AND NOT EXISTS (SELECT FROM worker.call_claim c WHERE c.queue_id = q.id)
  AND NOT q.id = ANY (%(left_alone)s)
ORDER BY q."updatedAt" LIMIT 100;

-- name: adopt  Claims a stuck call, so that Twilio is asked about it. It was placed after the row was changed last.
INSERT INTO worker.call_claim (queue_id, tenant_id, account_sid, from_number, to_number, holder, claimed_at, ask_at, item)
SELECT q.id, q."tenantId", %(account_sid)s, %(from_number)s, %(to_number)s, %(holder)s,
       GREATEST(q."updatedAt", '2000-01-01') - make_interval(secs => %(clock_skew_seconds)s), %(now)s,
       -- include: call_item
FROM "CallQueue" q
WHERE q.id = %(id)s AND (q."tenantId" = %(tenant_id)s) IS TRUE AND q.status = 'processing'
  AND q."updatedAt" < %(before)s
ON CONFLICT DO NOTHING;

-- name: fail_stuck  Fails a stuck call about which Twilio cannot be asked.
UPDATE "CallQueue" q
SET status = 'failed', attempts = LEAST(q.attempts, 2147483646) + 1, "errorMessage" = %(reason)s, "updatedAt" = %(now)s
WHERE q.id = %(id)s AND (q."tenantId" = %(tenant_id)s) IS TRUE AND q.status = 'processing'
  AND q."updatedAt" < %(before)s
RETURNING q.id;

-- name: take_unconfirmed  Takes over the calls about which Twilio can be asked now.
WITH due AS (
    SELECT queue_id FROM worker.call_claim WHERE ask_at <= %(now)s AND NOT queue_id = ANY (%(in_hand)s)
    ORDER BY ask_at LIMIT %(size)s
    FOR UPDATE SKIP LOCKED
)
UPDATE worker.call_claim c SET holder = %(holder)s, ask_at = %(ask_again_at)s
FROM due WHERE c.queue_id = due.queue_id
RETURNING c.queue_id AS id, c.tenant_id, c.account_sid, c.from_number, c.to_number,
          (c.item ->> 'attempts')::integer AS attempts, c.claimed_at, c.asked, c.reason;

-- name: logged_calls  Which of these calls are in the log of another tenant, or belong to a row of the queue already.
SELECT *
FROM (
    SELECT l."twilioCallSid" AS sid, l."tenantId" AS tenant_id, (
        SELECT q.id FROM "CallQueue" q WHERE q."callLogId" = l.id AND (q."tenantId" = l."tenantId") IS TRUE
    ) IS NOT NULL AS is_linked
    FROM "CallLog" l WHERE l."twilioCallSid" = ANY (%(sids)s)
) l
WHERE l.is_linked OR l.tenant_id <> %(tenant_id)s;

-- name: stale_calls  Calls that have been on their way for longer than a call can take: their webhook was lost.
SELECT l.id, l."tenantId" AS tenant_id, l."twilioCallSid" AS sid, l."twilioStatus" AS status
FROM "CallLog" l
LEFT JOIN "CallSettings" s ON s."tenantId" = l."tenantId"
WHERE l."twilioStatus" IN ('queued', 'ringing', 'in-progress')
  AND l."updatedAt" < %(now)s::timestamp
      - make_interval(secs => GREATEST(coalesce(s."callTimeout", 300), 0)::float8 + 3600)
  AND NOT l."tenantId" = ANY (%(skipped_tenants)s)
ORDER BY l."updatedAt" LIMIT %(size)s;

-- name: refresh_status  Writes the status that Twilio named; a call still on its way is not stale for another hour.
UPDATE "CallLog" SET "twilioStatus" = %(status)s, "updatedAt" = %(now)s
WHERE id = %(id)s AND ("tenantId" = %(tenant_id)s) IS TRUE AND "twilioStatus" = %(old_status)s;
