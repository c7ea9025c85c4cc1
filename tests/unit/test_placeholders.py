"""Placeholders are filled in once, and a recipient's values can do nothing but be read."""

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.placeholders import RECIPIENT_ID_SLOT, Html, Slot, Template

ASHA = {"name": "Asha", "email": "asha@example.com", "phone": "+919876543210", "recipient_id": "r-1"}


class Hrefs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))


def parsed(source: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    parser = Hrefs()
    parser.feed(source)
    parser.close()
    return parser.tags


def test_each_placeholder_gets_its_value_with_or_without_white_space_in_the_braces() -> None:
    template = Template("{{name}}|{{ email }}|{{\tphone\n}}")
    assert template.fill(ASHA) == "Asha|asha@example.com|+919876543210"


def test_unknown_placeholders_of_a_campaign_stay_as_they_are() -> None:
    text = "Hi {{name}}, {{ company }} {{}} {name} {{Name}} {{recipient_id}}"
    assert Template(text).fill(ASHA) == text.replace("{{name}}", "Asha")


def test_unknown_placeholders_of_an_email_template_become_blank_and_all_values_are_known() -> None:
    template = Template("{{leadsCount}} leads of {{ companyName }}{{ nobody }}{{#if x}}!", unknown="blank")
    assert template.fill({"leadsCount": "3", "companyName": "Acme"}) == "3 leads of Acme!"


@given(st.text(), st.text())
def test_a_value_arrives_as_it_is_whatever_it_holds(name: str, email: str) -> None:
    filled = Template("<{{name}}|{{email}}>").fill({"name": name, "email": email})
    assert filled == f"<{name}|{email}>"


@pytest.mark.parametrize("name", ["{{email}}", "$1 \\1 \\g<0>", "{{", "%s", RECIPIENT_ID_SLOT])
def test_a_value_that_looks_like_a_template_is_not_one(name: str) -> None:
    assert Template("{{name}} {{email}}").fill({**ASHA, "name": name}) == f"{name} asha@example.com"


def test_triple_braces_keep_the_outer_ones() -> None:
    assert Template("{{{name}}}").fill(ASHA) == "{Asha}"


def test_a_missing_value_is_blank() -> None:
    assert Template("a{{phone}}b").fill({}) == "ab"


def test_the_recipient_id_has_a_slot_that_users_cannot_write() -> None:
    template = Template(f"https://crm.example/l/x?r={RECIPIENT_ID_SLOT}!")
    assert template.segments == ("https://crm.example/l/x?r=", Slot("recipient_id", in_url=False), "!")
    assert template.fill(ASHA) == "https://crm.example/l/x?r=r-1!"


def test_segments_are_the_literals_and_slots_in_order() -> None:
    template = Template('<a href="/{{name}}">{{name}}</a>')
    assert template.segments == ('<a href="/', Slot("name", True), '">', Slot("name", False), "</a>")
    assert template.personal
    assert not Template("no {{slot}} here").personal
    assert Template("").segments == ()


@given(st.text())
def test_a_value_cannot_make_a_tag_or_leave_its_attribute(name: str) -> None:
    source = Template('<p title="{{name}}">{{name}}</p>').fill_html({"name": name})
    assert [tag for tag, _ in parsed(source)] == ["p"]
    assert source == f'<p title="{html.escape(name)}">{html.escape(name)}</p>'


@pytest.mark.parametrize(
    "source",
    [
        '<a href="{{name}}">x</a>',
        "<a href='{{ name }}'>x</a>",
        "<a class=x HREF={{name}}>x</a>",
        '<a title="a > b" href = "{{name}}">x</a>',
        '<!--[if mso]><v:roundrect href="{{name}}"><![endif]-->',
        '<img alt="" src="{{name}}">',
    ],
)
def test_a_value_in_an_address_cannot_choose_its_scheme(source: str) -> None:
    filled = Template(source).fill_html({"name": "javascript:alert('1') \"x=y"})
    assert "javascript%3Aalert%28%271%27%29%20%22x%3Dy" in filled


@pytest.mark.parametrize(
    "source", ["<p>href={{name}}</p>", '<p title="href={{name}}">', "<!-- <a href='{{name}}'> -->", "{{name}}"]
)
def test_outside_addresses_values_are_escaped_not_percent_encoded(source: str) -> None:
    assert "A &amp; B" in Template(source).fill_html({"name": "A & B"})


def test_html_the_worker_made_is_put_in_as_it_is() -> None:
    template = Template("<div>{{leadsList}}{{name}}</div>", unknown="blank")
    filled = template.fill_html({"leadsList": Html("<table></table>"), "name": "<b>"})
    assert filled == "<div><table></table>&lt;b&gt;</div>"
