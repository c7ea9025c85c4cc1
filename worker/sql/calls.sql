-- Statements of the calls job. %(now)s is UTC without zone, as in the whole CRM.

-- name: survey  What is there to do? The one statement of an idle tick.
-- ordered, so that it is by index also when the server's statistics are of a time with many such rows
SELECT
    (SELECT "tenantId" FROM "CallQueue" WHERE status = 'pending'
     ORDER BY "tenantId", priority DESC LIMIT 1) IS NOT NULL AS any_pending,
    -- of today: a year of five digits, which a page's date field takes, is more than the worker can read
    (SELECT min(GREATEST("scheduledFor", "nextRetryAt")) FROM "CallQueue"
     WHERE status = 'pending' AND GREATEST("scheduledFor", "nextRetryAt") > %(now)s
       AND GREATEST("scheduledFor", "nextRetryAt") < %(now)s::timestamp + interval '1 day') AS next_due,
    (SELECT "updatedAt" FROM "CallQueue" WHERE status = 'processing' ORDER BY 1 LIMIT 1) IS NOT NULL AS any_processing,
    EXISTS (SELECT FROM worker.call_claim) AS any_claim,
    (SELECT min(ask_at) FROM worker.call_claim) AS next_ask,
    (SELECT "tenantId" FROM "CallLog" WHERE "twilioStatus" IN ('queued', 'ringing', 'in-progress')
     ORDER BY 1 LIMIT 1) IS NOT NULL AS any_live;

-- name: backlog  How many calls are due, and for how long the oldest of them has been. By tenant: so it is by index.
SELECT coalesce(sum(q.due), 0)::float8 AS due,
       coalesce(extract(epoch FROM %(now)s::timestamp - min(q.since)), 0)::float8 AS oldest_due_seconds
FROM "Tenant" t
CROSS JOIN LATERAL (
    SELECT count(*) AS due, min(GREATEST(q."createdAt", q."scheduledFor", q."nextRetryAt")) AS since
    FROM "CallQueue" q
    WHERE q."tenantId" = t.id AND q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
) q;

-- name: tenants  The tenants with calls that are due, how they call, and how many more calls they may have at once.
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

-- name: line  How one tenant calls, whether or not calls of it are due.
SELECT "tenantId" AS tenant_id, "twilioAccountSid", "twilioAuthToken", "twilioPhoneNumber", "callTimeout",
       "enableRecording", "enableBusinessHours", "businessHoursStart", "businessHoursEnd", "businessDays", timezone
FROM "CallSettings" WHERE "tenantId" = %(tenant_id)s;

-- name: candidates  The next calls of each tenant: highest priority first, then oldest.
SELECT q.*, w.tenant_id
FROM unnest(%(tenant_ids)s::text[], %(wanted)s::integer[]) AS w (tenant_id, wanted)
CROSS JOIN LATERAL (
    SELECT q.id, q."tenantId", q."leadId", q."contactId", q."phoneNumber", q."phoneCountryCode", q.priority,
           q."callType", q."callScriptId", q."triggerType", q."automationRuleId", q.attempts, q."maxAttempts",
           q."createdById", q.metadata, c."enableRecording" AS script_recording
    FROM "CallQueue" q
    LEFT JOIN "CallScript" c ON c.id = q."callScriptId" AND c."tenantId" = q."tenantId"
    WHERE q."tenantId" = w.tenant_id AND q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
      -- one that the CRM made pending again while it was being placed
      AND NOT EXISTS (SELECT FROM worker.call_claim o WHERE o.queue_id = q.id)
    ORDER BY q.priority DESC, q."createdAt", q.id
    LIMIT w.wanted
) q;

-- name: barred  Which of these numbers want no calls of their tenant, and of which a call is still open (no reason).
SELECT n.tenant_id, n.number, s.reason
FROM unnest(%(tenant_ids)s::text[], %(numbers)s::text[]) AS n (tenant_id, number)
JOIN worker.suppression s
  ON s.tenant_id = n.tenant_id AND s.channel = 'call' AND s.address = worker.address('call', NULL, n.number)
