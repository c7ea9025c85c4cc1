-- The CRM's outbox. Included into statements that have a part named email.
INSERT INTO "EmailLog" (id, "to", "from", subject, body, "htmlBody", status, "messageId", "gmailMessageId",
    "gmailThreadId", "entityType", "entityId", "sentAt", "tenantId", "userId", "createdAt", "updatedAt")
SELECT gen_random_uuid()::text, ARRAY[address], sender, subject, body, html, 'sent', message_id, gmail_id,
       gmail_thread_id, entity_type, entity_id, at, tenant_id, user_id, at, at
FROM email
