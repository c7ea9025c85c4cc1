-- Statements of bin/suppress. Times are UTC without a zone.

-- name: find_tenant  The name of a tenant.
SELECT left(name, 200) AS name FROM "Tenant" WHERE id = %(tenant_id)s;

-- name: add  Suppresses one address.
SELECT worker.suppress(%(tenant_id)s, %(channel)s, %(address)s, %(reason)s, %(source)s, %(until)s::timestamp) AS changed;

-- name: remove  Takes one address off the list.
SELECT worker.unsuppress(%(tenant_id)s, %(channel)s, %(address)s, %(source)s) AS changed;

-- name: remove_campaign  Takes off the list what came from one campaign.
DELETE FROM worker.suppression
WHERE tenant_id = %(tenant_id)s AND channel = %(channel)s AND campaign_id = %(campaign_id)s AND source = %(source)s;

-- name: entries  The list as it is now.
SELECT s.address, s.source, s.reason, s.campaign_id, s.code, s.until, s.created_at AS since
FROM worker.suppression s
WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND (%(source)s::text IS NULL OR s.source = %(source)s)
  AND (%(addresses)s::text[] IS NULL OR s.address = ANY (
      SELECT worker.suppression_address(%(channel)s, a) FROM unnest(%(addresses)s::text[]) AS a))
  AND
    -- include: still_suppressed
ORDER BY s.address, s.source LIMIT %(limit)s;

-- name: create_imported  The lines of a file, until the transaction ends.
CREATE TEMPORARY TABLE imported (line bigint NOT NULL, address text NOT NULL) ON COMMIT DROP;

-- name: copy_imported  Takes the lines.
COPY pg_temp.imported (line, address) FROM STDIN;

-- name: import  Suppresses what the file has: each address once, and not what is on the list for as long already.
WITH read AS MATERIALIZED (
    SELECT line, address AS written, worker.listed_address(%(channel)s, address) AS address FROM pg_temp.imported
), wanted AS MATERIALIZED (
    SELECT DISTINCT address FROM read WHERE address IS NOT NULL
), listed AS (
    INSERT INTO worker.suppression AS s (tenant_id, channel, address, source, reason, until, created_at)
    SELECT %(tenant_id)s, %(channel)s, address, %(source)s, %(reason)s, %(until)s::timestamp,
           statement_timestamp() AT TIME ZONE 'UTC'
    FROM wanted ORDER BY address  -- two imports at a time lock rows in the same order
    ON CONFLICT (tenant_id, channel, address, source) DO UPDATE
    SET reason = excluded.reason, campaign_id = NULL, code = NULL, until = excluded.until,
        changed_at = excluded.changed_at, changed_by = excluded.changed_by
    WHERE s.until < coalesce(excluded.until, 'infinity')
    RETURNING 1
)
SELECT (SELECT count(*) FROM read) AS lines, (SELECT count(*) FROM wanted) AS addresses,
       (SELECT count(*) FROM listed) AS added, (SELECT count(*) FROM read WHERE address IS NULL) AS bad,
       (SELECT json_agg(b) FROM (
           SELECT line, left(written, 60) AS text FROM read WHERE address IS NULL ORDER BY line LIMIT %(shown)s
       ) AS b) AS bad_lines;

-- name: export  The list as it is now, as CSV. Spreadsheets would calculate a reason that begins like a formula.
COPY (
    SELECT s.address, s.source, regexp_replace(s.reason, '^[=+@-]', '''\&') AS reason, s.campaign_id AS campaign, s.code,
           s.until, s.created_at AS since
    FROM worker.suppression s
    WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND (%(source)s::text IS NULL OR s.source = %(source)s)
      AND
        -- include: still_suppressed
    ORDER BY s.address, s.source
) TO STDOUT (FORMAT csv, HEADER);
