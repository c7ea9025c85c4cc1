-- Statements that all jobs share which send messages. %(now)s is UTC without zone, as in the whole CRM.

-- name: save_token  Keeps a refreshed Gmail access token.
UPDATE "User" SET "gmailAccessToken" = %(token)s, "gmailTokenExpiry" = %(expiry)s, "updatedAt" = %(now)s
WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s AND "gmailRefreshToken" = %(refresh_token)s;

-- name: clear_gmail  Google revoked the user's grant: the connection has to be made again in the CRM.
UPDATE "User"
SET "gmailAccessToken" = NULL, "gmailRefreshToken" = NULL, "gmailTokenExpiry" = NULL, "gmailConnectedAt" = NULL,
    "gmailScopes" = NULL, "updatedAt" = %(now)s
WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s AND "gmailRefreshToken" = %(refresh_token)s;

-- name: suppress  A provider refused this address (an e-mail address, or a number with its plus sign) for later, too.
SELECT worker.suppress(%(tenant_id)s, %(channel)s, %(address)s, %(reason)s, %(source)s, %(until)s::timestamp, NULL,
                       nullif(%(code)s, '')) AS changed
WHERE worker.listed_address(%(channel)s, %(address)s) IS NOT NULL;

-- name: suppressions_since  Which of these lists got an entry in a transaction that an earlier look did not see as ended.
SELECT pg_snapshot_xmin(snapshot)::text AS seen, ARRAY(
    SELECT list.number::integer
    FROM unnest(%(tenant_ids)s::text[], %(channels)s::text[]) WITH ORDINALITY AS list (tenant_id, channel, number)
    WHERE pg_snapshot_xmin(snapshot) < %(seen)s::xid8 OR EXISTS ( -- another server's numbers: everything is looked at
        SELECT FROM worker.suppression s
        WHERE s.tenant_id = list.tenant_id AND s.channel = list.channel
          -- up to now: a table that was restored from another server may have higher numbers
          AND s.changed_by >= %(seen)s::xid8 AND s.changed_by < pg_snapshot_xmax(snapshot)
    )
) AS changed
FROM pg_current_snapshot() AS snapshot;

-- name: suppressed_addresses  Which of these addresses a tenant may not write to or call now, for whatever reason.
SELECT a.address, s.reason
FROM unnest(%(addresses)s::text[]) AS a (address)
CROSS JOIN LATERAL (
    SELECT s.reason FROM worker.suppression s
    WHERE s.tenant_id = %(tenant_id)s AND s.channel = %(channel)s AND s.address = a.address AND
        -- include: still_suppressed
    LIMIT 1
) AS s;
