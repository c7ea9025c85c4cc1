    -- the calls that can be booked: not when another worker has the claim, when its creator is none of the tenant's users,
    -- or when the call is in the log already: for another tenant, or for another row of the queue
    SELECT c.queue_id, c.tenant_id, c.to_number, p.sid, p.status, i.*
    FROM unnest(%(ids)s::text[], %(sids)s::text[], %(statuses)s::text[]) AS p (queue_id, sid, status)
    JOIN worker.call_claim c ON c.queue_id = p.queue_id
    CROSS JOIN jsonb_to_record(c.item) AS i ("leadId" text, "contactId" text, "phoneCountryCode" text,
        "callType" text, "callScriptId" text, "triggerType" text, "automationRuleId" text, metadata jsonb,
        "createdById" text)
    WHERE c.holder = %(holder)s
      AND (SELECT u.id FROM "User" u
           WHERE u.id = i."createdById" AND (u."tenantId" = c.tenant_id) IS TRUE) IS NOT NULL
      AND (SELECT l.id FROM "CallLog" l
           WHERE l."twilioCallSid" = p.sid AND (l."tenantId" <> c.tenant_id OR (
              SELECT o.id FROM "CallQueue" o WHERE o."callLogId" = l.id AND o.id <> c.queue_id) IS NOT NULL)) IS NULL
    FOR UPDATE OF c
