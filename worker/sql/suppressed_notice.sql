-- an entry "s" is about the address of the notification "held"; an unsubscription is from campaigns, and no reason here
s.tenant_id = held.tenant_id AND s.channel = held.channel AND s.source <> 'unsubscribe'
AND s.address = worker.address(held.channel, held.address, '+' || held.address)
