-- The failed recipients of a campaign with these kinds of failures, and whether their address is on the list now.
SELECT p.id, f.kind, EXISTS (
           SELECT FROM worker.suppression s
           WHERE s.tenant_id = f.tenant_id AND s.channel = %(channel)s
             AND s.address = worker.address(%(channel)s, p."recipientEmail", p."recipientPhone")
             AND (s.until IS NULL OR s.until > %(now)s)
       ) AS suppressed
FROM worker.failure f JOIN "CampaignRecipient" p
    ON p.id = f.recipient_id AND p."campaignId" || '' = f.campaign_id AND p."tenantId" || '' = f.tenant_id
WHERE f.campaign_id = %(campaign_id)s AND f.tenant_id = %(tenant_id)s AND f.kind = ANY (%(kinds)s::text[])
  AND p.status || '' = 'failed'