UNION ALL
SELECT n.tenant_id, n.number, NULL
FROM unnest(%(tenant_ids)s::text[], %(account_sids)s::text[], %(numbers)s::text[]) AS n (tenant_id, account_sid, number)
JOIN worker.call_claim c
  -- also another tenant's through the same account, and the tenant's own through an account that it had before
  ON c.to_number = n.number AND (c.account_sid = n.account_sid OR c.tenant_id = n.tenant_id);

-- name: take_turn  One worker at a time claims, so that no two fill the same slot; one that freezes loses its turn.
SELECT pg_try_advisory_xact_lock(hashtext('worker.call_claim')) AS mine,
       set_config('idle_in_transaction_session_timeout', %(turn_seconds)s || 's', true);

-- name: claim  Claims those of the wanted calls that are still pending and for which their tenant has a slot.
WITH wanted AS (
    SELECT * FROM jsonb_to_recordset(%(wanted)s::jsonb) AS w (
        id text, tenant_id text, account_sid text, from_number text, to_number text, place integer, item jsonb)
), pending AS (
    SELECT w.*
    FROM wanted w JOIN "CallQueue" q ON q.id = w.id
    WHERE q.status = 'pending'
      AND coalesce(q."scheduledFor" <= %(now)s, true) AND coalesce(q."nextRetryAt" <= %(now)s, true)
    FOR UPDATE OF q SKIP LOCKED
), room AS (
    SELECT t.tenant_id, coalesce((
        SELECT s."maxConcurrentCalls" FROM "CallSettings" s WHERE s."tenantId" = t.tenant_id
    ), 5) - (
        SELECT count(*) FROM "CallLog" l
        WHERE l."tenantId" = t.tenant_id AND l."twilioStatus" IN ('queued', 'ringing', 'in-progress')
    ) - (SELECT count(*) FROM worker.call_claim c WHERE c.tenant_id = t.tenant_id) AS slots
    FROM (SELECT DISTINCT tenant_id FROM wanted) AS t
), lined_up AS (
    SELECT p.*, row_number() OVER (PARTITION BY p.tenant_id ORDER BY p.place) AS nth FROM pending p
), claimed AS (
    INSERT INTO worker.call_claim (queue_id, tenant_id, account_sid, from_number, to_number, item, holder, claimed_at)
    SELECT l.id, l.tenant_id, l.account_sid, l.from_number, l.to_number, l.item, %(holder)s,
           statement_timestamp() AT TIME ZONE 'UTC'
    FROM lined_up l JOIN room USING (tenant_id)
    WHERE l.nth <= room.slots
    ON CONFLICT DO NOTHING
    RETURNING queue_id
), moved AS (
    UPDATE "CallQueue" q SET status = 'processing', "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
    FROM claimed WHERE q.id = claimed.queue_id AND q.status = 'pending'
)
SELECT queue_id AS id FROM claimed;

