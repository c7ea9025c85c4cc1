queue AS (
    -- a call that the CRM cancelled while it was placed stays cancelled, and is linked to its CallLog row all the same
    UPDATE "CallQueue" q
    SET status = CASE WHEN q.status = 'processing' THEN 'completed' ELSE q.status END,
        "callLogId" = logged.id, "errorMessage" = NULL, "nextRetryAt" = NULL, "updatedAt" = %(now)s
    FROM logged WHERE q.id = %(id)s AND (q."tenantId" = logged."tenantId") IS TRUE
    RETURNING q.*
), ended AS (
    DELETE FROM worker.call_claim c USING logged WHERE c.queue_id = %(id)s
)
-- the two rows as JSON; null where it is longer than any page needs
SELECT logged.id AS call_log_id, log_row.json AS call_log, queue_row.json AS queue_item,
       queue_row.id IS NOT NULL AS is_linked
FROM logged
CROSS JOIN LATERAL (
    SELECT CASE WHEN octet_length(j.text) <= 100000 THEN j.text END AS json
    FROM (SELECT to_jsonb(logged)::text AS text OFFSET 0) AS j
) AS log_row
LEFT JOIN (
    SELECT j.id, CASE WHEN octet_length(j.text) <= 100000 THEN j.text END AS json
    FROM (SELECT queue.id, to_jsonb(queue)::text AS text FROM queue OFFSET 0) AS j
) AS queue_row ON true;
