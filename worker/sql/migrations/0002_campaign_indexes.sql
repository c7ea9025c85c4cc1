-- concurrently: each statement on its own, without blocking the CRM.

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_campaign_due"
    ON "Campaign" ("scheduledAt") WHERE status = 'scheduled';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_campaign_running"
    ON "Campaign" (id) WHERE status = 'running';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_campaign_recipient_pending"
    ON "CampaignRecipient" ("campaignId", id) WHERE status = 'pending';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_campaign_log_pause"
    ON "CampaignLog" ("campaignId", "createdAt") WHERE action IN ('paused', 'resumed');
