"""A look at a campaign: what becomes of each recipient, how a message looks, and what is called a problem."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from sandbox import accounts
from worker.campaign_commands.campaign_state import CampaignState
from worker.campaign_commands.check_problems import CheckedParts, Level, problems
from worker.campaign_commands.preview import Preview, preview
from worker.campaign_commands.recipient_review import RecipientReview, RecipientReviewer, ReviewedRecipient
from worker.campaigns.campaign import Campaign, CampaignTarget
from worker.campaigns.transport import Transport, TransportRouter
from worker.content.campaign_texts import CampaignTexts
from worker.content.phones import country_of, whatsapp_id
from worker.providers.smtp import SmtpProvider
from worker.runtime.settings import Settings, load
from worker.sending.accounts import EmailUser

NOW = datetime(2026, 3, 4, 10)  # noqa: DTZ001 - UTC without a zone, as everywhere
ENVIRONMENT = {
    "DATABASE_URL": "postgresql://crm@127.0.0.1/crm",
    "REDIS_URL": "redis://127.0.0.1:6379",
    "SMTP_URL": "smtp://127.0.0.1:2525",
    "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
    "APP_URL": "https://app.crm.example.in",
    "PUBLIC_URL": "https://crm.example.in",
}
USER = EmailUser(
    user_id="u-1",
    user_name="Asha Rao",
    user_email="asha@tenant.example",
    tenant_id="t-1",
    tenant_name="Chaiwala Traders",
    tenant_settings={"whatsapp": {"token": "token", "phoneId": "1001"}},
)
EMAIL = CampaignTexts(
    id="c-1", tenant_id="t-1", name="Diwali", channel="email", subject="Hello {{name}}",
    text="Hi {{name}}, {{email}}",
    html='<p>Hi {{name}} <a href="https://shop.example/">shop</a> <a href="{{unsubscribe_url}}">leave</a></p>',
)  # fmt: skip
TEMPLATE = CampaignTexts(
    id="c-2", tenant_id="t-1", name="Holi", channel="whatsapp", whatsapp_message_type="template",
    whatsapp_template_name="holi", whatsapp_template_language="en", whatsapp_template_params=["{{name}}", "20 %"],
)  # fmt: skip
TEXT = CampaignTexts(id="c-3", tenant_id="t-1", name="Holi", channel="whatsapp", text="Hi {{name}}")
ASHA = ReviewedRecipient("r-1", "Asha", "asha@a.example", "+919876543210", duplicate=False, suppressed=False)


def settings(**environ: str) -> Settings:
    return load(ENVIRONMENT | environ, "campaign")


def campaign(texts: CampaignTexts, user: EmailUser = USER) -> Campaign:
    return Campaign(texts, CampaignTarget("leads", None), user, "u-1", prepared=False, backoffs=0, started_at=None)


@pytest.fixture
def router() -> Iterator[TransportRouter]:
    with closing(TransportRouter(settings(), redis.Redis(port=1), lambda: NOW)) as made:
        yield made


def review_of(transport: Transport | None, channel: str, *recipients: ReviewedRecipient) -> RecipientReview:
    review = RecipientReview()
    reviewer = RecipientReviewer(review, channel, transport, NOW)
    for each in recipients:
        reviewer.add(each)
    return review


def test_each_recipient_counts_once(router: TransportRouter) -> None:
    """A duplicate is one even when it is suppressed; what cannot be written to is named with the reason."""
    people = [
        ASHA,
        replace(ASHA, id="r-2", duplicate=True, suppressed=True),
        replace(ASHA, id="r-3", suppressed=True, email="@"),
        replace(ASHA, id="r-4", email="no address"),
        replace(ASHA, id="r-5", email=None),
    ]
    found = review_of(router.route(campaign(EMAIL)), "email", *people)
    assert (found.to_send, found.duplicates, found.suppressed, found.unfit) == (1, 1, 1, 2)
    assert found.looked_at == 5
    assert found.examples["unfit"][0].startswith("no address: not an e-mail address")
    assert found.sample == ASHA
    assert not found.countries


def test_values_that_are_missing(router: TransportRouter) -> None:
    """Only placeholders that the campaign has; the message that is shown is one of a recipient who lacks none."""
    nameless = replace(ASHA, name=" \u200b", phone=None)
    others = [replace(nameless, id=str(number), email=f"p{number}@a.example") for number in range(9)]
    found = review_of(router.route(campaign(EMAIL)), "email", *others, ASHA)
    assert dict(found.missing) == {"name": 9}
    assert found.examples["name"] == [f"p{number}@a.example" for number in range(5)]
    assert (found.to_send, found.sample) == (10, ASHA)


def test_a_template_needs_its_values(router: TransportRouter) -> None:
    """WhatsApp refuses an empty parameter: such a recipient is unfit, before and after others that are not."""
    nameless = replace(ASHA, name="")
    found = review_of(router.route(campaign(TEMPLATE)), "whatsapp", nameless, ASHA, nameless, ASHA)
    assert (found.to_send, found.unfit) == (2, 2)
    assert "template parameter 1 is empty" in found.examples["unfit"][0]
    assert dict(found.missing) == {}


def test_values_that_are_too_long(router: TransportRouter) -> None:
    """Each recipient whose message is too long is found, in whatever order they come."""
    text = replace(TEXT, text="{{name}}" + "x" * 4000)
    names = ["x" * length for length in (10, 200, 96, 97, 96, 5000, 1)]
    found = review_of(router.route(campaign(text)), "whatsapp", *(replace(ASHA, name=each) for each in names))
    assert (found.to_send, found.unfit) == (4, 3)


def test_a_campaign_that_makes_no_message(router: TransportRouter) -> None:
    """It is said once, and its recipients are not called unfit."""
    found = review_of(router.route(campaign(replace(TEMPLATE, whatsapp_template_name=None))), "whatsapp", ASHA, ASHA)
    assert "whatsappTemplateName is missing" in found.rejection
    assert (found.to_send, found.unfit) == (2, 0)


def test_countries_of_numbers(router: TransportRouter) -> None:
    """By the number that is sent to, however it is written."""
    numbers = ["98765 43210", "+919876543210", "919876543210", "+14155552671", "+6591234567", "12"]
    found = review_of(router.route(campaign(TEXT)), "whatsapp", *(replace(ASHA, phone=each) for each in numbers))
    assert dict(found.countries) == {"IN": 3, "US": 1, "SG": 1}
    assert found.unfit == 1


@given(st.from_regex(r"\+?91[0-9]{10}", fullmatch=True))
def test_the_way_of_most_numbers_is_a_short_cut_only(number: str) -> None:
    """A number that is taken for Indian at first sight is one for the parser, too."""
    found = review_of(None, "whatsapp", replace(ASHA, phone=number))
    try:
        country = country_of(whatsapp_id(number))
    except ValueError:
        assert found.unfit == 1
    else:
        assert dict(found.countries) == {country: 1}


def test_an_email_as_it_would_leave(router: TransportRouter) -> None:
    """All parts, made for the recipient; its unsubscribe link and its id are not shown."""
    texts = replace(EMAIL, use_short_links=True, subject="Hello {{name}} {{company}}")
    shown = preview(router.route(campaign(texts)), ASHA, NOW)
    assert shown.sender == "Asha Rao <asha@tenant.example>"
    assert shown.to == "Asha <asha@a.example>"
    assert shown.subject == "Hello Asha {{company}}"
    assert shown.text.strip() == "Hi Asha, asha@a.example"
    assert "https://app.crm.example.in/l/" in shown.html
    assert 'href="https://crm.example.in/u/…"' in shown.html
    assert "r-1" not in shown.html
    assert shown.unknown_placeholders == ("company",)
    assert shown.unsubscribes
    assert shown.size_bytes > shown.html_bytes > 100


def test_whatsapp_messages_as_they_would_leave(router: TransportRouter) -> None:
    """A template with its parameters, a text, and media; for an example where there is no recipient."""
    shown = preview(router.route(campaign(TEMPLATE)), None, NOW)
    assert (shown.template, shown.parameters) == ("holi (en)", ("Asha Rao", "20 %"))
    shown = preview(router.route(campaign(TEXT)), ASHA, NOW)
    assert (shown.text, shown.template, shown.to) == ("Hi Asha", "", "+919876543210")
    media = replace(
        TEXT, whatsapp_message_type="media", whatsapp_media_type="image", whatsapp_media_url="https://a.example/b.png",
        whatsapp_caption="For {{name}}",
    )  # fmt: skip
    shown = preview(router.route(campaign(media)), ASHA, NOW)
    assert (shown.text, shown.media) == ("For Asha", "https://a.example/b.png")


STATE = CampaignState(
    id="c-1", tenant_id="t-1", tenant="Chaiwala Traders", name="Diwali", channel="email", status="draft", total=1,
    sent=0, failed=0, scheduled_at=None, started_at=None, next_batch_at=None, prepared=False, backoffs=0,
    is_run=False, next_retry=None, retries=(), unconfirmed=0, waits_for=None, waits_until=None, timezone=None,
    quality="", now=NOW,
)  # fmt: skip


def found_in(
    router: TransportRouter,
    texts: CampaignTexts = EMAIL,
    *,
    user: EmailUser = USER,
    state: CampaignState = STATE,
    review: RecipientReview | None = None,
    message: dict[str, Any] | None = None,
    loaded: Settings | None = None,
    rejection: str = "",
) -> list[tuple[Level, str]]:
    """The problems of a campaign, the worst first."""
    checked = campaign(texts, user)
    transport = router.route(checked)
    shown: Preview = replace(preview(transport, ASHA, NOW), **(message or {}))
    parts = CheckedParts(
        state=state,
        campaign=checked,
        review=review or review_of(transport, texts.channel, ASHA),
        message=shown,
        rejection=rejection,
        sender_address=transport.sender_address,
        smtp_host=transport.provider.host if isinstance(transport.provider, SmtpProvider) else None,
    )
    return [(each.level, each.code) for each in problems(parts, loaded or settings())]


def test_a_campaign_without_problems(router: TransportRouter) -> None:
    """Nothing is called a problem that is none."""
    assert found_in(router) == []
    assert found_in(router, TEMPLATE) == []


def test_the_worst_comes_first(router: TransportRouter) -> None:
    """Errors stand before warnings, whatever finds them."""
    review = RecipientReview(unfit=3, of_other_tenants=1)
    free = replace(USER, user_email="asha@gmail.com")
    texts = replace(EMAIL, subject=None, use_short_links=True)
    found = found_in(
        router,
        texts,
        user=free,
        review=review,
        message={
            "html": "x" * 104_449,
            "unsubscribes": False,
            "unknown_placeholders": ("unsubscribe_url", "company"),
        },
        loaded=settings(APP_URL=""),
        rejection="its target is unknown",
    )
    assert found == [
        (Level.ERROR, "rejected"),
        (Level.ERROR, "freemail-from"),
        (Level.ERROR, "nobody"),
        (Level.WARNING, "unfit-recipients"),
        (Level.WARNING, "other-tenants"),
        (Level.WARNING, "no-subject"),
        (Level.WARNING, "clipped"),
        (Level.WARNING, "no-unsubscribe"),
        (Level.WARNING, "unknown-placeholder"),
        (Level.WARNING, "unknown-placeholder"),
        (Level.WARNING, "no-short-links"),
    ]


@pytest.mark.parametrize(
    ("environ", "user", "is_error"),
    [
        ({}, replace(USER, user_email="asha@rediffmail.com"), True),
        ({"SMTP_FROM": "crm@mail.example"}, replace(USER, user_email="asha@rediffmail.com"), False),
        ({"SMTP_FROM": "crm@gmail.com"}, replace(USER, user_email="asha@rediffmail.com"), True),
        ({"SMTP_URL": "smtp://u:p@smtp.gmail.com"}, replace(USER, user_email="asha@gmail.com"), False),
        (
            {},
            replace(
                USER,
                google_email="asha@gmail.com",
                gmail_access_token="sandbox-access",
                gmail_refresh_token="sandbox-refresh",
                gmail_token_expiry=NOW + timedelta(hours=1),
                tenant_settings={"mail": accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)},
            ),
            False,
        ),
    ],
)
def test_a_free_mailbox_as_sender(environ: dict[str, str], user: EmailUser, is_error: bool) -> None:
    """An error only where it leaves through a server that is not its provider's, and SMTP_FROM does not help."""
    loaded = settings(**environ)
    with closing(TransportRouter(loaded, redis.Redis(port=1), lambda: NOW)) as router:
        found = found_in(router, user=user, loaded=loaded)
    assert ((Level.ERROR, "freemail-from") in found) is is_error


