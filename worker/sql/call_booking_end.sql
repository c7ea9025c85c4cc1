queue AS (
    -- a call that the CRM cancelled while it was placed stays cancelled, and is linked to its CallLog row all the same
    UPDATE "CallQueue" q
    SET status = CASE WHEN q.status = 'processing' THEN 'completed' ELSE q.status END,
        "callLogId" = logged.id, "errorMessage" = NULL, "nextRetryAt" = NULL, "updatedAt" = %(now)s
    FROM logged WHERE q.id = %(id)s AND q."tenantId" = logged."tenantId"
    RETURNING q.*
), ended AS (
    DELETE FROM worker.call_claim c USING logged WHERE c.queue_id = %(id)s
)
-- rows of an absurd size are not read
SELECT logged.id AS call_log_id,
       CASE WHEN pg_column_size(logged.*) <= 100000 THEN to_jsonb(logged) END AS call_log,
       (SELECT CASE WHEN pg_column_size(queue.*) <= 100000 THEN to_jsonb(queue) END FROM queue) AS queue_item,
       (SELECT true FROM queue) AS is_linked
FROM logged;
