-- When run r fails, refusals since then are taken back: since the last accepted message began, at the latest. It may have
-- been on the wire for so long while the server refused others already.
greatest(r.started_at, r.accepted_at - interval '10 s')
