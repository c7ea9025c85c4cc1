-- the people whom a campaign is for by its target, and the place of each among those with one address
wanted AS (
    SELECT %(status)s::text[] AS status, %(priority)s::text[] AS priority, %(type)s::text[] AS type,
           %(industry)s::text[] AS industry, %(tags)s::text[] AS tags, %(assigned_to)s::text AS assigned_to,
           %(created_after)s::timestamp AS created_after, lower(%(search)s::text) AS search
), person AS (
    SELECT 'lead' AS kind, l.id, l.name, l.email,
           coalesce(worker.international(worker.international(l."whatsappNormalized"), l."phoneCountryCode"),
                    worker.international(worker.international(l."phoneNormalized"), l."phoneCountryCode"),
                    worker.international(l.whatsapp, l."phoneCountryCode"),
                    worker.international(l.phone, l."phoneCountryCode")) AS phone
    FROM "Lead" l, wanted w
    WHERE %(target)s IN ('all', 'leads', 'tags')
      AND l."tenantId" = %(tenant_id)s AND l."userId" = %(user_id)s
      AND (%(target)s <> 'tags' OR l.tags && w.tags)
      AND (w.status = '{}' OR l.status = ANY (w.status))
      AND (w.priority = '{}' OR l.priority = ANY (w.priority))
      AND (w.tags = '{}' OR l.tags && w.tags)
      AND (w.assigned_to IS NULL OR l."assignedTo" = w.assigned_to)
      AND (w.created_after IS NULL OR l."createdAt" > w.created_after)
      AND (w.search IS NULL OR strpos(lower(l.name), w.search) > 0 OR strpos(lower(l.email), w.search) > 0
           OR strpos(lower(l.company), w.search) > 0)
    UNION ALL
    SELECT 'contact', k.id, k.name, k.email,
           coalesce(worker.international(worker.international(k."whatsappNormalized"), k."phoneCountryCode"),
                    worker.international(worker.international(k."phoneNormalized"), k."phoneCountryCode"),
                    worker.international(k.whatsapp, k."phoneCountryCode"),
                    worker.international(k.phone, k."phoneCountryCode"))
    FROM "Contact" k, wanted w
    WHERE %(target)s IN ('all', 'contacts', 'tags')
      AND k."tenantId" = %(tenant_id)s AND k."userId" = %(user_id)s
      AND (%(target)s <> 'tags' OR k.tags && w.tags)
      AND (w.type = '{}' OR k.type = ANY (w.type))
      AND (w.industry = '{}' OR k.industry = ANY (w.industry))
      AND (w.tags = '{}' OR k.tags && w.tags)
      AND (w.assigned_to IS NULL OR k."assignedTo" = w.assigned_to)
      AND (w.created_after IS NULL OR k."createdAt" > w.created_after)
      AND (w.search IS NULL OR strpos(lower(k.name), w.search) > 0 OR strpos(lower(k.email), w.search) > 0
           OR strpos(lower(k.company), w.search) > 0)
    UNION ALL
    SELECT 'custom', left(item, 254), left(item, 254),  -- longer texts are no addresses, and fail with the reason
           CASE WHEN %(channel)s = 'email' THEN left(item, 300) END,
           CASE WHEN %(channel)s = 'whatsapp' THEN left(item, 300) END
    FROM unnest(%(custom)s::text[]) AS item
    WHERE %(target)s = 'custom' AND btrim(item) <> ''
), addressed AS (
    SELECT *, worker.address(%(channel)s, email, phone) AS address FROM person
), reachable AS (
    -- the first one of each address is written to; a lead rather than a contact
    SELECT kind, id, name, email, phone, address, row_number() OVER (PARTITION BY address ORDER BY kind DESC, id) AS place
    FROM addressed
    WHERE CASE WHEN %(channel)s = 'email' THEN strpos(email, '@') > 0 ELSE address IS NOT NULL END
)
