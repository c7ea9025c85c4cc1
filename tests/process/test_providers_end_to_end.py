"""Campaigns through all providers, and what the worker does when a provider refuses or defers."""

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis
from books import Books
from workers import LOCK, Start, wait_for

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from sandbox.world import World

CONCURRENCY = 8


def one_error(crm: Crm, campaign: str) -> str:
    statement = """SELECT "errorMessage" FROM "CampaignRecipient" WHERE "campaignId" = %s AND status = 'failed'"""
    return str(crm.value(statement, campaign))


def gmail_tenant(crm: Crm) -> str:
    """A tenant with mail.oauth."""
    return crm.add_tenant(settings={"mail": accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)})


def test_whatsapp_text_template_and_media_arrive_as_the_person_they_are_for(
    crm: Crm, world: World, books: Books, start: Start
) -> None:
    """Each with its name filled in, its links tagged, and the row's id for the webhooks."""
    person = {"recipientName": "Asha $1 \\ {{x}}", "recipientPhone": "+919800000001"}
    text = crm.add_campaign("whatsapp", recipients=[person], textContent="Hi {{name}}: https://a.example/x?y=1")
    template = crm.add_campaign(
        "whatsapp",
        recipients=[person],
        whatsappMessageType="template",
        whatsappTemplateName="diwali",
        whatsappTemplateLanguage="hi",
        whatsappTemplateParams=["{{name}}", "10 %"],
    )
    media = crm.add_campaign(
        "whatsapp",
        recipients=[person],
        whatsappMessageType="media",
        whatsappMediaType="image",
        whatsappMediaUrl="https://cdn.example/sweets.jpg",
        whatsappCaption="For {{name}}",
    )
    start()
    wait_for(lambda: books.ended(text, template, media), "the campaigns end")
    payloads = [json.loads(each.content) for each in world.deliveries("whatsapp")]
    found: dict[str, Any] = {each["type"]: each for each in payloads}
    assert found["text"]["text"]["body"].startswith(
        "Hi Asha $1 \\ {{x}}: https://a.example/x?y=1&utm_source=bharat_crm"
    )
    assert found["template"]["template"]["name"] == "diwali"
    assert found["template"]["template"]["language"] == {"code": "hi"}
    parameters = found["template"]["template"]["components"][0]["parameters"]
    assert [each["text"] for each in parameters] == ["Asha $1 \\ {{x}}", "10 %"]
    assert found["image"]["image"] == {"link": "https://cdn.example/sweets.jpg", "caption": "For Asha $1 \\ {{x}}"}
    ids = {row for (row,) in crm.execute('SELECT id FROM "CampaignRecipient"')}
    assert {each["biz_opaque_callback_data"] for each in payloads} == ids
    wamids = {each.external_id for each in world.deliveries("whatsapp")}
    assert {row for (row,) in crm.execute('SELECT "messageId" FROM "CampaignRecipient"')} == wamids


def test_a_user_with_gmail_sends_through_gmail_with_a_refreshed_token(
    crm: Crm, world: World, books: Books, start: Start
) -> None:
    """From the user's own address; the new token is kept on the User, and EmailLog has Gmail's ids."""
    user = crm.add_user(gmail_tenant(crm), **accounts.gmail_columns("asha@shop.example"))
    tenant = crm.value('SELECT "tenantId" FROM "User" WHERE id = %s', user)
    campaign = crm.add_campaign("email", recipients=20, tenant_id=tenant, user_id=user)
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, "gmail") == 0
    assert world.total("smtp") == 0
    assert world.total("token") == 1, "the token is refreshed once for all connections"
    assert {each.account for each in world.deliveries("gmail")} == {"Chaiwala Traders <asha@shop.example>"}
    token, expiry = crm.execute('SELECT "gmailAccessToken", "gmailTokenExpiry" FROM "User" WHERE id = %s', (user,))[0]
    assert token == world.deliveries("gmail")[-1].credential
    assert expiry > utc_now() + timedelta(minutes=50)
    ids = {row for (row,) in crm.execute('SELECT "gmailMessageId" FROM "EmailLog"')}
    assert ids == {each.external_id for each in world.deliveries("gmail")}


@pytest.mark.parametrize(
    ("channel", "refusal", "reason"),
    [
        ("smtp", {"status": 550}, "No such user here"),
        ("whatsapp", {"code": 131026}, "131026"),
    ],
)
def test_a_refused_recipient_fails_with_the_reason_and_others_go_on(
    channel: str, refusal: dict[str, Any], reason: str, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """One bad address among thirty: one failure, in the provider's words, and one try."""
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=30)
    crm.add_recipient(campaign, recipientEmail="gone@refused.example", recipientPhone="+919811111111")
    world.script(channel, "gone@refused.example" if channel == "smtp" else "+919811111111", **refusal)
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert crm.counts(campaign) == {"sent": 30, "failed": 1}
    assert reason in one_error(crm, campaign)
    assert len(world.refusals(channel)) == 1
    assert books.last_log(campaign) == "Completed: 30 sent, 1 failed"
    assert books.status(campaign) == "completed"


