"""From the link in a message to the person who is left out: in a real browser, and as a mail program reads it."""

import json
import urllib.request
from email.message import EmailMessage
from urllib.parse import urlsplit

import pytest
from books import Books
from web_process import OpenWeb
from workers import Start, wait_for

from sandbox import accounts
from sandbox.browser import Browser
from sandbox.crm import Crm
from sandbox.ports import free_port
from sandbox.world import World

PERSON = "meera.pillai@example.com"
HTML = '<p><a href="https://shop.example/x">Shop</a> or <a href="{{ unsubscribe_url }}">Leave</a></p>'
TEXTS = {"htmlContent": HTML, "textContent": "Leave: {{unsubscribe_url}}"}
PHONE = 390


@pytest.fixture
def public() -> dict[str, str]:
    """The settings of a public address."""
    port = free_port()
    return {"PUBLIC_URL": f"http://127.0.0.1:{port}", "PUBLIC_PORT": str(port)}


def link_in(message: EmailMessage) -> str:
    """The one link that a message has at each of its places."""
    link = str(message["List-Unsubscribe"]).strip("<>")
    plain, html = (message.get_body((kind,)) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    assert plain.get_content().strip() == f"Leave: {link}"
    assert f'<a href="{link}">Leave</a>' in html.get_content()
    assert "utm_source" in html.get_content(), "other links are tagged"
    return link


def failures(crm: Crm, campaign_id: str) -> list[str]:
    """The addresses that a campaign did not write to."""
    rows = crm.execute(
        """SELECT "recipientEmail" FROM "CampaignRecipient" WHERE "campaignId" = %s AND status = 'failed'""",
        (campaign_id,),
    )
    return [address for (address,) in rows]


def test_a_person_leaves_while_a_campaign_runs(
    open_web: OpenWeb, start: Start, crm: Crm, books: Books, world: World, browser: Browser, public: dict[str, str]
) -> None:
    """The rest of the campaign leaves the person out, other tenants' campaigns do not, and undo ends it."""
    site = open_web(**public)
    person = {"recipientEmail": PERSON, "recipientName": "Meera"}
    first = crm.add_campaign(recipients=[person], **TEXTS)
    slow = start(**public, CAMPAIGN_BATCH_SIZE="5", CAMPAIGN_BATCH_DELAY="10min")
    wait_for(lambda: books.sent(first) == 1, "the first message is sent")
    link = link_in(world.email(PERSON))
    assert link.startswith(f"{public['PUBLIC_URL']}/u/")
    assert PERSON not in link

    running = crm.add_campaign(recipients=20, **TEXTS)
    crm.add_recipient(running, id="zzz, the last one", **{**person, "recipientEmail": PERSON.upper()})
    wait_for(lambda: books.sent(running) == 5, "the first batch is sent, the next one comes much later")
    browser.open(link, width=PHONE)
    assert "Chaiwala Traders" in browser.text()
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
    assert crm.execute("SELECT FROM worker.suppression") == []
    browser.run("document.querySelector('button').click()")
    browser.wait("document.body?.innerText.includes('You are unsubscribed')")
    assert crm.execute("SELECT tenant_id, channel, address, source, campaign_id FROM worker.suppression") == [
        (crm.tenant_id, "email", PERSON, "unsubscribe", first)
    ]
    other_tenant = crm.add_tenant("Other Traders")
    crm.add_user(other_tenant)
    others = crm.add_campaign(recipients=[person], tenant_id=other_tenant, **TEXTS)
    assert slow.stop() == 0
    start(**public)
    wait_for(lambda: books.ended_early(running, others), "both campaigns are over")
    assert (failures(crm, running), books.sent(running)) == ([PERSON.upper()], 20)
    assert (failures(crm, others), books.sent(others)) == ([], 1)
    assert world.counts("smtp")[PERSON] == 2, "the first one, and the other tenant's"

    browser.run("document.querySelector('button').click()")
    browser.wait("document.body?.innerText.includes('You are subscribed again')")
    assert crm.execute("SELECT FROM worker.suppression") == []
    last = crm.add_campaign(recipients=[person], **TEXTS)
    wait_for(lambda: books.ended(last), "the last campaign is over")
    assert books.sent(last) == 1
    assert browser.complaints == []
    assert PERSON not in site.worker.log


def test_gmail_and_whatsapp(
    open_web: OpenWeb, start: Start, crm: Crm, books: Books, world: World, public: dict[str, str]
) -> None:
    """A message through Gmail has the same fields; a text by WhatsApp has a link for WhatsApp."""
    site = open_web(**public)
    mail_settings = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    tenant = crm.add_tenant(settings={"mail": mail_settings, "whatsapp": accounts.whatsapp_settings()})
    user = crm.add_user(tenant, **accounts.gmail_columns("sales@chaiwala.example"))
    mail = crm.add_campaign(recipients=[{"recipientEmail": PERSON}], tenant_id=tenant, user_id=user, **TEXTS)
    chat = crm.add_campaign(
        "whatsapp",
        recipients=[{"recipientPhone": "098765 43210"}],
        textContent="Offers https://shop.example/x Leave: {{unsubscribe_url}}.",
    )
    start(**public)
    wait_for(lambda: books.ended(mail, chat), "both campaigns are over")
    (received,) = world.deliveries("gmail")
    assert received.address == PERSON
    link_in(world.email(PERSON))
    (message,) = world.deliveries("whatsapp")
    body = json.loads(message.content)["text"]["body"]
    link = body.partition("Leave: ")[2].rstrip(".")
    assert "utm_source" in body.partition("Leave: ")[0]
    assert link.startswith(public["PUBLIC_URL"])
    assert crm.execute("""SELECT "originalUrl" FROM campaign_links GROUP BY 1""") == [("https://shop.example/x",)]
    request = urllib.request.Request(link, b"action=unsubscribe", method="POST")  # noqa: S310 - http only
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http only
        assert "WhatsApp messages" in answer.read().decode()
    assert crm.execute("SELECT channel, address FROM worker.suppression") == [("whatsapp", "919876543210")]
    assert site.worker.said("somebody unsubscribed") == 1
    assert urlsplit(link).path.startswith("/u/")


def test_header_fields_of_a_campaign(
    start: Start, crm: Crm, books: Books, world: World, public: dict[str, str]
) -> None:
    """With and without an address to unsubscribe at; one of the CRM's own wins."""
    own = {"UNSUBSCRIBE_URL": "https://crm.example/stop?e={{email}}&r={{recipient_id}}"}
    for settings, expected in (
        ({}, None),
        (public, public["PUBLIC_URL"]),
        ({**public, **own}, "https://crm.example"),
    ):
        world.reset()
        campaign = crm.add_campaign(recipients=[{"recipientEmail": PERSON}])
        worker = start(**settings)
        wait_for(lambda campaign=campaign: books.ended(campaign), "the campaign is over")
        assert worker.stop() == 0
        message = world.email(PERSON)
        assert message["List-Id"] == f"<{crm.tenant_id}.campaigns.{accounts.FROM_EMAIL.partition('@')[2]}>"
        assert message["Feedback-ID"] == f"{campaign}:{crm.tenant_id}:email:worker"
        assert message["Auto-Submitted"] is None
        if expected is None:
            assert message["List-Unsubscribe"] is message["List-Unsubscribe-Post"] is None
        else:
            assert message["List-Unsubscribe"].startswith(f"<{expected}/")
            assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
