-- The rows that changed_by_crm counts, and the one that this statement adds.
(SELECT count(*) + 1 FROM "CampaignLog" l
 WHERE l."campaignId" = c.id AND l."tenantId" = c."tenantId" AND l.action IN ('paused', 'resumed', 'started')
   AND l."createdAt" > statement_timestamp() AT TIME ZONE 'UTC' - interval '1 day')