@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_one_recipient_that_is_deferred_delays_no_other_and_is_tried_again(
    channel: str, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """The others are sent before the delay that the provider asked for is over."""
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=40)
    crm.add_recipient(campaign, recipientEmail="later@busy.example", recipientPhone="+919822222222")
    address = "later@busy.example" if channel == "smtp" else "+919822222222"
    answer: dict[str, Any] = (
        {"status": 451} if channel == "smtp" else {"status": 429, "code": 130429, "retry_after": "6"}
    )
    world.script(channel, address, times=1, **answer)
    start(CAMPAIGN_RETRY_DELAY="6")
    wait_for(lambda: books.sent(campaign) == 40, "the others are sent")
    assert world.counts(channel)[address.lstrip("+")] == 0
    assert crm.counts(campaign) == {"sent": 40, "pending": 1}
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, channel) == 0


@pytest.fixture
def login(tmp_path: Path) -> Iterator[World]:
    """A mail server that asks for a password."""
    server = World(tmp_path / "login", smtp_user="crm", smtp_password="sandbox-right")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("batch_delay", ["0", "5s"])
@pytest.mark.parametrize("what", ["template", "token", "login", "grant"])
def test_what_is_refused_for_every_recipient_stops_the_campaign_after_a_handful_of_tries(
    what: str, batch_delay: str, crm: Crm, world: World, books: Books, start: Start, login: World
) -> None:
    """A dead template or account: CampaignLog says why, and the recipients stay pending until it is repaired."""
    if what == "template":
        world.script("whatsapp", code=132001)
        columns: dict[str, Any] = {"whatsappMessageType": "template", "whatsappTemplateName": "gone"}
        campaign, reason = crm.add_campaign("whatsapp", recipients=100, **columns), "132001"
    elif what == "token":
        world.revoke(accounts.WHATSAPP_TOKEN)
        campaign, reason = crm.add_campaign("whatsapp", recipients=100), "190"
    elif what == "login":
        campaign, reason = crm.add_campaign("email", recipients=100), "535"
    else:
        world.revoke(accounts.GMAIL_REFRESH_TOKEN)
        tenant = gmail_tenant(crm)
        user = crm.add_user(tenant, **accounts.gmail_columns("a@s.example"), gmailConnectedAt=utc_now())
        campaign, reason = crm.add_campaign("email", recipients=100, tenant_id=tenant, user_id=user), "invalid_grant"
    smtp = login.smtp_url.replace("sandbox-right", "wrong") if what == "login" else world.smtp_url
    worker = start(CAMPAIGN_BATCH_DELAY=batch_delay, CAMPAIGN_BATCH_SIZE="40", SMTP_URL=smtp)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    wait_for(lambda: not books.held(), "all batches are settled")
    assert books.status(campaign) == "failed"
    assert books.log(campaign) == ["started", "failed"]
    assert reason in books.last_log(campaign)
    assert crm.counts(campaign) == {"pending": 100}
    assert len(world.refusals("whatsapp")) <= CONCURRENCY
    assert len(world.refusals("token")) <= 1
    assert world.total() == 0
    assert "wrong" not in worker.log
    wait_for(lambda: worker.said("campaign failed"), "the end is logged")
    if what == "grant":
        cleared = """SELECT coalesce("gmailAccessToken", "gmailRefreshToken", "gmailTokenExpiry"::text,
                                     "gmailConnectedAt"::text, "gmailScopes"::text) FROM "User" WHERE id = %s"""
        assert crm.value(cleared, user) is None


def test_a_recipient_who_opted_out_gets_no_message_again(crm: Crm, world: World, books: Books, start: Start) -> None:
    """131050 counts for all later campaigns of the tenant, and not for another tenant's."""
    number = "+919833333333"
    world.script("whatsapp", number, code=131050, times=1)
    first = crm.add_campaign("whatsapp", recipients=[{"recipientPhone": number}, {"recipientPhone": "+919844444444"}])
    start()
    wait_for(lambda: books.ended(first), "the first campaign ends")
    assert crm.counts(first) == {"sent": 1, "failed": 1}
    spelled = {"recipientPhone": "98333 33333"}
    later = crm.add_campaign("whatsapp", recipients=[spelled, {"recipientPhone": "+919844444444"}])
    tenant = crm.add_tenant("Elsewhere")
    user = crm.add_user(tenant)
    elsewhere = crm.add_campaign("whatsapp", recipients=[{"recipientPhone": number}], tenant_id=tenant, user_id=user)
    wait_for(lambda: books.ended(later, elsewhere), "the later campaigns end")
    assert crm.counts(later) == {"sent": 1, "failed": 1}
    assert "opted out" in one_error(crm, later)
    assert crm.counts(elsewhere) == {"sent": 1}
    assert len(world.refusals("whatsapp")) == 1


