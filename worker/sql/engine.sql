-- Statements about the schema "engine": Procrastinate's tables, and which process is which of its workers.

-- name: exists  Whether the tables are there.
SELECT to_regclass('engine.applied') IS NOT NULL AS present;

-- name: newest  The newest of the library's scripts that the tables have seen.
SELECT max(name) AS newest FROM engine.applied;

-- name: make_schema  Before the library's own tables.
CREATE SCHEMA IF NOT EXISTS engine;

-- name: make_tables  After the library's own tables.
CREATE TABLE engine.applied (name text PRIMARY KEY);
CREATE TABLE engine.sender (
    worker_id bigint PRIMARY KEY REFERENCES engine.procrastinate_workers (id) ON DELETE CASCADE,
    host      text NOT NULL,
    pid       integer NOT NULL
);

-- name: record  The tables are as new as this script of the library.
INSERT INTO engine.applied (name) VALUES (%(name)s) ON CONFLICT DO NOTHING;

-- name: ready  The runs that may send now, the longest waiting first, and whether they have anybody to write to now.
SELECT r.campaign_id, r.tenant_id, r.prepared,
       EXISTS (
           SELECT FROM worker.campaign_retry q WHERE q.campaign_id = r.campaign_id AND q.due_at <= %(now)s
       ) OR EXISTS (
           SELECT FROM "CampaignRecipient" p
           WHERE p."campaignId" = r.campaign_id AND p.status = 'pending' AND p.id > r.position
             AND coalesce(p."tenantId" = r.tenant_id, false)
             AND NOT EXISTS (SELECT FROM worker.campaign_retry q WHERE q.recipient_id = p.id)
       ) AS has_due
FROM worker.campaign_run r
WHERE r.next_batch_at <= %(now)s
ORDER BY r.next_batch_at LIMIT 1000;

-- name: units  The units that wait and run; those of a campaign that has ended have no tenant.
SELECT j.args ->> 'campaign_id' AS campaign_id, coalesce(r.tenant_id, '') AS tenant_id, j.queueing_lock AS slot,
       j.status = 'todo' AS waits
FROM engine.procrastinate_jobs j
LEFT JOIN worker.campaign_run r ON r.campaign_id = j.args ->> 'campaign_id'
WHERE j.status IN ('todo', 'doing');

-- name: senders  The senders that gave a sign of life, and how many units each runs.
SELECT s.host, s.pid,
       (SELECT count(*) FROM engine.procrastinate_jobs j WHERE j.worker_id = w.id AND j.status = 'doing') AS units
FROM engine.procrastinate_workers w JOIN engine.sender s ON s.worker_id = w.id
WHERE w.last_heartbeat > now() - make_interval(secs => %(timeout_seconds)s)
ORDER BY s.host, s.pid;

-- name: waiting  How many units wait for a sender.
SELECT count(*) AS number FROM engine.procrastinate_jobs WHERE status = 'todo';
