"""What reads the texts of tenants takes ten times as long for ten times as much, whatever is in it."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from worker.content.addresses import parse_address
from worker.content.campaign_texts import CampaignTexts
from worker.content.headers import mailbox, unstructured
from worker.content.hours import BusinessHours
from worker.content.links import anchor_texts, rewrite_html, rewrite_text
from worker.content.markup import tags
from worker.content.one_line import one_line
from worker.content.phones import to_e164, whatsapp_id
from worker.content.placeholder_spellings import unified
from worker.content.placeholders import Template
from worker.content.plain_text import plain_text
from worker.content.reminder_settings import read_settings
from worker.content.reminders import Digest, email_texts
from worker.content.transfer import compiled
from worker.content.utm import UtmParameters, tag_url
from worker.content.whatsapp import whatsapp_payload

SIZES = (20_000, 200_000)  # characters, of every kind of text
LARGE_SIZES = (100_000, 1_000_000)  # of the kind that a parser is slowest with
GROWTH = 20  # at most, for ten times as much: linear is 10 to 15, quadratic is 100
NOTHING_SECONDS = 0.0005  # of CPU time: what takes less for the small text says nothing about growth
TRIES = 5

UTM = UtmParameters("crm", "email", "diwali")
VALUES = {"name": "Asha", "email": "asha@x.example", "phone": "+919876543210"}

Parser = Callable[[str], object]


def tagged(url: str) -> str:
    return tag_url(url, UTM)


def filled(text: str) -> str:
    return Template(text).fill_html(VALUES)


def filled_attributes(text: str) -> str:
    text = text[: len(text) // 4]
    return Template(f'<a href="tel:{text}" style="{text}" alt={text}>{text}').fill_html(VALUES)


def filled_blank(text: str) -> str:
    return Template(text, unknown="blank").fill(VALUES)


def value(text: str) -> str:
    template = Template('<a href="{{name}}" style="{{name}}" title={{name}} onclick={{name}}><!--{{name}}-->{{name}}')
    return template.fill_html({"name": text[: len(text) // 6]})


def body(text: str) -> bytes:
    _, fill = compiled(Template(text), as_html=True)
    return fill(VALUES)


def header(text: str) -> str:
    return unstructured("Subject", text) + mailbox("To", text, "a@x.example")


def styled(text: str) -> str:
    return plain_text(f'<style>{text}</style><p style="{text}" class="{text}">x')


def numbers(text: str) -> str:
    text = text[: len(text) // 4]
    hiding = f"opacity:{text}1;font:{text}x;font-size:{text}!;overflow:hidden;height:{text}z9"
    return plain_text(f'<p style="{hiding}">x')


def linked(text: str) -> object:
    return anchor_texts(f'<a href="http://x">{text}</a>')


def address(text: str) -> None:
    for read in (parse_address, to_e164, whatsapp_id):
        with suppress(ValueError):
            read(text)
    with suppress(ValueError):
        to_e164("9876543210", text)


def hours(text: str) -> None:
    usual: dict[str, object] = {"start": "09:00", "end": "18:00"}
    for entered in ({"start": text}, {"zone": text}, {"days": [text]}, {"days": text}):
        with suppress(ValueError):
            BusinessHours.of(**(usual | entered))


def settings(text: str) -> object:
    saved = {"enabled": True, "recipientEmails": [text, *text.split(" ")], "recipientPhones": text.split(",")}
    return read_settings(saved | {"includedStages": [text], "recipientUserIds": [text]})


def template_parameter(text: str) -> None:
    with suppress(ValueError):
        whatsapp_payload(
            recipient_row_id="r",
            to="919876543210",
            message_type="template",
            template_name="t",
            template_params=[text],
        )


def digest(text: str) -> object:
    text = text[: len(text) // 7]
    return email_texts(Digest(text, "a@x.example", 1, [(text, text, text)], 24.0, text), text, text)


def utm(text: str) -> object:
    UtmParameters.of_campaign(
        CampaignTexts(tenant_id="t", id="c", name=text, channel="email", utm_source=text)
    ).pairs()
    return tag_url(f"http://x/?{text}", UtmParameters(text))


TEXTS = {
    "html": [
        "<", "<a ", '<a href="', "<b><i></b>", "<div style='display:none'>", "<span style='mso-hide:all'>",
        "<li>", "<table><tr><td>", "<p></div>", "<!--", "<!--[if x]>", "<!", "<style>",
        "<style>.a{opacity:0}</style><b class=a>", "</title", "<a href='http://x'>y</a>", "a =", '="', " \n",
        "\u0915\u094d\u200d ", "&", "&#1", "&nbsp;",
    ],
    "placeholders": [
        "{", "{{ ", "{{name", "{{name}}", "<x {{name}} ", "<{{name}}", "{<b>", "{{<!--", "{{&nbsp;", "%7B", "{{na<b>",
        "='{{name}}'", "http://x/{{name}} ",
    ],
    "links": ["http://x", "http://x ", "http://x) ", "(http://x/(", ")", "(", ").", "https://{{", "?a=&", "#"],
    "styles": ["display:none;", "a{opacity:0}", "a,", ".a ", "{", "(", "/*", "@media{", ";", "'"],
    "words": ["a", "a.", "@", "ü.", "9", "-", "९", "a ", " ", ",", "=?", "\r", "é"],
    "numbers": ["0", "1", ".", "0.", "0 ", " ", "0a", "+"],
    "few": ["<b>", "{{name}}", "a "],
}  # fmt: skip
PARSERS: list[tuple[Parser, tuple[str, ...]]] = [
    (plain_text, ("html",)),
    (lambda text: list(tags(text)), ("few",)),
    (linked, ("few",)),
    (styled, ("styles",)),
    (numbers, ("numbers",)),
    (lambda text: rewrite_html(text, tagged), ("html",)),
    (lambda text: rewrite_html(f'<a href="http://x/{text}">', tagged), ("links",)),
    (lambda text: rewrite_text(text, tagged), ("links", "placeholders")),
    (unified, ("placeholders",)),
    (filled, ("placeholders",)),
    (filled_attributes, ("placeholders",)),
    (filled_blank, ("few",)),
    (value, ("few",)),
    (body, ("few", "words")),
    (header, ("words",)),
    (address, ("words",)),
    (hours, ("words",)),
    (settings, ("words",)),
    (template_parameter, ("words",)),
    (utm, ("links", "few")),
    (lambda text: one_line(text, 100), ("few",)),
    (digest, ("few",)),
]
CASES = [
    pytest.param(parser, unit, id=f"{number}-{unit!r}")
    for number, (parser, kinds) in enumerate(PARSERS)
    for kind in kinds
    for unit in TEXTS[kind]
]


def seconds(parser: Parser, unit: str, length: int) -> float:
    """The CPU time of this thread for about ``length`` characters of ``unit`` again and again.

    Without the garbage collector, which looks at all that other tests have left in memory.
    """
    text = unit * (length // len(unit))
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        started = time.thread_time()
        parser(text)
        return time.thread_time() - started
    finally:
        if was_enabled:
            gc.enable()


def assert_linear(parser: Parser, unit: str, sizes: tuple[int, int]) -> None:
    """The best of a few tries: whatever else the machine does makes none of them quicker."""
    small = large = float("inf")
    for _ in range(TRIES):
        small = min(small, seconds(parser, unit, sizes[0]))
        large = min(large, seconds(parser, unit, sizes[1]))
        if large <= GROWTH * max(small, NOTHING_SECONDS):
            return
    pytest.fail(f"{sizes[0]} characters of {unit!r} took {small:.4f} s, {sizes[1]} {large:.4f} s")


@pytest.mark.parametrize(("parser", "unit"), CASES)
def test_ten_times_as_much_takes_ten_times_as_long(parser: Parser, unit: str) -> None:
    assert_linear(parser, unit, SIZES)


@pytest.mark.parametrize(("parser", "kinds"), PARSERS, ids=map(str, range(len(PARSERS))))
def test_a_megabyte_of_what_is_slowest(parser: Parser, kinds: tuple[str, ...]) -> None:
    units = [unit for kind in kinds for unit in TEXTS[kind]]
    slowest = max(units, key=lambda unit: seconds(parser, unit, SIZES[0]))
    assert_linear(parser, slowest, LARGE_SIZES)
