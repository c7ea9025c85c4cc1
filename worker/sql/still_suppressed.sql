-- an entry "s" of the list of suppressed addresses has not ended, by the database's clock
coalesce(s.until > statement_timestamp() AT TIME ZONE 'UTC', true)
