"""The recipients of a campaign as bin/campaign check reads them."""

from contextlib import closing

from worker.campaigns.campaign_state import read_campaign
from worker.campaigns.recipient_review import RecipientReview, review_recipients

from sandbox.crm import Crm, utc_now
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
        review_recipients(db, read_campaign(db, campaign, 1_000_000), None, utc_now(), review)
        [row] = db.all("SHOW enable_nestloop")
    assert (review.to_send, review.duplicates) == (RECIPIENTS, 0)
    assert row["enable_nestloop"] == "on", "other statements of the transaction are planned as ever"
