-- an address "s" that was on the list for some time only
ON CONFLICT (tenant_id, channel, address, source) DO UPDATE
SET reason = excluded.reason, campaign_id = excluded.campaign_id, code = excluded.code, until = NULL,
    changed_at = excluded.changed_at, changed_by = excluded.changed_by
WHERE s.until IS NOT NULL
