-- Statements of the unsubscribe page.

-- name: limit  For the present transaction: somebody waits for the page.
SELECT set_config('statement_timeout', '3s', true);

-- name: sender  Whose messages they are, as the tenant signs them; no row when it is deleted.
SELECT coalesce(nullif(btrim(settings -> 'openai' ->> 'companyName'), ''), name) AS name
FROM "Tenant" WHERE id = %(tenant_id)s;

-- name: unsubscribe  Returns whether that is new.
SELECT worker.suppress(
    %(tenant_id)s, %(channel)s, %(address)s, 'unsubscribed by a link', 'unsubscribe', NULL, %(campaign_id)s
) AS changed;

-- name: resubscribe  Takes back an unsubscription, and no other reason that the address is on the list for.
SELECT worker.unsuppress(%(tenant_id)s, %(channel)s, %(address)s, 'unsubscribe') AS changed;