def test_the_pace_of_a_phone_id_holds_over_two_processes(
    crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """Both send at once, and no second sees more messages than WHATSAPP_RATE and its small burst."""
    campaigns = [crm.add_campaign("whatsapp", recipients=45) for _ in range(2)]
    for _ in range(2):
        start(WHATSAPP_RATE="30", CAMPAIGN_BATCH_SIZE="10")

    def ended_without_a_lock() -> bool:
        redis_client.delete(LOCK)
        crm.execute("UPDATE worker.campaign_run SET next_batch_at = least(next_batch_at, now() AT TIME ZONE 'UTC')")
        return books.ended(*campaigns)

    wait_for(ended_without_a_lock, "the campaigns end")
    times = [datetime.fromisoformat(each.at) for each in world.deliveries("whatsapp")]
    assert len(times) == 90
    second, late_ones = timedelta(seconds=1), 4  # delayed on their way, they arrive with the next
    most = max(sum(at <= other < at + second for other in times) for at in times)
    assert most <= 30 + 3 + late_ones
    assert (times[-1] - times[0]).total_seconds() >= (90 - 33) / 30 - 0.5


def test_two_rows_with_one_address_get_one_message(crm: Crm, world: World, books: Books, start: Start) -> None:
    """However it is written."""
    mails = [{"recipientEmail": each} for each in ("Asha@shop.example", " asha@SHOP.example", "ravi@shop.example")]
    phones = [{"recipientPhone": each} for each in ("+91 98000 00001", "9800000001", "+919800000002")]
    email, whatsapp = crm.add_campaign("email", recipients=mails), crm.add_campaign("whatsapp", recipients=phones)
    start()
    wait_for(lambda: books.ended(email, whatsapp), "the campaigns end")
    assert [crm.counts(email), crm.counts(whatsapp)] == [{"sent": 2, "failed": 1}] * 2
    assert "same address" in one_error(crm, email)
    assert [world.total("smtp"), world.total("whatsapp")] == [2, 2]
    books.nobody_twice("smtp", "whatsapp")


def test_links_are_tagged_and_shortened_with_one_row_each(crm: Crm, world: World, books: Books, start: Start) -> None:
    """The message has the short link with the recipient's id; campaign_links has where it leads, once for all."""
    html = '<p>{{name}} <a href="https://shop.example/?a=1&amp;b=2">one</a> <a href="mailto:a@b.example">two</a></p>'
    campaign = crm.add_campaign(
        "email", recipients=5, htmlContent=html, useShortLinks=True, utmCampaign="diwali", name="Diwali!"
    )
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    columns = '"originalUrl", "taggedUrl", "shortUrl", "utmSource", "utmMedium", "utmCampaign"'
    links = crm.execute(f'SELECT {columns} FROM campaign_links WHERE "campaignId" = %s', (campaign,))
    assert len(links) == 1
    original, tagged, short, *utm = links[0]
    assert original == "https://shop.example/?a=1&b=2"
    assert utm == ["bharat_crm", "email", "diwali"]
    assert tagged == f"{original}&utm_source=bharat_crm&utm_medium=email&utm_campaign=diwali"
    assert short.startswith("https://app.crm.example.in/")
    statement = 'SELECT id, "recipientEmail" FROM "CampaignRecipient" WHERE "campaignId" = %s LIMIT 1'
    recipient, address = crm.execute(statement, (campaign,))[0]
    body = world.email(address).get_body(("html",))
    assert body is not None
    assert f'href="{short}?r={recipient}"' in body.get_content()
    assert 'href="mailto:a@b.example"' in body.get_content()


def test_the_pages_of_the_crm_get_events(
    crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis, redis_url: str
) -> None:
    """Progress, completion and failure go to the room of the campaign's user, as the Socket.IO adapter wants them."""
    world.script("whatsapp", code=132001)
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as listener:
        listener.psubscribe("socket.io#/#*")
        email, whatsapp = crm.add_campaign("email", recipients=50), crm.add_campaign("whatsapp", recipients=5)
        start(CAMPAIGN_BATCH_SIZE="10", CAMPAIGN_BATCH_DELAY="100ms")
        wait_for(lambda: books.ended(email, whatsapp), "the campaigns end")
        heard: dict[tuple[str, str], dict[str, Any]] = {}

        def all_heard() -> bool:
            message = listener.get_message(ignore_subscribe_messages=True, timeout=0.1)
            if message:
                assert message["channel"] == f"socket.io#/#user:{crm.user_id}#".encode()
                _, packet, whom = msgpack.unpackb(message["data"])
                assert whom["rooms"] == [f"user:{crm.user_id}"]
                event, payload = packet["data"]
                heard[event, payload["campaignId"]] = payload
            wanted = {("campaign:completed", email), ("campaign:failed", whatsapp), ("campaign:progress", email)}
            return wanted <= heard.keys()

        wait_for(all_heard, "the events arrive")
    assert heard["campaign:completed", email]["stats"] == {"sentCount": 50, "failedCount": 0, "totalRecipients": 50}
    assert "132001" in heard["campaign:failed", whatsapp]["error"]
    assert heard["campaign:progress", email]["totalRecipients"] == 50
