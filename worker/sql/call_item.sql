-- The queue's row "q" as worker.call_claim keeps it: the row may be changed or deleted while the call is placed. Lead,
-- contact and script are those of the tenant, or null. Without a script of its own a call has the tenant's default one.
-- Only values of bounded length may be put into an index of "CallLog". Python never reads metadata, which may be any JSON.
jsonb_build_object(
    'leadId', (
        SELECT l.id FROM "Lead" l WHERE l.id = q."leadId" AND (l."tenantId" = q."tenantId") IS TRUE),
    'contactId', (
        SELECT p.id FROM "Contact" p WHERE p.id = q."contactId" AND (p."tenantId" = q."tenantId") IS TRUE),
    'callScriptId', coalesce((
        SELECT s.id FROM "CallScript" s WHERE s.id = q."callScriptId" AND (s."tenantId" = q."tenantId") IS TRUE), (
        SELECT s.id FROM "CallScript" s
        WHERE s.id = (SELECT t."defaultCallScriptId" FROM "CallSettings" t WHERE t."tenantId" = q."tenantId")
          AND (s."tenantId" = q."tenantId") IS TRUE)),
    'automationRuleId', q."automationRuleId", 'phoneCountryCode', q."phoneCountryCode",
    'callType', left(q."callType", 100), 'triggerType', q."triggerType", 'attempts', q.attempts,
    'createdById', q."createdById", 'metadata', q.metadata)
