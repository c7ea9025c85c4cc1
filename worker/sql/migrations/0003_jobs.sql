-- The worker's own tables for reminders, trials and calls.

-- What was reminded of to whom: the same lead not again before the tenant's checkIntervalHours have passed.
CREATE TABLE worker.lead_reminder (
    tenant_id   text NOT NULL,
    channel     text NOT NULL,
    address     text NOT NULL,
    lead_id     text NOT NULL,
    reminded_at timestamp(3) NOT NULL,            -- the tick that claimed its digest
    notice_id   uuid NOT NULL,                    -- the digest: what did not leave is forgotten with its leads
    PRIMARY KEY (tenant_id, channel, address, lead_id) INCLUDE (reminded_at)
);

-- A message of reminders or trial until it is settled.
CREATE TABLE worker.notice (
    id          uuid PRIMARY KEY,
    job         text NOT NULL,
    tenant_id   text,                             -- null: to whoever runs the CRM
    channel     text NOT NULL,
    address     text NOT NULL,
    content     jsonb NOT NULL,                   -- all that the message is made of
    created_at  timestamp(3) NOT NULL,
    due_at      timestamp(3) NOT NULL,            -- of one that nobody holds
    attempts    integer NOT NULL DEFAULT 0,
    holder      text,                             -- host:pid:random of the process; null: nobody
    handed_over boolean NOT NULL DEFAULT false,   -- it may have reached its provider
    renewed_at  timestamp(3) NOT NULL             -- by the database's clock, which all machines share
);
-- One at a time for each recipient. Where tenant_id is null it may be more.
CREATE UNIQUE INDEX notice_recipient ON worker.notice (job, tenant_id, channel, address);
CREATE INDEX notice_due ON worker.notice (job, due_at) WHERE holder IS NULL;

-- A queued call in a worker's hands, or one of which nobody knows yet whether it was placed.
CREATE TABLE worker.call_claim (
    queue_id    text PRIMARY KEY,
    tenant_id   text NOT NULL,
    account_sid text NOT NULL,
    from_number text NOT NULL,
    to_number   text NOT NULL,                    -- E.164
    item        jsonb NOT NULL,                   -- the queue's row as it was claimed: it may be deleted meanwhile
    holder      text NOT NULL,
    claimed_at  timestamp(3) NOT NULL,            -- by the database's clock: no call of this claim is older
    ask_at      timestamp(3),                     -- when Twilio is asked; null: its holder is at it
    asked       integer NOT NULL DEFAULT 0,       -- times that Twilio was asked in vain
    reason      text                              -- why nobody knows
);
-- Twilio is asked by number: two open claims of one number could not be told apart.
CREATE UNIQUE INDEX call_claim_number ON worker.call_claim (account_sid, to_number);
CREATE INDEX call_claim_tenant ON worker.call_claim (tenant_id);
