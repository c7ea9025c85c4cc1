-- WhatsApp reports Argentina's mobile numbers with a 9 after the country code, which many people leave out: both are one
-- person's. To call, they are two numbers: one of a mobile phone, one of a fixed line.
CREATE OR REPLACE FUNCTION worker.address(channel text, email text, phone text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN channel = 'email' THEN
            CASE WHEN email ~ '^[!-~]+$' THEN lower(email COLLATE "C") ELSE worker.email_address(email) END
        WHEN phone ~ '^\+91[1-9][0-9]{9}$' THEN substr(phone, 2)
        WHEN phone ~ '^[1-9][0-9]{9}$' THEN '91' || phone
        WHEN channel = 'whatsapp' THEN regexp_replace(worker.phone_address(phone), '^54([1-3][0-9]{9})$', '549\1')
        ELSE worker.phone_address(phone)
    END
$$;

-- Who is on a list without the 9.
WITH renamed AS (
    DELETE FROM worker.suppression WHERE channel = 'whatsapp' AND address ~ '^54[1-3][0-9]{9}$'
    RETURNING tenant_id, source, '549' || substr(address, 3) AS address, reason, campaign_id, code, until, created_at
)
INSERT INTO worker.suppression AS s (tenant_id, channel, address, source, reason, campaign_id, code, until, created_at)
SELECT tenant_id, 'whatsapp', address, source, reason, campaign_id, code, until, created_at FROM renamed
ON CONFLICT (tenant_id, channel, address, source) DO UPDATE
SET reason = excluded.reason, campaign_id = excluded.campaign_id, code = excluded.code, until = excluded.until,
    changed_at = excluded.changed_at, changed_by = excluded.changed_by
WHERE s.until < coalesce(excluded.until, 'infinity');  -- what ends later stays
