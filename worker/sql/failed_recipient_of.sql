-- the recipient of a failure "f", if it is still failed. By its primary key: OFFSET keeps it from being joined otherwise.
SELECT p."recipientEmail", p."recipientPhone" FROM "CampaignRecipient" p
WHERE p.id = f.recipient_id AND p.status || '' = 'failed'
  AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = f.tenant_id
OFFSET 0
