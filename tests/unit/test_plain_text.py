"""The text part that is made from HTML says what a browser shows, and nothing else."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content import invisible_characters as invisible
from worker.content.placeholders import Template
from worker.content.plain_text import plain_text
from worker.content.reminders import Digest, email_texts

DOCTYPE = (
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" '
    '"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">'
)
PADDING = "&nbsp;&zwnj;&nbsp;&zwnj;&#847;&#8199;&shy;&#8203;&#xFEFF;&#8288;&emsp;&#10240;&lrm;&#65039;"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (f"{DOCTYPE}\n<html><body>\n<![if !mso]><p>Namaste</p><![endif]>\n</body></html>\n<!-- bye -->", "Namaste"),
        ("<!doctype html>Namaste", "Namaste"),
        ('<?xml version="1.0" encoding="utf-8"?><p>Namaste', "Namaste"),
        ("<![CDATA[ never ]]>Namaste", "Namaste"),
        ('<!ENTITY x "y">Namaste</>', "Namaste"),
        ("<!--[if mso]><p>Outlook</p><![endif]-->Namaste", "Namaste"),
        ("<!--[if gte mso 9]><xml><o:x>96</o:x></xml><![endif]-->Namaste", "Namaste"),
        ("<!--[if !mso]><!--><p>Namaste</p><!--<![endif]-->", "Namaste"),
        ("<!--[if !mso]>-->Namaste<!--<![endif]-->", "Namaste"),
        ("<!--> Namaste <!-->", "Namaste"),
        ("<!-- a --!>Namaste<!-- to the end", "Namaste"),
        ('<a title="<!-- x -->" href="/">Namaste</a>', "Namaste"),
        ("<style>/* <!-- */ p { content: '<b>' }</style>Namaste", "Namaste"),
        ("<head><title>T</title><script>if (a < b) document.write('<p>x')</script></head>Namaste", "Namaste"),
        ("<template>never</template><datalist><option>never</datalist>Namaste", "Namaste"),
        ("<noscript>Namaste</noscript><iframe>never</iframe>", "Namaste"),
        ("<textarea>a &amp; <b></textarea>", "a & <b>"),
        ("<xmp>a &amp; <b></xmp>", "a &amp; <b>"),
        ("1 < 2, 3 > 2 & 4<5 &copy &lt;b&gt;", "1 < 2, 3 > 2 & 4<5 © <b>"),
        ("a&#10;b&Tab;c", "a b c"),
        ("Namaste <b", "Namaste"),
        (f"&#{'9' * 5000}; &#{'0' * 5000}65; &#0;", "\ufffd A \ufffd"),
    ],
)
def test_what_is_no_text_is_not_shown(source: str, shown: str) -> None:
    assert plain_text(source) == shown


@pytest.mark.parametrize(
    "style",
    [
        "display:none",
        "display:none;max-height:0;overflow:hidden",
        "DISPLAY : NONE !important",
        "color:red;display:none;",
        "display:block;display:none",
        "display:none!important;display:block",
        "/* x */display:none/* y */",
        "background:url(data:x;base64,y);display:none",
        "display&#58;none",
        "visibility:hidden",
        "max-height:0",
        "max-height:0px;mso-line-height-rule:exactly",
        "height:0;overflow:hidden",
        "width:0.0em;overflow-x:clip",
        "font-size:0",
        "font-size:0px;line-height:0",
        "font:0/0 arial",
        "opacity:0",
        "opacity:0.00",
        "opacity:-1",
        "opacity:0%",
        "dis\\70lay:none",
        "display:n\\6F ne",
        "display:none;display:",
        "display:none;display:blok",
        "display:none;display:block!ie",
        "max-height:1px;overflow:hidden;font-size:1px;line-height:1px",
        "height:.5px;overflow:hidden",
        "font-size:1px;color:#fff",
        "position:absolute;left:-9999px",
        "position:absolute;top:-999em",
        "text-indent:-9999px",
        "position:absolute;clip:rect(0 0 0 0)",
        "position:absolute;width:1px;height:1px;clip:rect(0, 0, 0, 0)",
        "clip-path:inset(100%)",
        "transform:scale(0)",
        "filter:opacity(0)",
        "content-visibility:hidden",
        "mso-hide:all",
        "mso-hide:all;font-size:1px",
    ],
)
def test_a_teaser_is_not_shown(style: str) -> None:
    """Whatever hides it, with all that is in it."""
    inside = "Teaser <b>bold</b><br><img alt='picture'><table><tr><td>cell</table><p>more<p>and more"
    for source in (
        f"<div style='{style}'>{inside}</div><p>Namaste</p>",
        f'<body><span class=x style="{style}">{inside}</span><p>Namaste',
        f'<p style="{html.escape(style, quote=True) if "&" not in style else style}">Teaser<p>Namaste',
        f"<table><tr><td style='{style}'>Teaser<td>Namaste</table>",
        f"<img style='{style}' alt='Teaser'>Namaste" if "mso" not in style else "Namaste",
    ):
        assert plain_text(source) == "Namaste", source


@pytest.mark.parametrize(
    "source",
    [
        "<div hidden>Teaser<div>more</div></div>Namaste",
        "<div HIDDEN=''><img alt=x></div>Namaste",
        '<div hidden="until-found">Teaser</div>Namaste',
        '<style>.preheader { display: none !important }</style><span class="x preheader">Teaser</span>Namaste',
        "<style>div.preheader,#x{display:none}</style><div class=preheader>Teaser</div><p id=x>More</p>Namaste",
        "<style>@media screen{.p{display:none}}</style><i class=p>Teaser</i>Namaste",
        "<style>@import url(x.css); @font-face { src: x } .p{display:none}</style><i class=p>Teaser</i>Namaste",
        "<style><!-- .p{max-height:0} --></style><i class=p style='color:red'>Teaser</i>Namaste",
        "<i class=p>Teaser</i>Namaste<style>.p{display:none}</style>",
        "<dialog>Teaser</dialog>Namaste",
        "<p style=\"font-family:'a;b';display:none\">Teaser</p>Namaste",
        "<p style='background:url(a;b);display:none'>Teaser</p>Namaste",
    ],
)
def test_what_an_attribute_or_a_style_sheet_hides_is_not_shown(source: str) -> None:
    assert plain_text(source) == "Namaste"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("<div aria-hidden=true>Namaste</div>", "Namaste"),
        ("<div hidden style='display:block'>Namaste</div>", "Namaste"),
        ("<div style='display:none;display:block'>Namaste</div>", "Namaste"),
        ("<div style='max-height:0.5em'>Namaste</div>", "Namaste"),
        ("<div style='height:0'>Namaste</div>", "Namaste"),
        ("<div style='display:none;display:-webkit-box'>Namaste</div>", "Namaste"),
        ("<div style='display:none;display:inline flex'>Namaste</div>", "Namaste"),
        ("<div style='height:1px'>Namaste</div>", "Namaste"),
        ("<div style='position:absolute;left:-9px;clip:rect(0,90px,90px,0)'>Namaste</div>", "Namaste"),
        ("<div style='left:-9999px;text-indent:-1em;opacity:.4'>Namaste</div>", "Namaste"),
        ("<div style='clip-path:inset(10%);transform:scale(0.5)'>Namaste</div>", "Namaste"),
        ("<div style='visibility:hidden'>a<b style='visibility:visible'>Namaste</b></div>Asha", "Namaste\nAsha"),
        ("<div style='font-size:0'><b style='font-size:9px'>Namaste</b></div>Asha", "Namaste\nAsha"),
        (
            "<td style='font-size:0'><a href='https://x.in/'><img alt='Namaste' style='font-size:9px'></a></td>",
            "Namaste (https://x.in/)",
        ),
        ("<td style='font-size:0'><a href='https://x.in/'>a</a></td>Namaste", "Namaste"),
        (
            "<a href='https://x.in/'>Buy</a>{{name}}, <a href='https://x.in/'>Buy</a>.",
            "Buy (https://x.in/) {{name}}, Buy (https://x.in/).",
        ),
        (
            "Namaste<a href='https://x.in/'><img></a><a href='https://y.in/'></a>Asha",
            "Namaste https://x.in/ https://y.in/ Asha",
        ),
        ("<a style='display:none' href='https://a.in/'>a<a href='https://x.in/'>Namaste", "Namaste (https://x.in/)"),
        ("<img src='https://x.in/open' alt='pixel' width=1 height=1>Namaste", "Namaste"),
        ("<div data-style='display:none' title='display:none'>Namaste</div>", "Namaste"),
        ("<div style='visibility:hidden'>a<b style='visibility:visible'>Namaste</b>b</div>", "Namaste"),
        ("<td style='font-size:0px'>a<div style='font-size:13px'>Namaste</div>b</td>", "Namaste"),
        (
            "<i style='font-size:0'><i style='font-size:2em'>a</i><b style='font:bold 12px x'>Namaste</b></i>",
            "Namaste",
        ),
        ("<div style='font-size:0'><table><td>a<td style='font-size:small'>Namaste</table></div>", "Namaste"),
        (
            "<style>@media (max-width:9px){p{display:none}} @media print{p{display:none}}</style><p>Namaste",
            "Namaste",
        ),
        ("<style media=print>p{display:none}</style><p>Namaste", "Namaste"),
        ("<style>p a{display:none} p:hover{display:none} .q.r{display:none}</style><p class=q>Namaste", "Namaste"),
        ("<style>.p{display:none} .p{display:block}</style><p class=p>Namaste", "Namaste"),
        ("<style>#a{display:block}.p{display:none}</style><p class=p id=a>Namaste", "Namaste"),
        ("<style>.p{display:none}</style><p class=p style='display:block'>Namaste", "Namaste"),
        ("<p style='display:none'>a<div>Namaste</div>", "Namaste"),
        ("<ul><li style='display:none'>a<li>Namaste</ul>", "- Namaste"),
        ("<div style='display:none'>a</span></div>Namaste", "Namaste"),
        ("<br style='display:none'/>Namaste</div>", "Namaste"),
        ("<dialog open>Namaste</dialog>", "Namaste"),
        ("<a style='mso-hide:all' href='https://x.in/'>Namaste</a>", "Namaste (https://x.in/)"),
        ("<div style='mso-hide:all'>Buy <a href='https://x.in/'>here</a></div>", "Buy here (https://x.in/)"),
        ("<a href='https://x.in/'><span style='mso-hide:all'>Namaste</span></a>", "Namaste (https://x.in/)"),
    ],
)
def test_what_is_not_hidden_is_shown(source: str, shown: str) -> None:
    assert plain_text(source) == shown


def test_links_and_pictures_in_a_teaser_are_not_shown() -> None:
    source = (
        "<div style='display:none'><a href='https://a.in/'>x</a><img alt=y></div><a href='https://x.in/'>Namaste</a>"
    )
    assert plain_text(source) == "Namaste (https://x.in/)"


@pytest.mark.parametrize("padding", [PADDING, PADDING * 20, html.unescape(PADDING)])
def test_what_fills_up_a_teaser_is_not_shown(padding: str) -> None:
    assert plain_text(f"<div>Namaste{padding}</div>{padding}<p>{padding}</p>Asha") == "Namaste\n\nAsha"
    assert plain_text(f"नमस्ते{padding} आशा") == "नमस्ते आशा"


@pytest.mark.parametrize(
    "words",
    [
        "न\u094d\u200dयूज़",  # a half letter, joined
        "श\u094d\u200cक",  # one that is kept apart
        "അവന\u0d4d\u200d",  # the end of a word in Malayalam
        "می\u200cخواهم",
        "👩\u200d💻 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3",
        "שלום\u200f",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
    ],
)
def test_joiners_stay_in_the_words_and_pictures_that_they_belong_to(words: str) -> None:
    assert plain_text(f"<p>{words}</p>") == words


def test_soft_hyphens_and_invisible_breaks_are_not_in_words() -> None:
    assert plain_text("Don&shy;au&#8203;dampf&#8288;schiff&zwnj;fahrt") == "Donaudampfschifffahrt"


def test_no_invisible_character_is_left_between_latin_letters() -> None:
    for char in filter(lambda each: each > "\x9f", invisible.CHARACTERS):
        assert plain_text(f"a{char}b &#{ord(char)};{char} c{char}").replace(" ", "") == "abc", hex(ord(char))


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    """What is shown of escaped text is the text itself, but for white space and what shows nothing."""
    shown = plain_text(f"<p>{html.escape(text)}</p>")
    plain = plain_text(html.escape(text))
    assert shown == plain
    assert "<p>" not in shown or "<p>" in text


PIECES = [
    "<div>", "</div>", "<p>", "</p>", "<table>", "<tr>", "<td>", "</table>", "<b style='display:none'>", "</b>",
    "<a href='http://x'>", "</a>", "<span style='mso-hide:all'>", "</span>", "<br>", "<!--", "-->",
    "<style>.a{opacity:0}</style>",
    "<i class=a>", "</i>", "text", "&nbsp;", "<li>", "<ul>", "</ul>", "<textarea>", "</textarea>", "<", '"',
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_nesting_can_be_read(pieces: list[str]) -> None:
    """However tags are mixed up, something comes out, without markup."""
    shown = plain_text("".join(pieces))
    assert "<div>" not in shown or "textarea" in "".join(pieces)
    assert "display" not in shown or "<textarea>" in pieces


@pytest.mark.parametrize(
    "written",
    [
        "{{&nbsp;LIST&nbsp;}}", "{{&#160;LIST}}", "{{\u200bLIST}}", "{{<span>LIST</span>}}", "{<b>{LIST}}</b>",
        "{{<p>LIST</p>}}", "%7B%7BLIST%7D%7D", "&lbrace;{ LIST }}", "{{&zwnj;LI&shy;ST}}", "{{LIST&ensp;<!-- -->}}",
    ],
)  # fmt: skip
def test_html_and_the_text_made_from_it_have_the_same_values(written: str) -> None:
    """A placeholder that one of the two knows the other knows, in a campaign and in a tenant's template."""
    campaign = Template(f"<p>Dear {written.replace('LIST', 'name').replace('LI&shy;ST', 'na&shy;me')}</p>")
    derived = Template(plain_text(campaign.text))
    assert "Asha" in campaign.fill_html({"name": "Asha"})
    assert derived.fill({"name": "Asha"}).split() == ["Dear", "Asha"]

    reminder = written.replace("LIST", "leadsList").replace("LI&shy;ST", "leads&shy;List")
    digest = Digest("Meera", "m@x.example", 1, [("Ravi", None, None)], 24.0, "Shop")
    texts = email_texts(digest, "S", f"<p>{reminder}</p>")
    assert "<strong>Ravi</strong>" in texts.html.fill_html(texts.values)
    assert texts.text.fill(texts.values) == "1. Ravi"


def test_a_link_has_the_same_address_in_html_and_in_the_text_made_from_it() -> None:
    template = Template('<a href="https://x.in/?n=%7B%7B%20name%20%7D%7D">Offer</a>')
    assert template.fill_html({"name": "A B"}) == '<a href="https://x.in/?n=A%20B">Offer</a>'
    assert Template(plain_text(template.text)).fill({"name": "A B"}) == "Offer (https://x.in/?n=A%20B)"
