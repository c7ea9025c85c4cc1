-- Statements about messages of reminders and trial in the worker's hands. %(now)s is UTC without zone.

-- name: hand_over  Just before they may leave: which of these messages does this process still hold?
UPDATE worker.notice SET handed_over = true, renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
WHERE id = ANY (%(ids)s::uuid[]) AND holder = %(holder)s AND NOT handed_over
RETURNING id::text;

-- name: renew  Tells other machines that this process still works on its messages.
UPDATE worker.notice SET renewed_at = statement_timestamp() AT TIME ZONE 'UTC'
WHERE job = %(job)s AND holder = %(holder)s;

-- name: held  The messages in anybody's hands, and whether their holders went on renewing them.
SELECT id::text, holder,
       renewed_at < statement_timestamp() AT TIME ZONE 'UTC' - make_interval(secs => %(lease_seconds)s) AS lapsed
FROM worker.notice
WHERE job = %(job)s AND holder IS NOT NULL;

-- name: release  Lets the messages of processes that are gone wait: at once, or until their provider can be asked.
UPDATE worker.notice n
SET holder = NULL, due_at = CASE WHEN n.handed_over THEN %(ask_at)s ELSE %(now)s END
FROM unnest(%(ids)s::uuid[], %(holders)s::text[]) AS gone (id, holder)
WHERE n.id = gone.id AND n.holder = gone.holder;

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

-- name: put_back  Lets messages wait that did not leave, or (unknown) of which the provider can be asked later.
UPDATE worker.notice n
SET holder = NULL, due_at = back.due_at, attempts = back.attempts, handed_over = back.unknown
FROM jsonb_to_recordset(%(back)s::jsonb) AS back (id uuid, due_at timestamp, attempts integer, unknown boolean)
WHERE n.id = back.id AND n.holder = %(holder)s;

-- name: settle  Forgets messages that came to an end, and files those e-mails that were accepted.
WITH ended AS (
    DELETE FROM worker.notice WHERE id = ANY (%(ids)s::uuid[]) AND holder = %(holder)s RETURNING id
), email AS (
    SELECT o.*
    FROM jsonb_to_recordset(%(outbox)s::jsonb) AS o (notice_id uuid, address text, sender text, subject text,
        body text, html text, message_id text, gmail_id text, gmail_thread_id text, entity_type text,
        entity_id text, at timestamp, tenant_id text, user_id text)
    JOIN ended ON ended.id = o.notice_id
), filed AS (
    -- include: email_log
)
SELECT id::text FROM ended;
