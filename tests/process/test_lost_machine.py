"""A machine is lost with its journals: one batch is unconfirmed, all other recipients get their message once."""

import shutil

import pytest
from books import Books
from workers import Start, wait_for

from sandbox.crm import Crm
from sandbox.world import World

BATCH = 50


def lose_machine(crm: Crm, world: World, books: Books, start: Start, campaign: str) -> None:
    """A worker is killed during its second batch, and its state folder is deleted."""
    worker = start(CAMPAIGN_BATCH_SIZE=str(BATCH), CAMPAIGN_BATCH_DELAY="1ms")
    wait_for(lambda: world.total() > BATCH + 10, "the second batch is on its way")
    worker.kill()
    shutil.rmtree(books.state_dir)


def let_five_minutes_pass(crm: Crm) -> None:
    crm.execute("UPDATE worker.campaign_batch SET renewed_at = renewed_at - interval '301 s'")


@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_a_lost_machine_leaves_one_batch_unconfirmed_and_no_duplicate(
    channel: str, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """Another machine does not touch the batch while its lease lasts, and then settles it as unconfirmed."""
    world.script(channel, action="hang", seconds=0.02)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=200)
    lose_machine(crm, world, books, start, campaign)
    held = crm.value("SELECT cardinality(recipient_ids) FROM worker.campaign_batch")
    successor = start()
    wait_for(lambda: crm.counts(campaign) == {"sent": 200 - held, "sending": held}, "the rest is sent")
    let_five_minutes_pass(crm)
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    assert books.balance(campaign, channel) == held <= BATCH
    assert successor.said("Traceback") == 0


def test_unconfirmed_messages_are_sent_again_with_resend(crm: Crm, world: World, books: Books, start: Start) -> None:
    """UNCONFIRMED_SENDS=resend: no recipient is left out, and only the lost batch may get a second copy."""
    world.script("smtp", action="hang", seconds=0.02)
    campaign = crm.add_campaign("email", recipients=120)
    lose_machine(crm, world, books, start, campaign)
    addresses = {
        address.lower()
        for (address,) in crm.execute(
            """SELECT p."recipientEmail" FROM worker.campaign_batch b
               JOIN "CampaignRecipient" p ON p.id = ANY (b.recipient_ids)"""
        )
    }
    let_five_minutes_pass(crm)
    start(UNCONFIRMED_SENDS="resend")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert crm.counts(campaign) == {"sent": 120}
    assert len(world.counts("smtp")) == 120
    assert world.duplicates("smtp").keys() <= addresses
    assert max(world.counts("smtp").values()) == 2
