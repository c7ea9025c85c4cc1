-- concurrently: each statement on its own, without blocking the CRM.

-- How many rows of "CampaignLog" say 'paused', 'resumed' or 'started' when a run begins, its own one among them.
ALTER TABLE worker.campaign_run ADD COLUMN IF NOT EXISTS log_rows integer;

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_campaign_log_changes"
    ON "CampaignLog" ("campaignId", "createdAt") WHERE action IN ('paused', 'resumed', 'started');

DROP INDEX CONCURRENTLY IF EXISTS "worker_campaign_log_pause";
