"""A campaign as it is read, and how its messages are made: with every column, compiled once, settled in any case."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from worker.campaigns.batch import Recipient
from worker.campaigns.campaign import Campaign
from worker.campaigns.run import CampaignRuns
from worker.campaigns.transport import TransportRouter
from worker.content.campaign_texts import CampaignTexts
from worker.errors import CampaignRejected, TransportMissing
from worker.messages import Email
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.events import LiveEvents
from worker.runtime.redis_client import connect
from worker.runtime.settings import load


class Desk:
    """Reads campaigns and routes them as the job does."""

    def __init__(self, crm: Crm, database_url: str, redis_url: str, folder: Path, **environ: str) -> None:
        self.crm = crm
        environ |= {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "STATE_DIR": str(folder),
            "SMTP_URL": "smtp://127.0.0.1:1",
            "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
        }
        settings = load(environ, "campaign")
        self.db = Database(database_url, "test")
        self.client = connect(redis_url)
        self.transports = TransportRouter(settings, self.client, utc_now)
        self.runs = CampaignRuns(self.db, LiveEvents(self.client), Counters(self.client, "campaign"), utc_now)

    def close(self) -> None:
        self.db.close()
        self.transports.close()
        self.client.close()

    def find(self, campaign_id: str) -> Campaign:
        found = self.runs.find(campaign_id)
        assert found
        return found

    def change(self, campaign_id: str, column: str, value: Any) -> None:
        self.crm.execute(f'UPDATE "Campaign" SET "{column}" = %s WHERE id = %s', (value, campaign_id))

    def gmail_campaign(self) -> str:
        mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
        tenant = self.crm.add_tenant("Gmail Traders", settings={"mail": mail})
        expiry = utc_now() + timedelta(hours=1)
        user = self.crm.add_user(tenant, gmailTokenExpiry=expiry, **accounts.gmail_columns("owner@gmail.example"))
        return self.crm.add_campaign(tenant_id=tenant, user_id=user)


@pytest.fixture
def desk(crm: Crm, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Desk]:
    with closing(Desk(crm, database_url, redis_url, tmp_path)) as made:
        yield made


def test_every_column_has_its_place(desk: Desk) -> None:
    """What the user entered is what the messages are made of."""
    columns: dict[str, Any] = {
        "name": "Diwali",
        "subject": "subject",
        "htmlContent": "<p>html</p>",
        "textContent": "text",
        "whatsappMessageType": "media",
        "whatsappMediaType": "image",
        "whatsappMediaUrl": "https://cdn.example/a.jpg",
        "whatsappCaption": "caption",
        "whatsappTemplateName": "diwali",
        "whatsappTemplateLanguage": "hi",
        "whatsappTemplateParams": ["{{name}}"],
        "utmSource": "source",
        "utmMedium": "medium",
        "utmCampaign": "campaign",
        "utmTerm": "term",
        "utmContent": "content",
        "platformUtmConfig": {"whatsapp": {"source": "other"}},
        "autoTagLinks": False,
        "useShortLinks": True,
        "targetType": "custom",
        "targetFilters": {"tags": ["vip"]},
    }
    campaign_id = desk.crm.add_campaign("whatsapp", **columns)
    campaign = desk.find(campaign_id)
    assert campaign.texts == CampaignTexts(
        id=campaign_id,
        tenant_id=desk.crm.tenant_id,
        name="Diwali",
        channel="whatsapp",
        subject="subject",
        html="<p>html</p>",
        text="text",
        whatsapp_message_type="media",
        whatsapp_media_type="image",
        whatsapp_media_url="https://cdn.example/a.jpg",
        whatsapp_caption="caption",
        whatsapp_template_name="diwali",
        whatsapp_template_language="hi",
        whatsapp_template_params=["{{name}}"],
        utm_source="source",
        utm_medium="medium",
        utm_campaign="campaign",
        utm_term="term",
        utm_content="content",
        platform_utm_config={"whatsapp": {"source": "other"}},
        auto_tag_links=False,
        use_short_links=True,
    )
    assert (campaign.target.kind, campaign.target.filters) == ("custom", {"tags": ["vip"]})
    assert (campaign.tenant_id, campaign.user_id) == (desk.crm.tenant_id, desk.crm.user_id)
    assert (campaign.prepared, campaign.backoffs, campaign.started_at) == (True, 0, None)


def test_return_paths(crm: Crm, database_url: str, redis_url: str, tmp_path: Path) -> None:
    """Mail through SMTP_URL has one for each recipient; Gmail's users get their reports themselves."""
    with closing(Desk(crm, database_url, redis_url, tmp_path, BOUNCE_ADDRESS="bounces@mail.example")) as desk:
        envelopes = {}
        for channel, campaign_id in (("smtp", crm.add_campaign()), ("gmail", desk.gmail_campaign())):
            transport = desk.transports.route(desk.find(campaign_id))
            message = transport.message(Recipient(str(uuid4()), "Asha", "asha@a.example", None, 0), utc_now())
            assert isinstance(message, Email)
            envelopes[channel] = message.envelope_from
    assert envelopes["smtp"].startswith("bounces+r")
    assert envelopes["gmail"] == "owner@gmail.example"


