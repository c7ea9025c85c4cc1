-- Delivery reports and complaints that had an effect: each has one once, and soft bounces of an address are counted.
CREATE TABLE worker.bounce (
    report      text PRIMARY KEY,        -- SHA-256 of what was read of it, in hex
    message     text NOT NULL,           -- the recipient's row; of a notification, which has none, the report
    tenant_id   text NOT NULL,
    address     text NOT NULL,           -- as in worker.suppression
    kind        text NOT NULL CHECK (kind IN ('hard', 'soft', 'refused', 'complaint')),
    code        text NOT NULL,           -- enhanced code (RFC 3463), '' for a complaint
    reported_at timestamp(3) NOT NULL    -- when it was read
);
CREATE INDEX bounce_address ON worker.bounce (tenant_id, address, reported_at);
CREATE INDEX bounce_reported_at ON worker.bounce (reported_at);
