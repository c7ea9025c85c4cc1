-- Statements of the call-cleanup job. Times are UTC without a zone.

-- name: delete_failures  Deletes one batch of failures of recipients that are older than they are kept.
WITH old AS (
    SELECT recipient_id FROM worker.failure WHERE failed_at < %(before)s
    ORDER BY failed_at LIMIT %(size)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM worker.failure f USING old WHERE f.recipient_id = old.recipient_id RETURNING f.recipient_id
)
SELECT count(*)::integer AS rows FROM deleted;

-- name: delete_old  Deletes one batch of rows that ended long ago, except those that are locked or claimed.
WITH old AS (
    SELECT q.id FROM "CallQueue" q
    WHERE q.status IN ('completed', 'failed', 'cancelled') AND q."updatedAt" < %(before)s
      AND NOT EXISTS (SELECT FROM worker.call_claim c WHERE c.queue_id = q.id)
    ORDER BY q."updatedAt" LIMIT %(size)s
    FOR UPDATE OF q SKIP LOCKED
), deleted AS (
    DELETE FROM "CallQueue" q USING old WHERE q.id = old.id RETURNING q.id
)
SELECT count(*)::integer AS rows FROM deleted;