-- name: book  A call was placed: its CallLog row, the queue's, the lead's and the script's, and the claim is over.
WITH held AS (
    DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s
    RETURNING queue_id, tenant_id, to_number, item
), logged AS (
    INSERT INTO "CallLog" (id, "tenantId", "leadId", "contactId", "phoneNumber", "phoneCountryCode", direction,
        "callType", "twilioCallSid", "twilioStatus", "callScriptId", "triggerType", "automationRuleId",
        "callOutcome", metadata, "createdById", "createdAt", "updatedAt")
    SELECT gen_random_uuid()::text, h.tenant_id, i."leadId", i."contactId", h.to_number, i."phoneCountryCode",
           'outbound', i."callType", %(sid)s, %(status)s, i."callScriptId", i."triggerType", i."automationRuleId",
           'initiated', i.metadata, i."createdById", %(now)s, %(now)s
    FROM held h CROSS JOIN jsonb_to_record(h.item) AS i ("leadId" text, "contactId" text, "phoneCountryCode" text,
        "callType" text, "callScriptId" text, "triggerType" text, "automationRuleId" text, metadata jsonb,
        "createdById" text)
    JOIN "User" u ON u.id = i."createdById"  -- gone only together with the queue's row
    -- somebody wrote it down before us
    ON CONFLICT ("twilioCallSid") DO UPDATE SET "updatedAt" = EXCLUDED."updatedAt"
        WHERE "CallLog"."tenantId" = EXCLUDED."tenantId"
    RETURNING *
), queue AS (
    -- one that the CRM cancelled while it was placed stays cancelled, and leads to its call all the same
    UPDATE "CallQueue" q
    SET status = CASE WHEN q.status = 'processing' THEN 'completed' ELSE q.status END,
        "callLogId" = logged.id, "errorMessage" = NULL, "nextRetryAt" = NULL, "updatedAt" = %(now)s
    FROM logged WHERE q.id = %(id)s
    RETURNING q.*
), lead AS (
    UPDATE "Lead" l SET "lastCalledAt" = %(now)s, "callCount" = l."callCount" + 1, "updatedAt" = %(now)s
    FROM logged WHERE l.id = logged."leadId" AND l."tenantId" = logged."tenantId"
), script AS (
    UPDATE "CallScript" s SET "usageCount" = s."usageCount" + 1, "lastUsedAt" = %(now)s, "updatedAt" = %(now)s
    FROM logged WHERE s.id = logged."callScriptId" AND s."tenantId" = logged."tenantId"
)
SELECT to_jsonb(logged) AS call_log, (SELECT to_jsonb(queue) FROM queue) AS queue_item FROM logged;

-- name: fail  A call was not placed: again after its pause, or never where nothing is left to try; the claim is over.
WITH held AS (
    DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s
    RETURNING queue_id
), queue AS (
    UPDATE "CallQueue" q
    SET attempts = q.attempts + 1,
        status = CASE WHEN %(drop)s OR q.attempts + 1 >= q."maxAttempts" THEN 'failed' ELSE 'pending' END,
        "nextRetryAt" = CASE WHEN %(drop)s OR q.attempts + 1 >= q."maxAttempts" THEN NULL ELSE %(retry_at)s END,
        "errorMessage" = %(reason)s, "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
    FROM held WHERE q.id = held.queue_id AND q.status = 'processing'
    RETURNING q.status
)
SELECT (SELECT status FROM queue) AS status FROM held;

-- name: fail_unclaimed  The same for calls that cannot be dialled, so that nobody had to claim them.
UPDATE "CallQueue" q
SET attempts = q.attempts + 1,
    status = CASE WHEN f.drop OR q.attempts + 1 >= q."maxAttempts" THEN 'failed' ELSE 'pending' END,
    "nextRetryAt" = CASE WHEN f.drop OR q.attempts + 1 >= q."maxAttempts" THEN NULL ELSE f.retry_at END,
    "errorMessage" = f.reason, "lastAttemptAt" = %(now)s, "updatedAt" = %(now)s
FROM jsonb_to_recordset(%(failed)s::jsonb) AS f (id text, reason text, drop boolean, retry_at timestamp)
WHERE q.id = f.id AND q.status = 'pending'
RETURNING q.id, q.status, q."tenantId" AS tenant_id;

-- name: put_back  A call that Twilio does not know, or that was not tried: due again at once.
WITH held AS (
    DELETE FROM worker.call_claim WHERE queue_id = %(id)s AND holder = %(holder)s RETURNING queue_id
)
UPDATE "CallQueue" q SET status = 'pending', "updatedAt" = %(now)s
FROM held WHERE q.id = held.queue_id AND q.status = 'processing';

-- name: opt_out  This number wants no calls of this tenant any more.
INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at)
VALUES (%(tenant_id)s, 'call', worker.address('call', NULL, %(number)s), %(reason)s, %(now)s)
ON CONFLICT DO NOTHING;

-- name: in_doubt  No answer came: Twilio is asked later what became of the call.
UPDATE worker.call_claim SET ask_at = %(ask_at)s, reason = %(reason)s, asked = %(asked)s
WHERE queue_id = %(id)s AND holder = %(holder)s;

-- name: held  The calls in anybody's hands, and whether their time has run out.
SELECT queue_id AS id, holder,
       claimed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s) AS lapsed