def test_a_campaign_that_is_gone(desk: Desk) -> None:
    """A deleted campaign is not found."""
    assert desk.runs.find("no such campaign") is None


def test_secrets_stay_out_of_what_is_printed(desk: Desk) -> None:
    """A campaign that ends up in a log or a traceback shows no token of its user."""
    campaign = desk.find(desk.gmail_campaign())
    assert campaign.user.gmail_access_token == accounts.GMAIL_ACCESS_TOKEN
    for secret in (accounts.GMAIL_ACCESS_TOKEN, accounts.GMAIL_REFRESH_TOKEN):
        assert secret not in repr(campaign)


def test_compiled_once(desk: Desk) -> None:
    """A content is kept while the run goes on and tokens are refreshed, and compiled anew when a text changes."""
    campaign_id = desk.gmail_campaign()
    first = desk.transports.route(desk.find(campaign_id)).content
    desk.runs.start_due(utc_now())
    desk.crm.execute('UPDATE "User" SET "gmailAccessToken" = %s', ("refreshed",))
    desk.change(campaign_id, "sentCount", 5)
    assert desk.transports.route(desk.find(campaign_id)).content is first
    desk.change(campaign_id, "subject", "Another one")
    second = desk.transports.route(desk.find(campaign_id)).content
    assert second is not first
    desk.crm.execute('UPDATE "User" SET "googleEmail" = %s', ("other@gmail.example",))
    third = desk.transports.route(desk.find(campaign_id)).content
    assert third is not second
    assert third.sender_address == "other@gmail.example"


def test_accounts_are_told_apart(desk: Desk) -> None:
    """A message that left through one account is asked about through the same one only."""
    keys = [
        desk.transports.route(desk.find(campaign_id)).account_key
        for campaign_id in (desk.gmail_campaign(), desk.crm.add_campaign(), desk.crm.add_campaign("whatsapp"))
    ]
    assert keys == ["gmail:owner@gmail.example", "email", "whatsapp"]


@pytest.mark.parametrize("address", ["asha@shop.example", "not an address"])
def test_settled_without_an_account(desk: Desk, address: str) -> None:
    """What was sent before can be settled, whatever became of the user's address; nothing can be sent."""
    campaign_id = desk.crm.add_campaign(recipients=1)
    desk.crm.execute('UPDATE "Tenant" SET settings = %s', ('{"mail": {"smtp": {"fromEmail": "broken"}}}',))
    desk.crm.execute('UPDATE "User" SET email = %s', (address,))
    campaign = desk.find(campaign_id)
    with pytest.raises(CampaignRejected):
        desk.transports.route(campaign)
    transport = desk.transports.route_or_settle_only(campaign)
    assert transport.sender_address == (address if "@" in address else "unknown@localhost.invalid")
    assert not transport.can_be_asked
    with pytest.raises(TransportMissing):
        transport.send("a message")


def test_settled_without_a_template(desk: Desk) -> None:
    """As for e-mail, where the template's parameters were broken meanwhile."""
    campaign = desk.find(desk.crm.add_campaign("whatsapp", whatsappTemplateParams={"not": "a list"}))
    with pytest.raises(CampaignRejected, match="whatsappTemplateParams is not a list of strings"):
        desk.transports.route(campaign)
    assert desk.transports.route_or_settle_only(campaign).account_key == "whatsapp"
