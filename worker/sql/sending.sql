-- Statements that all jobs share which send messages. %(now)s is UTC without zone, as in the whole CRM.

-- name: save_token  Keeps a refreshed Gmail access token.
UPDATE "User" SET "gmailAccessToken" = %(token)s, "gmailTokenExpiry" = %(expiry)s, "updatedAt" = %(now)s
WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s AND "gmailRefreshToken" = %(refresh_token)s;

-- name: clear_gmail  Google revoked the user's grant: the connection has to be made again in the CRM.
UPDATE "User"
SET "gmailAccessToken" = NULL, "gmailRefreshToken" = NULL, "gmailTokenExpiry" = NULL, "gmailConnectedAt" = NULL,
    "gmailScopes" = NULL, "updatedAt" = %(now)s
WHERE id = %(user_id)s AND "tenantId" = %(tenant_id)s AND "gmailRefreshToken" = %(refresh_token)s;

-- name: suppress  This address (an e-mail address, or a number with its plus sign) wants no more messages or calls.
INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at)
VALUES (%(tenant_id)s, %(channel)s, worker.address(%(channel)s, %(address)s, %(address)s), %(reason)s, %(now)s)
ON CONFLICT DO NOTHING;
