-- Whether the CRM has paused, resumed or started the campaign of run r since the worker did. The rows are counted,
-- because they have the times of app servers, whose clocks differ; a day is more than they can differ by.
(SELECT count(*) FROM "CampaignLog" l
 WHERE l."campaignId" = r.campaign_id AND l."tenantId" = r.tenant_id
   AND l.action IN ('paused', 'resumed', 'started')
   -- a run of an older version did not count them: then by time
   AND l."createdAt" > r.started_at - CASE WHEN r.log_rows IS NULL THEN interval '0' ELSE interval '1 day' END
) > coalesce(r.log_rows, 0)
