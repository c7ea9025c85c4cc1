-- How many messages each account sent in the last hours, and for what a campaign waits.

-- A message is reserved before it leaves. An hour counts until it has been over for 24 hours.
CREATE TABLE worker.quota (
    account_kind text NOT NULL CHECK (account_kind IN ('smtp', 'gmail', 'whatsapp')),
    account      text NOT NULL,           -- smtp: the server; gmail: tenant and address; whatsapp: the tenant
    hour         timestamp(3) NOT NULL,   -- its beginning, UTC
    tenant_id    text NOT NULL,           -- '': whoever runs the CRM
    used         integer NOT NULL CHECK (used >= 0),
    most         integer NOT NULL,        -- the account's limit by then, for whoever shows it
    PRIMARY KEY (account_kind, account, hour, tenant_id)
);

-- Reserves at most want messages of an account for a tenant, and returns how many: what the account may still send (ceiling
-- in 24 hours) but for those that are left to others, and no more than the tenant's share (NULL: all of it). at: UTC.
CREATE FUNCTION worker.reserve(
    kind text, name text, tenant text, want integer, ceiling integer, left_over integer, share integer,
    at timestamp
) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    this_hour timestamp := date_trunc('hour', at);
    granted integer;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(kind || ' ' || name, 1903199841));
    -- a statement of its own: it sees what others reserved while this one waited for the lock
    SELECT greatest(0, least(want, ceiling - left_over - coalesce(sum(q.used), 0),
                             share - coalesce(sum(q.used) FILTER (WHERE q.tenant_id = tenant), 0)))
    INTO granted
    FROM worker.quota q
    WHERE q.account_kind = kind AND q.account = name
      -- a clock that was set back may have left hours ahead; farther ones would count for as long as it was wrong by
      AND q.hour BETWEEN this_hour - interval '24 hours' AND this_hour + interval '24 hours';
    IF granted > 0 THEN
        INSERT INTO worker.quota AS q (account_kind, account, hour, tenant_id, used, most)
        VALUES (kind, name, this_hour, tenant, granted, ceiling)
        ON CONFLICT (account_kind, account, hour, tenant_id) DO UPDATE
        SET used = q.used + excluded.used, most = excluded.most;
        DELETE FROM worker.quota q
        WHERE q.account_kind = kind AND q.account = name AND q.hour < this_hour - interval '48 hours';
    END IF;
    RETURN granted;
END $$;

-- Until when a campaign waits for something that its user cares about; it may be looked at sooner.
ALTER TABLE worker.campaign_run
    ADD waits_for   text CHECK (waits_for IN ('quota', 'window')),
    ADD waits_until timestamp(3);

-- The account that a message waits for because its quota is used up: campaigns leave one message for it.
ALTER TABLE worker.notice ADD waits_for text;
CREATE INDEX notice_waits_for ON worker.notice (waits_for) WHERE waits_for IS NOT NULL;

-- What Meta says about the tenants' WhatsApp numbers.
CREATE TABLE worker.whatsapp_number (
    tenant_id text PRIMARY KEY,
    phone_id  text NOT NULL,
    people    integer,                    -- that may be written to first in 24 hours; NULL: no limit, or it is unknown
    quality   text NOT NULL,              -- GREEN, YELLOW, RED; '': unknown
    read_at   timestamp(3) NOT NULL
);
