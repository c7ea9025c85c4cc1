-- Those that were "refused" in a row are pending again: a sender's fault may have been said in several ways.
UPDATE "CampaignRecipient" p
SET status = 'pending', "failedAt" = NULL, "errorMessage" = NULL, "updatedAt" = %(now)s
FROM refused f
WHERE p.id = f.recipient_id AND p.status || '' = 'failed'
  AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = f.tenant_id
RETURNING p.id, f.campaign_id
