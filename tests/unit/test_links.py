"""Links are tagged and shortened without changing anything else of what the user wrote."""

import string
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.campaign_texts import CampaignTexts
from worker.content.links import anchor_texts, prepare_links, rewrite_html, rewrite_text, short_code
from worker.content.placeholders import RECIPIENT_ID_SLOT, Template
from worker.content.utm import UtmParameters, tag_url

UTM = UtmParameters("crm", "email", "diwali")
TAGS = "utm_source=crm&utm_medium=email&utm_campaign=diwali"


def campaign(**columns: Any) -> CampaignTexts:
    return replace(CampaignTexts(tenant_id="t", id="c-1", name="Diwali", channel="email"), **columns)


def shouted(url: str) -> str:
    return f"[{url}]"


def test_defaults_come_from_the_contract() -> None:
    utm = UtmParameters.of_campaign(campaign(name="Diwali -- Sale, 50% off!"))
    assert utm == UtmParameters("bharat_crm", "email", "diwali_sale_50_off_", "", "")


def test_a_long_value_is_cut() -> None:
    """A name of 100 kB in each of 20,000 links would be two gigabytes, and minutes of work."""
    texts = campaign(
        name="Diwali" * 20_000, utm_source="n" * 100_000, platform_utm_config={"email": {"term": "t" * 300}}
    )
    assert all(len(value) <= 255 for _, value in UtmParameters.of_campaign(texts).pairs())
    links = "".join(f'<a href="http://x.example/{number}">y</a>' for number in range(20_000))
    prepared = prepare_links(replace(texts, html=links, auto_tag_links=True), None)
    assert len(prepared.html or "") < 20_000 * 1_000
    assert len(prepared.links) == 20_000


def test_columns_win_over_defaults_and_blank_ones_do_not_count() -> None:
    utm = UtmParameters.of_campaign(campaign(utm_source="news", utm_medium="  ", utm_term="t", utm_content="c"))
    assert utm == UtmParameters("news", "email", "diwali", "t", "c")


@pytest.mark.parametrize("key", ["utmSource", "utm_source", "source"])
def test_the_channels_own_settings_win_over_columns_however_their_keys_are_spelled(key: str) -> None:
    config = {"email": {key: "override"}, "whatsapp": {key: "other"}}
    utm = UtmParameters.of_campaign(campaign(utm_source="column", platform_utm_config=config))
    assert utm.source == "override"


@pytest.mark.parametrize(
    "config", [None, [], "x", 3, {}, {"email": None}, {"email": ["a"]}, {"email": {"source": 5, "utmSource": ""}}]
)
def test_malformed_settings_are_ignored(config: Any) -> None:
    utm = UtmParameters.of_campaign(campaign(platform_utm_config=config))
    assert utm == UtmParameters("bharat_crm", "email", "diwali")


@pytest.mark.parametrize(
    ("url", "tagged"),
    [
        ("https://x.in", f"https://x.in?{TAGS}"),
        ("https://x.in/a/", f"https://x.in/a/?{TAGS}"),
        ("https://x.in/?", f"https://x.in/?{TAGS}"),
        ("https://x.in/?b=2&a=%41+c", f"https://x.in/?b=2&a=%41+c&{TAGS}"),
        ("https://x.in/?a&", f"https://x.in/?a&{TAGS}"),
        ("https://x.in/#top?x", f"https://x.in/?{TAGS}#top?x"),
        ("https://x.in/?a=1#", f"https://x.in/?a=1&{TAGS}#"),
        ("https://x.in/?e={{email}}#a", f"https://x.in/?e={{{{email}}}}&{TAGS}#a"),
        ("https://x.in/?utm_source=me", "https://x.in/?utm_source=me"),
        ("https://x.in/?a=1&utm_medium=", "https://x.in/?a=1&utm_medium="),
        ("https://x.in/utm_source=1", f"https://x.in/utm_source=1?{TAGS}"),
        ("https://x.in/?xutm_source=1", f"https://x.in/?xutm_source=1&{TAGS}"),
    ],
)
def test_a_url_is_tagged_once_and_keeps_its_parts(url: str, tagged: str) -> None:
    assert tag_url(url, UTM) == tagged


def test_a_parameter_the_user_wrote_is_not_added_again() -> None:
    tagged = tag_url("https://x.in/?utm_campaign=mine", UTM)
    assert tagged == "https://x.in/?utm_campaign=mine&utm_source=crm&utm_medium=email"


