booked AS (
    SELECT claim.queue_id, logged.id AS call_log_id, logged."tenantId", to_jsonb(logged)::text AS json
    FROM logged JOIN claim ON claim.sid = logged."twilioCallSid"
), queue AS (
    -- a call that the CRM cancelled while it was placed stays cancelled, and is linked to its CallLog row all the same
    UPDATE "CallQueue" q
    SET status = CASE WHEN q.status = 'processing' THEN 'completed' ELSE q.status END,
        "callLogId" = booked.call_log_id, "errorMessage" = NULL, "nextRetryAt" = NULL, "updatedAt" = %(now)s
    FROM booked WHERE q.id = booked.queue_id AND (q."tenantId" = booked."tenantId") IS TRUE
    RETURNING q.*
), moved AS (
    -- the CRM gave the row to another tenant, whose account would place the call again
    UPDATE "CallQueue" q
    SET status = 'failed', "errorMessage" = 'Given to another tenant while it was called', "updatedAt" = %(now)s
    FROM booked
    WHERE q.id = booked.queue_id AND q."tenantId" <> booked."tenantId" AND q.status || '' = 'processing'  -- only by primary key
), ended AS (
    DELETE FROM worker.call_claim c USING booked WHERE c.queue_id = booked.queue_id
)
-- the two rows as JSON; null where it is longer than any page needs
SELECT booked.queue_id AS id, booked.call_log_id,
       CASE WHEN octet_length(booked.json) <= 100000 THEN booked.json END AS call_log,
       CASE WHEN octet_length(linked.json) <= 100000 THEN linked.json END AS queue_item,
       linked.id IS NOT NULL AS is_linked
FROM booked
LEFT JOIN (SELECT queue.id, to_jsonb(queue)::text AS json FROM queue OFFSET 0) AS linked ON linked.id = booked.queue_id;
