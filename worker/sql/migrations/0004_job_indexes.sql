-- concurrently: each statement on its own, without blocking the CRM.

-- All columns that reminders ask for: half a million quiet leads are told from those reminded of without their rows.
CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_lead_quiet"
    ON "Lead" ("tenantId", "stageId", GREATEST("createdAt", "lastContactedAt"))
    INCLUDE (id, "createdAt", "lastContactedAt");

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_call_queue_pending"
    ON "CallQueue" ("tenantId", priority DESC, "createdAt", id) INCLUDE ("scheduledFor", "nextRetryAt")
    WHERE status = 'pending';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_call_queue_due"
    ON "CallQueue" (GREATEST("scheduledFor", "nextRetryAt")) WHERE status = 'pending';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_call_queue_processing"
    ON "CallQueue" ("updatedAt") WHERE status = 'processing';

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_call_queue_ended"
    ON "CallQueue" ("updatedAt") WHERE status IN ('completed', 'failed', 'cancelled');

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_call_log_live"
    ON "CallLog" ("tenantId", "updatedAt") WHERE "twilioStatus" IN ('queued', 'ringing', 'in-progress');

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_tenant_trial"
    ON "Tenant" ("subscriptionEnd") WHERE plan = 'FREE' AND status IN ('ACTIVE', 'TRIAL');

CREATE INDEX CONCURRENTLY IF NOT EXISTS "worker_user_tenant"
    ON "User" ("tenantId");