def test_what_whatsapp_delivers_to_whom(router: TransportRouter) -> None:
    """Free text within 24 hours of an answer only, and no marketing templates to the USA."""
    american = replace(ASHA, phone="+14155552671")
    assert found_in(router, TEXT) == [(Level.WARNING, "free-text")]
    review = review_of(router.route(campaign(TEMPLATE)), "whatsapp", american)
    assert found_in(router, TEMPLATE, review=review) == [(Level.WARNING, "us-numbers")]
    assert (Level.WARNING, "us-numbers") not in found_in(router, TEXT, review=review)
    assert found_in(router, TEMPLATE, state=replace(STATE, quality="RED")) == [(Level.WARNING, "quality-red")]


def test_a_time_zone_that_cannot_be_read(router: TransportRouter) -> None:
    """It keeps a campaign from being sent where there is a window, and only there."""
    state = replace(STATE, timezone="Mars/Olympus")
    assert found_in(router, state=state) == []
    assert found_in(router, state=state, loaded=settings(CAMPAIGN_WINDOW="09:00-21:00")) == [
        (Level.ERROR, "time-zone")
    ]
    whatsapp = replace(state, channel="whatsapp")
    assert found_in(router, TEMPLATE, state=whatsapp, loaded=settings(CAMPAIGN_WINDOW="09:00-21:00")) == []


def test_what_a_rate_is_measured_from() -> None:
    """The last ten minutes, or less when its run is younger: an app server may have sent before."""
    assert STATE.measured_from == NOW - timedelta(minutes=10)
    young = replace(STATE, started_at=NOW - timedelta(minutes=3))
    assert young.measured_from == NOW - timedelta(minutes=3)
    assert replace(STATE, started_at=NOW - timedelta(hours=3)).measured_from == NOW - timedelta(minutes=10)


def test_ended_and_foreign_campaigns(router: TransportRouter) -> None:
    """Nobody is left of one that has ended, which is no error; one that an app server sends is named."""
    nobody = RecipientReview()
    assert found_in(router, review=nobody, state=replace(STATE, status="completed")) == []
    assert found_in(router, review=nobody) == [(Level.ERROR, "nobody")]
    assert found_in(router, state=replace(STATE, status="running")) == [(Level.WARNING, "sent-by-crm")]
    assert found_in(router, state=replace(STATE, status="running", is_run=True)) == []
