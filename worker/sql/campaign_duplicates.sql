-- the recipients of a campaign, by the place of each among those with one address
addressed AS (
    SELECT id, status, worker.address(%(channel)s, "recipientEmail", "recipientPhone") AS address,
           CASE WHEN %(channel)s = 'email' THEN lower("recipientEmail" COLLATE "C")
                ELSE ltrim("recipientPhone", '+') END AS written
    FROM "CampaignRecipient" WHERE "campaignId" = %(campaign_id)s AND "tenantId" = %(tenant_id)s
      AND (status <> 'failed'
           OR "errorMessage" IS DISTINCT FROM 'Another recipient of this campaign has the same address')
), numbered AS (
    SELECT id, status, address, row_number() OVER (
        PARTITION BY address
        ORDER BY status = 'pending', written IS DISTINCT FROM address, id  -- the plainest spelling can be sent to
    ) AS place
    FROM addressed WHERE address IS NOT NULL
)
