"""The recipients of a campaign as bin/campaign check reads them."""

from contextlib import closing

from sandbox.crm import Crm
from worker.campaign_commands.campaign_state import read_campaign, read_state
from worker.campaign_commands.recipient_review import RecipientReview, review_recipients
from worker.runtime.db import Database

RECIPIENTS = 30_000  # one look at each takes a second, one at each pair of them many minutes


def test_a_campaign_that_is_newer_than_the_statistics(crm: Crm, database_url: str) -> None:
    """PostgreSQL expects no recipient of a tenant that its statistics do not know: they are read once."""
    crm.execute('ALTER TABLE "CampaignRecipient" SET (autovacuum_enabled = false)')
    crm.add_campaign(recipients=1000)
    crm.execute('ANALYZE "CampaignRecipient"')
    campaign = crm.add_campaign(recipients=RECIPIENTS, tenant_id=crm.add_tenant("New Traders"))
    review = RecipientReview()
    with closing(Database(database_url, "test")) as db, db.transaction():
        db.execute("SET LOCAL statement_timeout = '60s'")
        found, state = read_campaign(db, campaign, 1_000_000), read_state(db, campaign)
        review_recipients(db, found, None, state, review)
        [row] = db.all("SHOW enable_nestloop")
    assert (review.to_send, review.duplicates) == (RECIPIENTS, 0)
    assert row["enable_nestloop"] == "on", "other statements of the transaction are planned as ever"
