-- Statements of the call-cleanup job. Times are UTC without zone.

-- name: delete_old  One batch of rows that ended long ago, but none that somebody has locked or a claim holds.
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