@given(st.text(min_size=1), st.text(min_size=1))
def test_utm_values_are_encoded_and_never_personalised(source: str, term: str) -> None:
    tagged = tag_url("https://x.in/", UtmParameters(source=source, term=term))
    query = urlsplit(tagged).query
    assert parse_qs(query, strict_parsing=True) == {"utm_source": [source], "utm_term": [term]}
    assert not Template(tag_url("https://x.in/", UtmParameters(source="{{email}}"))).personal


@pytest.mark.parametrize(
    ("source", "rewritten"),
    [
        ('<a href="https://x.in">', '<a href="[https://x.in]">'),
        ("<A class='b' HREF = 'http://x.in'  >", "<A class='b' HREF = '[http://x.in]'  >"),
        ("<a href=https://x.in/a>", "<a href=[https://x.in/a]>"),
        ('<a href=" https://x.in\n">', '<a href=" [https://x.in]\n">'),
        ('<area href="https://x.in"/>', '<area href="[https://x.in]"/>'),
        (
            '<!--[if mso]><v:roundrect href="https://x.in"><![endif]-->',
            '<!--[if mso]><v:roundrect href="[https://x.in]"><![endif]-->',
        ),
        ('<!--[if !mso]><!--><a href="http://x"><!--<![endif]-->', None),
        ('<a title="a > b" href="http://x">', '<a title="a > b" href="[http://x]">'),
        ('<style>a{}</style><a href="http://x">', '<style>a{}</style><a href="[http://x]">'),
        ("<a href=http://x/?n={{name}}>", "<a href=[http://x/?n={{name}}]>"),
        ("<a href='http://x/?n={{ name }}'>", "<a href='[http://x/?n={{ name }}]'>"),
        ("<a href='http://x/?n={{&nbsp;name}}'>", "<a href='[http://x/?n={{name}}]'>"),
        ("<a href='http://x/?n=%7B%7Bname%7d%7d'>", "<a href='[http://x/?n={{name}}]'>"),
    ],
)
def test_hrefs_are_rewritten_however_they_are_written(source: str, rewritten: str | None) -> None:
    expected = rewritten or source.replace("http://x", "[http://x]")
    assert rewrite_html(source, shouted) == expected


@pytest.mark.parametrize(
    "source",
    [
        '<link rel="stylesheet" href="https://x.in/a.css">',
        '<base href="https://x.in/">',
        '<a href="mailto:a@b.in">',
        '<a href="tel:+91">',
        '<a href="#top">',
        '<a href="/path">',
        '<a href="//x.in">',
        '<a href="{{email}}">',
        '<a data-href="https://x.in">',
        "<a title='href=\"https://x.in\"'>",
        '<!-- <a href="https://x.in"> -->',
        '<style>a[href="https://x.in"]{}</style>',
        "<script>\"<a href='https://x.in'>\"</script>",
        '<textarea><a href="https://x.in"></textarea>',
        'href="https://x.in"',
        '<img src="https://x.in/a.png">',
        '<a href="https://x.in',
        '<a x="" href="mailto:a" href="https://x.in">',
    ],
)
def test_what_is_no_web_link_stays_byte_for_byte(source: str) -> None:
    after = '<a href="http://y">'
    assert rewrite_html(source, shouted) == source
    if source.endswith(">"):
        assert rewrite_html(source + after, shouted) == source + '<a href="[http://y]">'


def test_ampersands_are_read_and_written_as_html() -> None:
    seen = []

    def longer(url: str) -> str:
        seen.append(url)
        return f'{url}&z="1"'

    source = '<a href="https://x.in/?a=1&amp;b=2&copy=3&#38;d">'
    assert rewrite_html(source, longer) == (
        '<a href="https://x.in/?a=1&amp;b=2&amp;copy=3&amp;d&amp;z=&quot;1&quot;">'
    )
    assert seen == ["https://x.in/?a=1&b=2&copy=3&d"]


