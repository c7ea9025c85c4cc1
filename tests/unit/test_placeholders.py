"""Placeholders are filled in once, and a recipient's values can do nothing but be read."""

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.markup import tags
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


HOSTILE = "x onerror=alert(1) \"' <b> & ` --> </title> </style> \\"


@pytest.mark.parametrize(
    ("source", "attribute", "expected"),
    [
        ("<img alt={{name}}>", "alt", HOSTILE),
        ("<img alt={{ name }} src=x>", "alt", HOSTILE),
        ("<img alt=Hi-{{name}}! src=x>", "alt", f"Hi-{HOSTILE}!"),
        ("<img alt={{name}}{{name}} src=x>", "alt", HOSTILE * 2),
        ("<img alt={{name}}/>", "alt", f"{HOSTILE}/"),
        ("<img alt='{{name}}' src=x>", "alt", HOSTILE),
        ('<img alt="{{name}}" src=x>', "alt", HOSTILE),
    ],
)
def test_a_value_cannot_add_attributes(source: str, attribute: str, expected: str) -> None:
    """It is the attribute's value, in quotes or without."""
    ((_, attributes),) = parsed(Template(source).fill_html({"name": HOSTILE}))
    assert dict(attributes)[attribute] == expected
    assert {name for name, _ in attributes} <= {attribute, "src"}


@pytest.mark.parametrize("source", ["<img alt={{name}} title=x>", "<a href={{name}}{{name}} title=x>"])
def test_an_empty_value_does_not_swallow_the_next_attribute(source: str) -> None:
    ((_, attributes),) = parsed(Template(source).fill_html({"name": ""}))
    assert dict(attributes)["title"] == "x"
    assert len(attributes) == 2


@pytest.mark.parametrize(
    ("source", "filled"),
    [
        ('<a href="tel:{{phone}}">', '<a href="tel:+919876543210">'),
        ('<a href="TEL: {{ phone }}">', '<a href="TEL: +919876543210">'),
        ("<a href=tel:{{phone}}>", "<a href=tel:+919876543210>"),
        ('<a href="tel&#58;{{phone}}">', '<a href="tel&#58;+919876543210">'),
        ('<a href="tel:+{{phone}}">', '<a href="tel:+919876543210">'),
        ('<a href="tel:%2B{{phone}}">', '<a href="tel:%2B919876543210">'),
        ('<a href="tel:+91{{phone}}">', '<a href="tel:+919876543210">'),
        ('<a href="sms:{{phone}}?body=Hi {{name}}">', '<a href="sms:+919876543210?body=Hi A%20%26%20B">'),
        (
            '<a href="https://wa.me/{{phone}}?text={{name}}">',
            '<a href="https://wa.me/919876543210?text=A%20%26%20B">',
        ),
        (
            '<a href="https://api.whatsapp.com/send?text={{name}}&amp;phone={{phone}}">',
            '<a href="https://api.whatsapp.com/send?text=A%20%26%20B&amp;phone=919876543210">',
        ),
        ('<a href="whatsapp://send/?phone=+{{phone}}">', '<a href="whatsapp://send/?phone=+919876543210">'),
        ('<a href="https://x.in/send?phone={{phone}}">', '<a href="https://x.in/send?phone=%2B91%2098765%2043210">'),
        ('<a href="sms:{{phone}},+91{{phone}}">', '<a href="sms:+919876543210,+919876543210">'),
        ('<a href="sms:{{phone}}&body={{name}}">', '<a href="sms:+919876543210&body=A%20%26%20B">'),
        ('<a href="skype:{{email}}?call">', '<a href="skype:a+b@b%C3%BCcher.example?call">'),
        ('<a href="sip:{{phone}}@x.in">', '<a href="sip:+91%2098765%2043210@x.in">'),
        ('<a href="https://wa.me/91{{phone}}">', '<a href="https://wa.me/919876543210">'),
        ('<a href="https://x.in/?p={{phone}}">', '<a href="https://x.in/?p=%2B91%2098765%2043210">'),
        ('<a href="https://x.in/tel:{{phone}}">', '<a href="https://x.in/tel:%2B91%2098765%2043210">'),
        ('<a href="{{phone}}">', '<a href="%2B91%2098765%2043210">'),
        ('<a href="mailto:{{email}}">', '<a href="mailto:a+b@xn--bcher-kva.example">'),
        (
            "<a href='mailto:{{email}}?cc={{email}}&subject={{name}}'>",
            "<a href='mailto:a+b@xn--bcher-kva.example?cc=a%2Bb%40b%C3%BCcher.example&subject=A%20%26%20B'>",
        ),
        ('<a href="mailto:{{name}}">', '<a href="mailto:A%20%26%20B">'),
        ('<a title="tel:{{phone}}">', '<a title="tel:+91 98765 43210">'),
    ],
)
def test_a_value_makes_a_link_that_works(source: str, filled: str) -> None:
    """A number can be dialled, a mailbox written to; in the query of an address everything is percent-encoded."""
    values = {"name": "A & B", "email": "a+b@bücher.example", "phone": "+91 98765 43210"}
    assert Template(source).fill_html(values) == filled


