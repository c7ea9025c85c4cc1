-- How many recipients of campaign c are tried again later, and when: by the hour, those due last.
(SELECT coalesce(json_agg(json_build_object('at', hourly.at, 'number', hourly.number) ORDER BY hourly.at), '[]')
 FROM (
     SELECT max(q.due_at) AS at, count(*) AS number
     FROM (
         SELECT q.due_at FROM worker.campaign_retry q
         WHERE q.campaign_id = c.id AND q.due_at > statement_timestamp() AT TIME ZONE 'UTC'
         ORDER BY q.due_at DESC LIMIT 10000
     ) AS q
     GROUP BY date_trunc('hour', q.due_at)
 ) AS hourly)
