"""Large campaigns: how many of those whose texts take much memory are sent at the same time."""

from worker.campaigns.campaign import Campaign
from worker.campaigns.dispatcher import Dispatcher

LARGE_BYTES = 1024 * 1024  # the texts of a large campaign
OPEN_BYTES = 64 * 1024 * 1024  # the texts of all large campaigns that are sent at the same time


class LargeCampaigns:
    """Those that have a batch open, and those that wait until fewer do."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: dict[str, int] = {}  # ids, and the bytes of their texts

    def waiting(self) -> set[str]:
        """The ids of those for which there still is no room."""
        return {key for key, size in self._waiting.items() if self._open_bytes() + size > OPEN_BYTES}

    def may_open(self, campaign: Campaign) -> bool:
        """Whether the texts of this campaign still fit into the memory beside those that are being sent."""
        if campaign.text_bytes <= LARGE_BYTES or self._dispatcher.number_open(campaign.id):
            return True
        is_open = self._open_bytes()
        if is_open and is_open + campaign.text_bytes > OPEN_BYTES:
            self._waiting[campaign.id] = campaign.text_bytes  # until there is room for it
            return False
        self._waiting.pop(campaign.id, None)
        return True

    def clear(self) -> None:
        """Nothing is open any more."""
        self._waiting.clear()

    def _open_bytes(self) -> int:
        """The bytes of all large campaigns that have a batch open."""
        texts = {batch.campaign.id: batch.campaign.text_bytes for batch in self._dispatcher.open}
        return sum(size for size in texts.values() if size > LARGE_BYTES)