@given(
    st.lists(
        st.sampled_from(["<a ", 'href="https://x.in"', ">", "<!--", "-->", "'", '"', "=", "<style>", "</a>", " x"])
    )
)
def test_html_whose_links_do_not_change_is_never_changed(parts: list[str]) -> None:
    source = "".join(parts)
    assert rewrite_html(source, str) == source
    assert rewrite_html(source, shouted).replace("[", "").replace("]", "") == source


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("see https://x.in/a.", "see [https://x.in/a]."),
        ("https://x.in?!", "[https://x.in]?!"),
        ("(https://x.in/a_(b))", "([https://x.in/a_(b)])"),
        ("'https://x.in/a', \"https://x.in/b\"", "'[https://x.in/a]', \"[https://x.in/b]\""),
        ("यहाँ देखें https://x.in/a।", "यहाँ देखें [https://x.in/a]।"),
        ("*https://x.in/a*", "*[https://x.in/a]*"),
        ("HTTPS://X.in/e={{ email }}.", "[HTTPS://X.in/e={{ email }}]."),
        ("a\nhttp://x.in\nb", "a\n[http://x.in]\nb"),
        ("http://x.in)))", "[http://x.in])))"),
        ("http://x.in/(a)(b))", "[http://x.in/(a)(b)])"),
        ("http://x.in/((a)", "[http://x.in/((a)]"),
        ("http://x.in/(a).)", "[http://x.in/(a)].)"),
        ("http://x.in/?n={{\u200bemail&nbsp;}}!", "[http://x.in/?n={{email}}]!"),
        ("http://x.in/?n=%7B%7Bemail%7D%7D!", "[http://x.in/?n={{email}}]!"),
        ("https://... ftp://x.in x.in xhttps://x.in", "https://... ftp://x.in x.in xhttps://x.in"),
    ],
)
def test_bare_urls_in_text_are_rewritten_without_the_punctuation_after_them(text: str, rewritten: str) -> None:
    assert rewrite_text(text, shouted) == rewritten


def test_an_email_has_its_html_rewritten_and_its_text_left_alone() -> None:
    html = '<a href="https://x.in/?a=1&amp;b=2"><b>Our</b> offer</a>'
    texts = campaign(html=html, text="https://x.in", whatsapp_caption="https://x.in")
    content = prepare_links(texts, "https://crm.example")
    tags = "utm_source=bharat_crm&amp;utm_medium=email&amp;utm_campaign=diwali"
    assert content.html == html.replace("b=2", f"b=2&amp;{tags}")
    assert (content.text, content.caption) == ("https://x.in", "https://x.in")
    [link] = content.links
    assert link.original_url == "https://x.in/?a=1&b=2"
    assert link.tagged_url == f"https://x.in/?a=1&b=2&{tags.replace('&amp;', '&')}"
    assert (link.short_code, link.short_url) == (None, None)
    assert link.link_text == "Our offer"
    assert link.utm == UtmParameters("bharat_crm", "email", "diwali")


def test_whatsapp_has_its_text_and_caption_rewritten() -> None:
    texts = campaign(
        channel="whatsapp",
        html='<a href="https://x.in">',
        text="https://x.in/a.",
        whatsapp_caption="https://x.in/b",
    )
    content = prepare_links(texts, None)
    tags = "utm_source=bharat_crm&utm_medium=whatsapp&utm_campaign=diwali"
    assert content.html == texts.html
    assert content.text == f"https://x.in/a?{tags}."
    assert content.caption == f"https://x.in/b?{tags}"
    assert [link.original_url for link in content.links] == ["https://x.in/a", "https://x.in/b"]


def test_short_links_lead_through_the_app_and_name_the_recipient_row_only() -> None:
    texts = campaign(html='<a href="https://x.in">x</a><a href="https://x.in">y</a>', use_short_links=True)
    content = prepare_links(texts, "https://crm.example/")
    [link] = content.links
    code = short_code("c-1", "https://x.in")
    assert (link.short_code, link.short_url) == (code, f"https://crm.example/l/{code}")
    assert link.link_text == "x"
    assert content.html is not None
    assert content.html.count(f'href="https://crm.example/l/{code}?r={RECIPIENT_ID_SLOT}"') == 2
    assert "?r=r-1" in Template(content.html).fill_html({"recipient_id": "r-1"})


def test_a_link_that_carries_utm_parameters_is_shortened_and_not_tagged() -> None:
    texts = campaign(html='<a href="https://x.in?utm_source=a">x</a>', use_short_links=True)
    [link] = prepare_links(texts, "https://crm.example").links
    assert link.short_code
    assert link.tagged_url == link.original_url
    assert link.utm is None


