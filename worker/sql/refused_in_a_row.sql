-- The refusals of each "run" since a message of it was accepted. Messages that were sent, and came back later, have the
-- time at which they were, and say nothing about what is accepted now. Nor do mailboxes that are full (5.2.2).
SELECT f.recipient_id, f.campaign_id, f.tenant_id, f.pattern, f.reply, f.failed_at
FROM run JOIN worker.failure f ON f.campaign_id = run.campaign_id AND f.tenant_id = run.tenant_id
CROSS JOIN LATERAL (
    SELECT FROM "CampaignRecipient" p
    WHERE p.id = f.recipient_id AND p."sentAt" IS NULL AND p.status || '' = 'failed'
      AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = f.tenant_id
    OFFSET 0  -- each by primary key, and never all of a table
) AS recipient
WHERE f.kind = 'refused' AND f.code NOT LIKE '%% 5.2.2' AND f.failed_at > run.since
