-- Who must not be written to or called, since when, why and for how long; and what became of recipients that failed.

-- An address may be on the list for several reasons at a time: to take back an unsubscription does not take back a bounce.
UPDATE worker.suppression SET reason = 'opted out' WHERE reason = '';
ALTER TABLE worker.suppression
    ADD CHECK (reason <> ''),
    ADD source      text NOT NULL DEFAULT 'provider'  -- as earlier versions of the worker write it
        CHECK (source IN ('unsubscribe', 'bounce', 'complaint', 'provider', 'operator', 'import')),
    ADD campaign_id text,
    ADD code        text,                             -- of the reply or report that it comes from
    ADD until       timestamp(3),                     -- NULL: for ever
    ADD changed_at  timestamp(3) NOT NULL DEFAULT (statement_timestamp() AT TIME ZONE 'UTC'),
    -- the transaction: what was committed since an earlier look is found however long it took, which no time can tell
    ADD changed_by  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    DROP CONSTRAINT suppression_pkey,
    ADD PRIMARY KEY (tenant_id, channel, address, source);
CREATE INDEX suppression_changed ON worker.suppression (tenant_id, channel, changed_by);

-- For the CRM's app servers and the worker alike. Returns whether anything changed.
-- channel: email, whatsapp or call. address: an e-mail address, or a number with plus sign and country code, or an Indian
-- one: ten digits without a plus sign are Indian, so Meta's wa_id needs one.
-- until: UTC; NULL: for ever. Raises invalid_parameter_value (22023) for what is not an address, channel or source.
CREATE FUNCTION worker.suppress(
    tenant text, channel text, address text, reason text, source text, until timestamp DEFAULT NULL,
    campaign text DEFAULT NULL, code text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    now timestamp := statement_timestamp() AT TIME ZONE 'UTC';
    stored text := worker.suppression_address(channel, address);
BEGIN
    IF coalesce(tenant, '') = '' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a tenant is needed';
    ELSIF source NOT IN ('unsubscribe', 'bounce', 'complaint', 'provider', 'operator', 'import') OR source IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('source %s is unknown', coalesce(quote_literal(source), 'NULL')),
            HINT = 'one of unsubscribe, bounce, complaint, provider, operator, import';
    END IF;
    INSERT INTO worker.suppression AS s
        (tenant_id, channel, address, source, reason, campaign_id, code, until, created_at, changed_at)
    VALUES (tenant, channel, stored, source, left(coalesce(nullif(reason, ''), source), 500), campaign, left(code, 100),
            until, now, now)
    ON CONFLICT (tenant_id, channel, address, source) DO UPDATE
    SET reason = excluded.reason, campaign_id = excluded.campaign_id, code = excluded.code, until = excluded.until,
        changed_at = excluded.changed_at, changed_by = excluded.changed_by
    -- what ends later stays; what has ended begins anew
    WHERE s.until < coalesce(excluded.until, 'infinity');
    RETURN FOUND;
END $$;

-- Takes an address off the list, for one source or for all. Returns whether it was there.
CREATE FUNCTION worker.unsuppress(tenant text, channel text, address text, source text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored text := worker.suppression_address(channel, address);
BEGIN
    DELETE FROM worker.suppression s
    WHERE s.tenant_id = unsuppress.tenant AND s.channel = unsuppress.channel AND s.address = stored
      AND (unsuppress.source IS NULL OR s.source = unsuppress.source);
    RETURN FOUND;
END $$;

-- The spelling under which an address is on the list, as worker.address makes it; NULL when it is none.
CREATE FUNCTION worker.listed_address(channel text, address text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN channel = 'email' THEN substring(worker.address(channel, address, NULL) FROM '^.{1,254}@[^@[:space:]]{1,254}$')
        WHEN address ~ '^[1-9][0-9]{9}$' THEN '91' || address  -- first what most lines of a file of numbers are
        WHEN address ~ '^\+?91[1-9][0-9]{9}$' THEN ltrim(address, '+')
        ELSE substring(worker.address(channel, NULL, worker.international(address)) FROM '^[1-9][0-9]{6,14}$')
    END
$$;

-- The same; raises invalid_parameter_value (22023) when it is none.
CREATE FUNCTION worker.suppression_address(channel text, address text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored text := worker.listed_address(channel, address);
BEGIN
    IF channel IS NULL OR channel NOT IN ('email', 'whatsapp', 'call') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('channel %s is unknown', coalesce(quote_literal(channel), 'NULL')),
            HINT = 'one of email, whatsapp, call';
    ELSIF stored IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('not an address for %s', channel);
    END IF;
    RETURN stored;
END $$;

REVOKE EXECUTE ON FUNCTION worker.suppress, worker.unsuppress FROM PUBLIC;

-- The latest failure of a recipient; FAILURES_KEEP says for how long it stays.
CREATE TABLE worker.failure (
    recipient_id text PRIMARY KEY,
    campaign_id  text NOT NULL,
    tenant_id    text NOT NULL,
    kind         text NOT NULL
        CHECK (kind IN ('address', 'suppressed', 'refused', 'deferred', 'unconfirmed', 'content')),
    code         text NOT NULL DEFAULT '',  -- of the reply: '550 5.1.1', '131026'
    reply        text NOT NULL DEFAULT '',  -- the provider's words, or ours
    pattern      text NOT NULL DEFAULT '',  -- the reply without what differs from one recipient to the next
    failed_at    timestamp(3) NOT NULL
);
CREATE INDEX failure_campaign ON worker.failure (campaign_id, failed_at);
CREATE INDEX failure_failed_at ON worker.failure (failed_at);

-- When a provider last accepted a message of the run: refusals since then are in a row.
ALTER TABLE worker.campaign_run ADD accepted_at timestamp(3);