FROM worker.call_claim WHERE ask_at IS NULL;

-- name: doubt_orphans  The holders of these calls are gone: Twilio is asked what became of them.
UPDATE worker.call_claim c SET ask_at = %(ask_at)s, reason = NULL
FROM unnest(%(ids)s::text[], %(holders)s::text[]) AS gone (id, holder)
WHERE c.queue_id = gone.id AND c.holder = gone.holder AND c.ask_at IS NULL;

-- name: stuck  Calls that are 'processing' without a claim: their worker died before it knew of claims.
SELECT q.id, q."tenantId", q."leadId", q."contactId", q."phoneNumber", q."phoneCountryCode", q."callType",
       q."callScriptId", q."triggerType", q."automationRuleId", q."createdById", q.metadata, q.attempts,
       q."maxAttempts", q."updatedAt"
FROM "CallQueue" q
WHERE q.status = 'processing' AND q."updatedAt" < %(before)s
  AND NOT EXISTS (SELECT FROM worker.call_claim c WHERE c.queue_id = q.id)
ORDER BY q."updatedAt" LIMIT 100;

-- name: adopt  Claims such a call, to ask Twilio about it.
INSERT INTO worker.call_claim (queue_id, tenant_id, account_sid, from_number, to_number, item, holder, claimed_at,
    ask_at)
SELECT q.id, q."tenantId", %(account_sid)s, %(from_number)s, %(to_number)s, %(item)s::jsonb, %(holder)s,
       %(claimed_at)s, %(now)s
FROM "CallQueue" q
WHERE q.id = %(id)s AND q.status = 'processing' AND q."updatedAt" = %(updated_at)s
ON CONFLICT DO NOTHING;

-- name: fail_stuck  Such a call of which nobody can be asked.
UPDATE "CallQueue" q
SET status = 'failed', attempts = q.attempts + 1, "errorMessage" = %(reason)s, "updatedAt" = %(now)s
WHERE q.id = %(id)s AND q.status = 'processing' AND q."updatedAt" = %(updated_at)s
RETURNING q.id;

-- name: take_doubtful  Takes the calls that Twilio can be asked about now.
WITH due AS (
    SELECT queue_id FROM worker.call_claim WHERE ask_at <= %(now)s AND NOT queue_id = ANY (%(in_hand)s)
    ORDER BY ask_at LIMIT %(size)s
    FOR UPDATE SKIP LOCKED
)
UPDATE worker.call_claim c SET holder = %(holder)s, ask_at = %(again_at)s
FROM due WHERE c.queue_id = due.queue_id
RETURNING c.queue_id AS id, c.tenant_id, c.account_sid, c.from_number, c.to_number, c.item, c.claimed_at, c.asked,
          c.reason;

-- name: sids_of_others  Which of these calls are another tenant's, or belong to some row of the queue already.
SELECT l."twilioCallSid" AS sid
FROM "CallLog" l
WHERE l."twilioCallSid" = ANY (%(sids)s)
  AND (l."tenantId" <> %(tenant_id)s OR EXISTS (SELECT FROM "CallQueue" q WHERE q."callLogId" = l.id));

-- name: stale  Calls that have been on their way for longer than calls take: their webhook was lost.
SELECT l.id, l."tenantId" AS tenant_id, l."twilioCallSid" AS sid, l."twilioStatus" AS status
FROM "CallLog" l
LEFT JOIN "CallSettings" s ON s."tenantId" = l."tenantId"
WHERE l."twilioStatus" IN ('queued', 'ringing', 'in-progress')
  AND l."updatedAt" < %(now)s::timestamp
      - make_interval(secs => GREATEST(coalesce(s."callTimeout", 300), 0)::float8 + 3600)
  AND NOT l."tenantId" = ANY (%(silent)s)
ORDER BY l."updatedAt" LIMIT %(size)s;

-- name: refresh  What Twilio says of such a call; one that is still on its way is fresh for another hour.
UPDATE "CallLog" SET "twilioStatus" = %(status)s, "updatedAt" = %(now)s
WHERE id = %(id)s AND "twilioStatus" = %(old_status)s;
