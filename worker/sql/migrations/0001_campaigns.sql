-- The worker's own tables for campaigns. Times are UTC without zone, as everywhere in the CRM.

CREATE TABLE worker.campaign_run (
    campaign_id   text PRIMARY KEY,
    tenant_id     text NOT NULL,
    started_at    timestamp(3) NOT NULL,         -- by the database's clock: a pause logged later ends this run
    prepared      boolean NOT NULL DEFAULT false, -- targets built, double addresses taken out
    next_batch_at timestamp(3) NOT NULL,
    position      text NOT NULL DEFAULT '',       -- recipients up to this id were claimed once
    holds         integer NOT NULL DEFAULT 0      -- times in a row that the provider put off the campaign
);
CREATE INDEX campaign_run_next ON worker.campaign_run (next_batch_at);

CREATE TABLE worker.campaign_batch (
    id            uuid PRIMARY KEY,
    campaign_id   text NOT NULL,
    holder        text NOT NULL,                  -- host:pid:random of the process
    machine       text NOT NULL,                  -- whose local disk has the journal of this batch
    sender        text NOT NULL,                  -- through whom its messages leave
    asking        boolean NOT NULL DEFAULT false, -- nothing is sent: a provider is asked about earlier sends
    recipient_ids text[] NOT NULL,
    renewed_at    timestamp(3) NOT NULL           -- by the database's clock, which all machines share
);
CREATE INDEX campaign_batch_campaign ON worker.campaign_batch (campaign_id);

CREATE TABLE worker.campaign_retry (
    recipient_id text PRIMARY KEY,
    campaign_id  text NOT NULL,
    attempts     integer NOT NULL,                -- sends that were tried
    due_at       timestamp(3) NOT NULL,
    reason       text NOT NULL
);
CREATE INDEX campaign_retry_due ON worker.campaign_retry (campaign_id, due_at);

CREATE TABLE worker.unconfirmed_send (
    recipient_id text PRIMARY KEY,
    campaign_id  text NOT NULL,
    sender       text NOT NULL,                   -- through whom it left: only the same one can be asked
    attempts     integer NOT NULL,
    ask_at       timestamp(3) NOT NULL            -- when the provider is asked what became of it
);
CREATE INDEX unconfirmed_send_ask ON worker.unconfirmed_send (ask_at);

CREATE TABLE worker.suppression (
    tenant_id  text NOT NULL,
    channel    text NOT NULL,
    address    text NOT NULL,
    reason     text NOT NULL,
    created_at timestamp(3) NOT NULL,
    PRIMARY KEY (tenant_id, channel, address)
);

-- One spelling for each address, to find the same one twice. Numbers without a country code are Indian, as in the CRM;
-- "(0)" and a 0 after +91 are dialled at home only.
CREATE FUNCTION worker.address(channel text, email text, phone text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN channel = 'email' THEN nullif(lower(btrim(email)), '')
        WHEN written ~ '^\s*(\+|00)' THEN nullif(regexp_replace(ltrim(digits, '0'), '^910([0-9]{10})$', '91\1'), '')
        WHEN ltrim(digits, '0') ~ '^[0-9]{10}$' THEN '91' || ltrim(digits, '0')
        ELSE nullif(regexp_replace(ltrim(digits, '0'), '^910([0-9]{10})$', '91\1'), '')
    END
    FROM (
        SELECT written, regexp_replace(written, '[^0-9]', '', 'g') AS digits
        FROM (SELECT replace(translate(coalesce(phone, ''), '०१२३४५६७८९', '0123456789'), '(0)', '') AS written) AS latin
    ) AS number
$$;

-- A number that the CRM normalised has its country code, with or without the plus sign.
CREATE FUNCTION worker.international(normalized text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN normalized ~ '^[0-9]{11,15}$' THEN '+' || normalized ELSE nullif(normalized, '') END
$$;