@pytest.mark.parametrize(
    ("phone", "href"),
    [
        ("98765 43210", "tel:+919876543210"),
        ("(020) 7946-0000 x1", "tel:020794600001"),
        ("+0 12", "tel:+012"),
        ("javascript:alert", "tel:"),
        ("", "tel:"),
    ],
)
def test_whatever_the_number_is_nothing_but_digits_are_dialled(phone: str, href: str) -> None:
    assert Template('<a href="tel:{{phone}}">').fill_html({"phone": phone}) == f'<a href="{href}">'


@pytest.mark.parametrize(
    ("source", "filled"),
    [
        ('<p style="color:{{name}}">', r'<p style="color:\00003b\00007dx\000020\000022">'),
        ("<style>p{color:{{name}}}</style>", r"<style>p{color:\00003b\00007dx\000020\000022}</style>"),
        ("<p onclick=f('{{name}}')>", r"<p onclick=f('\u003b\u007dx\u0020\u0022')>"),
        ("<script>f('{{name}}')</script>", r"<script>f('\u003b\u007dx\u0020\u0022')</script>"),
        ("<a href=\"javascript:f('{{name}}')\">", "<a href=\"javascript:f('x')\">"),
        ('<iframe srcdoc="<p>{{name}}">', '<iframe srcdoc="<p>&amp;#59;&amp;#125;x&amp;#32;&amp;#34;">'),
        ("<title>{{name}}</title>", "<title>;}x &quot;</title>"),
        ("<!--{{name}}-->", "<!--;}x &quot;-->"),
        ("<p {{name}}>", "<p x>"),
        ("<h{{name}}>", "<hx>"),
        ("<{{name}}>", "<&#8288;;}x &quot;>"),
        ("</{{name}}>", "</ ;}x &quot;>"),
    ],
)
def test_a_value_is_written_for_the_place_where_it_lands(source: str, filled: str) -> None:
    """Style, script, a document inside an attribute, a comment, a tag's name."""
    assert Template(source).fill_html({"name": ';}x "'}) == filled


PLACES = [
    "<b>{{name}}</b>", "<img alt={{name}}>", '<a href="{{name}}" title={{name}}>', "<title>{{name}}</title>",
    "<p {{name}}>", "<{{name}}>", "</{{name}}>", "<!{{name}}>", "<!-- {{name}}> -->", "<b{{name}}>",
    "<!--[if mso]>{{name}}><![endif]-->", "<textarea></{{name}}</textarea>", "<style>{{name}}</style>",
    "<p style={{name}}>", "<p onclick='{{name}}'>", '<a href="tel:{{name}}">', "<a href=mailto:{{name}}>",
    "<iframe srcdoc='{{name}}'></iframe>", "<xmp>{{name}}</xmp>",
]  # fmt: skip
AWKWARD = [
    "", " ", "x", "--", "-->", "!--", "</title >", "title ", "/title>", "b", "/", "a=b", '"', "'", ">", "<", "]]>",
    "&#62;",
]  # fmt: skip


@given(st.sampled_from(PLACES), st.sampled_from(AWKWARD) | st.text(max_size=8))
def test_no_value_changes_the_tags_around_it(source: str, name: str) -> None:
    whole = f"<i>{source}</i><u class=x>"
    harmless, filled = (Template(whole).fill_html({"name": value}) for value in ("x", name))
    assert [(tag.name, [each.name for each in tag.attributes]) for tag in tags(filled)] == [
        (tag.name, [each.name for each in tag.attributes]) for tag in tags(harmless)
    ]
    assert [tag for tag, _ in parsed(filled)] == [tag for tag, _ in parsed(harmless)]


def test_html_the_worker_made_is_markup_only_where_text_stands() -> None:
    template = Template('<p title="{{leadsList}}">{{leadsList}}</p><title>{{leadsList}}</title>', unknown="blank")
    filled = template.fill_html({"leadsList": Html('<b class="x">')})
    escaped = "&lt;b class=&quot;x&quot;&gt;"
    assert filled == f'<p title="{escaped}"><b class="x"></p><title>{escaped}</title>'