def test_a_personal_link_is_tagged_but_never_shortened_and_still_personal() -> None:
    texts = campaign(html='<a href="https://x.in?e={{email}}">x</a>', use_short_links=True)
    content = prepare_links(texts, "https://crm.example")
    [link] = content.links
    assert (link.short_code, link.short_url) == (None, None)
    assert link.original_url == "https://x.in?e={{email}}"
    filled = Template(content.html or "").fill_html({"email": "a@b.in"})
    assert 'href="https://x.in?e=a%40b.in&amp;utm_source=bharat_crm&amp;' in filled


def test_without_an_app_url_short_links_fall_back_to_tagged_ones() -> None:
    texts = campaign(html='<a href="https://x.in">x</a>', use_short_links=True)
    assert prepare_links(texts, None) == prepare_links(replace(texts, use_short_links=False), None)
    assert "utm_source" in (prepare_links(texts, None).html or "")


@pytest.mark.parametrize("short", [False, True])
def test_a_campaign_that_wants_neither_is_left_as_it_is(short: bool) -> None:
    texts = campaign(html='<a href="https://x.in?a&b">x</a>', auto_tag_links=False, use_short_links=short)
    content = prepare_links(texts, None)
    assert content.html == texts.html
    assert content.links == []


@given(st.text(), st.text())
def test_short_codes_are_twelve_base62_characters_and_always_the_same(campaign_id: str, url: str) -> None:
    code = short_code(campaign_id, url)
    assert len(code) == 12
    assert set(code) <= set(string.ascii_letters + string.digits)
    assert code == short_code(campaign_id, url) != short_code(campaign_id, url + "x")


def test_rows_have_the_same_id_on_every_run_and_another_in_another_campaign() -> None:
    texts = campaign(html='<a href="https://x.in">x</a>')
    [first], [again] = prepare_links(texts, None).links, prepare_links(texts, None).links
    [other] = prepare_links(replace(texts, id="c-2"), None).links
    assert first == again
    assert first.id != other.id


def test_link_texts_are_short_and_hold_no_tags() -> None:
    texts = anchor_texts(
        f'<a href="https://a"><img alt="Shop &amp; save"></a><a href="https://b">{"x" * 300}</a><a href="https://c"></a>'
    )
    assert texts == {"https://a": "Shop & save", "https://b": "x" * 255}


def test_a_placeholder_with_spaces_is_one_piece_of_an_address_without_quotes() -> None:
    rewritten = rewrite_html("<a href=http://x/?n={{ name }} class=c>", shouted)
    assert Template(rewritten).fill_html({"name": "A B"}) == "<a href=[http://x/?n=A%20B] class=c>"


def test_what_no_server_takes_is_no_link() -> None:
    """An address of more than 8,000 characters stays as it is, in text and in HTML; brackets after one are none."""
    longest = "http://x/" + "a" * 7_991
    assert rewrite_text(longest, shouted) == f"[{longest}]"
    assert rewrite_text(f"{longest}a", shouted) == f"{longest}a"
    assert rewrite_html(f'<a href="{longest}a">', shouted) == f'<a href="{longest}a">'
    assert rewrite_text("http://x" + ")" * 95_000, shouted) == "[http://x]" + ")" * 95_000


def test_the_words_of_a_link_are_those_that_a_browser_shows() -> None:
    source = "<a href='https://a'><!--[if mso]>Outlook<![endif]--><i style='display:none'>never</i>Shop&shy;now</a>"
    assert anchor_texts(source) == {"https://a": "Shopnow"}


def test_an_address_with_an_encoded_placeholder_is_personal() -> None:
    """It is tagged, never shortened, and what a user chose for a utm_* value is never taken for a placeholder."""
    html = '<a href="https://x.in?e=%7B%7Bemail%7D%7D">x</a>'
    row = campaign(html=html, use_short_links=True, utm_source="%7B%7Bname%7D%7D {{phone}}")
    content = prepare_links(row, "https://crm.example")
    [link] = content.links
    assert (link.short_code, link.original_url) == (None, "https://x.in?e={{email}}")
    filled = Template(content.html or "").fill_html({"email": "a@b.in", "name": "Asha", "phone": "+91"})
    assert "e=a%40b.in&amp;utm_source=" in filled
    assert "Asha" not in filled
    assert "+91" not in filled
