"""Opt-outs in mid-campaign: the address of a claimed recipient is suppressed before the message leaves."""

from worker.campaigns.batch import Batch
from worker.campaigns.dispatcher import Dispatcher
from worker.sending.suppression import SuppressionList, SuppressionWatch


def stop_suppressed(watch: SuppressionWatch, dispatcher: Dispatcher) -> None:
    """Looks, if it is time for it, which recipients of the open batches may not be written to any more."""
    changed = watch.changed({_list_of(batch) for batch in dispatcher.open if batch.sending})
    for batch in dispatcher.open:
        if _list_of(batch) in changed:
            _stop_recipients(batch, watch, dispatcher)
    dispatcher.looked(watch.looked_at)


def _stop_recipients(batch: Batch, watch: SuppressionWatch, dispatcher: Dispatcher) -> None:
    ended = batch.outcomes
    addresses = {each.id: each.address for each in batch.recipients if each.address and each.id not in ended}
    reasons = watch.suppressed(_list_of(batch), list(addresses.values()))
    dispatcher.opt_out(batch, {key: reasons[address] for key, address in addresses.items() if address in reasons})


def _list_of(batch: Batch) -> SuppressionList:
    return SuppressionList(batch.campaign.tenant_id, batch.campaign.channel)