@pytest.mark.parametrize(
    "written",
    [
        "{{&nbsp;name&nbsp;}}",
        "{{&#160;name&#xA0;}}",
        "{{&#0160;name&ensp;&thinsp;}}",
        "{{&nbspname&nbsp}}",
        "{{\u00a0name\u2003}}",
        "{{\u200bname\ufeff}}",
        "{{&ZeroWidthSpace;&shy;name&#8203;}}",
        "{{\r\n\tname&#10;}}",
        "{{%20name%C2%A0}}",
        "%7B%7Bname%7D%7D",
        "%7b%7b%20name%20%7d%7d",
        "&#123;&#x7B;name&rcub;&rbrace;",
        "&#123&#x7bname&#125&#X7D",
        "{{&#160name&#xA0}}",
        "{{&#0000000000160;name&#x000000000a0;}}",
        "{{n&#8203;a&#xAD;me&#173}}",
        "{{%E2%80%AFname%e3%80%80}}",
        "%7B%7B+name+%7D%7D",
        "{{na\u00adme}}",
        "{\u200b{name}\u200b}",
    ],
)
def test_white_space_in_the_braces_does_not_count_however_it_is_written(written: str) -> None:
    """In the text, in an address, in HTML; known or not to the template."""
    assert Template(f"Dear {written},").fill(ASHA) == "Dear Asha,"
    assert Template(f"Dear {written},").fill_html(ASHA) == "Dear Asha,"
    assert Template(f'<a href="https://x.in/?n={written}&amp;a=1">').fill_html(ASHA) == (
        '<a href="https://x.in/?n=Asha&amp;a=1">'
    )
    assert Template(f"Dear {written},", unknown="blank").fill({"name": "Asha"}) == "Dear Asha,"


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ("{{<span>name</span>}}", "<span>Asha</span>"),
        ("{<b>{name}}</b>", "<b>Asha</b>"),
        ("{{na<b>me</b>}}", "Asha<b></b>"),
        ("{{<span style='color:red'>&nbsp;name</span> }<i>}</i>", "<span style='color:red'>Asha</span><i></i>"),
        ('{{<span title="a>b" class=\'x">\'>name</span>}}', '<span title="a>b" class=\'x">\'>Asha</span>'),
        ("{{<b title=it's>name</b>}}", "<b title=it's>Asha</b>"),
        ("{{<!-- x -->name<br/>}}", "<!-- x -->Asha<br/>"),
        ("{{</p><p>name}}", "</p><p>Asha"),
        ("<b>{{</b>name<b>}}</b>", "<b></b>Asha<b></b>"),
    ],
)
def test_tags_that_an_editor_put_between_stay_beside_the_value(written: str, filled: str) -> None:
    assert Template(written).fill_html(ASHA) == filled
    assert Template(written, unknown="blank").fill_html({"name": "Asha"}) == filled


@pytest.mark.parametrize(
    "text",
    [
        "{{&amp;name}}",
        "{{n ame}}",
        "{{&nbsp;company&nbsp;}}",
        "{{<b>company</b>}}",
        "{ {name} }",
        "{{name}",
        "%7Bname%7D",
        "&#123;name&#125;",
        "{{<script>name</script>}}",
        "{{<!--[if mso]>name<![endif]-->}}",
        "{{Name}} {{ first name }}",
        "100%20 &nbsp; {x} <b>{</b>",
    ],
)
def test_what_is_no_placeholder_of_a_campaign_stays_byte_for_byte(text: str) -> None:
    template = Template(text)
    assert (template.text, template.personal) == (text, False)
    assert template.fill(ASHA) == template.fill_html(ASHA) == text


@given(
    st.lists(st.sampled_from(["{", "}", "name", "<b>", "</b>", "&nbsp;", "%7B", " ", "x", "<!--", "-->", "&", ";"]))
)
def test_all_other_bytes_stay(parts: list[str]) -> None:
    """What a template has beside its placeholders is a part of its source, in its order."""
    text = "".join(parts)
    for segment in Template(text).segments:
        assert isinstance(segment, Slot) or segment.replace("<b>", "").replace("</b>", "") in text.replace(
            "<b>", ""
        ).replace("</b>", "")


def test_a_value_in_a_link_of_a_text_does_not_break_the_link() -> None:
    """A space would end it; the text around it gets the value as it is."""
    template = Template("Dear {{name}}: https://x.in/?n={{name}}&p={{ phone }}. {{name}}")
    filled = template.fill({"name": "Asha Rao", "phone": "+91 98765"})
    assert filled == "Dear Asha Rao: https://x.in/?n=Asha%20Rao&p=%2B91%2098765. Asha Rao"


def test_a_number_in_a_whatsapp_link_is_digits_in_a_text_too() -> None:
    template = Template("https://wa.me/{{phone}}?text={{phone}} https://api.whatsapp.com/send?phone={{phone}}")
    filled = template.fill({"phone": "+91 98765 43210"})
    assert filled == (
        "https://wa.me/919876543210?text=%2B91%2098765%2043210 https://api.whatsapp.com/send?phone=919876543210"
    )
