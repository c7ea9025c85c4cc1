-- Statements about notifications: messages of reminders and trial. %(now)s is UTC without zone.

-- name: hand_over  Marks messages just before they are sent: those that this process still holds. Those whose address is
-- suppressed stay as they are.
UPDATE worker.notice n
SET handed_over = s.reason IS NULL, waits_for = NULL, renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
FROM worker.notice held
LEFT JOIN LATERAL (
    SELECT s.reason FROM worker.suppression s
    WHERE
        -- include: suppressed_notice
      AND
        -- include: still_suppressed
    LIMIT 1
) AS s ON true
WHERE n.id = held.id AND held.id = ANY (%(ids)s::uuid[]) AND n.holder = %(holder)s AND NOT n.handed_over
RETURNING n.id::text, s.reason AS opted_out;

-- name: opted_out  Which of these messages, which are about to leave, may not be sent any more, and why.
SELECT held.id::text, s.reason
FROM worker.notice held
CROSS JOIN LATERAL (
    SELECT s.reason FROM worker.suppression s
    WHERE
        -- include: suppressed_notice
      AND
        -- include: still_suppressed
    LIMIT 1
) AS s
WHERE held.id = ANY (%(ids)s::uuid[]) AND held.holder = %(holder)s;

-- name: renew  Shows other machines that this process still works on its messages.
UPDATE worker.notice SET renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
WHERE job = %(job)s AND holder = %(holder)s;

-- name: held  The messages that any process has claimed, and whether the claim lapsed.
SELECT id::text, holder,
       renewed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s) AS lapsed
FROM worker.notice
WHERE job = %(job)s AND holder IS NOT NULL;

-- name: release_orphans  Lets messages wait that dead processes left: due at once, or when a provider can be asked.
UPDATE worker.notice n
SET holder = NULL, due_at = CASE WHEN n.handed_over THEN %(ask_at)s ELSE %(now)s END
FROM unnest(%(ids)s::uuid[], %(holders)s::text[]) AS orphan (id, holder)
WHERE n.id = orphan.id AND n.holder = orphan.holder;

-- name: claim_waiting  Claims the messages that wait and are due.
WITH due AS (
    SELECT id FROM worker.notice
    WHERE job = %(job)s AND holder IS NULL AND due_at <= %(now)s
    ORDER BY due_at LIMIT %(size)s
    FOR UPDATE SKIP LOCKED
)
UPDATE worker.notice n SET holder = %(holder)s, renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
FROM due WHERE n.id = due.id
RETURNING n.id::text, n.tenant_id, n.channel, n.address, n.content, n.created_at, n.attempts, n.handed_over;

-- name: next_due  When the next waiting message is due.
SELECT min(due_at) AS at FROM worker.notice WHERE job = %(job)s AND holder IS NULL;

-- name: defer  Lets messages wait until they are due: to be sent, or (may_have_arrived) until a provider is asked.
UPDATE worker.notice n
SET holder = NULL, due_at = d.due_at, attempts = d.attempts, handed_over = d.may_have_arrived, waits_for = d.waits_for
FROM jsonb_to_recordset(%(deferrals)s::jsonb)
    AS d (id uuid, due_at timestamp, attempts integer, may_have_arrived boolean, waits_for text)
WHERE n.id = d.id AND n.holder = %(holder)s;

-- name: settle  Deletes messages that are sent or failed, and files the e-mails that were accepted.
WITH ended AS (
    DELETE FROM worker.notice WHERE id = ANY (%(ids)s::uuid[]) AND holder = %(holder)s RETURNING id
), email AS (
    SELECT o.address, o.sender, o.subject, o.body, o.html, o.message_id, o.gmail_id, o.gmail_thread_id, o.entity_type,
           o.entity_id, o.at, o.tenant_id,
           u.id AS user_id -- null, which "EmailLog" refuses, where the tenant has no such user any more
    FROM jsonb_to_recordset(%(outbox)s::jsonb) AS o (notice_id uuid, address text, sender text, subject text,
        body text, html text, message_id text, gmail_id text, gmail_thread_id text, entity_type text,
        entity_id text, at timestamp, tenant_id text, user_id text)
    JOIN ended ON ended.id = o.notice_id
    LEFT JOIN "User" u ON u.id = o.user_id AND u."tenantId" = o.tenant_id
), filed AS (
    -- include: email_log
)
SELECT id::text FROM ended;
