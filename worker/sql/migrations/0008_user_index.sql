-- concurrently: each statement on its own, without blocking the CRM.

-- The CRM has an index on "User" ("tenantId") of its own.
DROP INDEX CONCURRENTLY IF EXISTS "worker_user_tenant";
