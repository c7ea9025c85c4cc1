"""The links of a campaign: UTM parameters, short links, and one row for each distinct address.

``prepare_links`` runs once for a campaign, before its templates are compiled. What it puts into the text is
the same for all recipients, except for the recipient's row id in a short link, left as ``RECIPIENT_ID_SLOT``, and for
what differs in an unsubscribe link.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.content import markup
from worker.content.campaign_texts import CampaignTexts
from worker.content.placeholder_spellings import unified
from worker.content.placeholders import PERSONAL_NAMES, RECIPIENT_ID_SLOT, Template, without_placeholders
from worker.content.plain_text import plain_text
from worker.content.unsubscribe_link import UNSUBSCRIBE_NAME, UNSUBSCRIBE_PLACEHOLDER, UnsubscribeLink
from worker.content.utm import UtmParameters, tag_url

LINK_TEXT_LIMIT = 255  # characters
LONGEST_URL = 8000  # characters: no server takes more, and what is longer stays as it is
CODE_LENGTH = 12

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HTTP = re.compile(r"https?://\S", re.IGNORECASE)
_BARE_URL = re.compile(r'(?<![A-Za-z0-9])https?://(?:\{\{\s*\w+\s*\}\}|[^\s<>"“”।॥])++', re.IGNORECASE)
_TRAILING = ".,;:!?)'\"’]*~…"  # punctuation, and the marks WhatsApp reads as formatting
_NOT_LINKS = frozenset({"link", "base"})
_NAMES = PERSONAL_NAMES | {UNSUBSCRIBE_NAME}


@dataclass(frozen=True, slots=True)
class Link:
    """A row of campaign_links. The short code and URL are None for a link that was not shortened;
    ``utm`` is None for one that was not tagged."""

    id: str
    original_url: str
    tagged_url: str
    short_code: str | None
    short_url: str | None
    utm: UtmParameters | None
    link_text: str | None


@dataclass(frozen=True, slots=True)
class PreparedContent:
    """A campaign's texts with their links rewritten, and the rows to write; a text without links is unchanged."""

    html: str | None
    text: str
    caption: str | None
    links: list[Link]


def prepare_links(
    texts: CampaignTexts, app_url: str | None, unsubscribe: UnsubscribeLink | None = None
) -> PreparedContent:
    """Rewrites the links of a campaign: of its HTML for e-mail, of its text and caption for WhatsApp.

    ``app_url`` is where the CRM's app server answers short links; without it links are tagged only. The address of
    ``unsubscribe`` takes the place of ``{{unsubscribe_url}}``; it is no link of the campaign, and none of its rows.
    """
    html, text, caption = texts.html, texts.text, texts.whatsapp_caption
    book = LinkBook(texts, app_url, anchor_texts(html or ""))
    if book.changes_links and texts.channel == "email":
        html = html and rewrite_html(html, book.rewrite)
    elif book.changes_links:
        text = rewrite_text(text, book.rewrite)
        caption = caption and rewrite_text(caption, book.rewrite)
    if unsubscribe:
        html, text = html and unsubscribe.in_html(html), unsubscribe.in_text(text)
        caption = caption and unsubscribe.in_text(caption)
    return PreparedContent(html, text, caption, book.links)


class LinkBook:
    """Collects the distinct links of a campaign; ``rewrite`` returns what to put in place of each."""

    def __init__(self, texts: CampaignTexts, app_url: str | None, link_texts: Mapping[str, str]) -> None:
        self._campaign_id = texts.id
        self._utm = UtmParameters.of_campaign(texts) if texts.auto_tag_links else None
        self._app_url = app_url.rstrip("/") if app_url and texts.use_short_links else None
        self._link_texts = link_texts
        self._links: dict[str, Link] = {}

    @property
    def changes_links(self) -> bool:
        """False when the campaign wants its links neither tagged nor shortened."""
        return self._utm is not None or self._app_url is not None

    @property
    def links(self) -> list[Link]:
        """One for each distinct original URL, in the order of the text."""
        return list(self._links.values())

    def rewrite(self, url: str) -> str:
        """What stands in the message in place of ``url``."""
        link = self._links.get(url)
        if link is None:
            link = self._links[url] = self._entry(url)
        return f"{link.short_url}?r={RECIPIENT_ID_SLOT}" if link.short_url else link.tagged_url

    def _entry(self, url: str) -> Link:
        tagged = tag_url(url, self._utm) if self._utm else url
        # A URL with a placeholder differs for each recipient, and a short link leads to one place for all.
        code = short_code(self._campaign_id, url) if self._app_url and not Template(url).personal else None
        return Link(
            id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"campaign-link {self._campaign_id} {url}")),
            original_url=url,
            tagged_url=tagged,
            short_code=code,
            short_url=f"{self._app_url}/l/{code}" if code else None,
            utm=self._utm if tagged != url else None,
            link_text=self._link_texts.get(url),
        )


def short_code(campaign_id: str, url: str) -> str:
    """12 base62 characters, always the same for a URL of a campaign (71 bits of SHA-256)."""
    number = int.from_bytes(hashlib.sha256(f"{campaign_id} {url}".encode()).digest(), "big")
    return "".join(_BASE62[number // 62**place % 62] for place in range(CODE_LENGTH))


def rewrite_html(html: str, rewrite: Callable[[str], str]) -> str:
    """``html`` with ``rewrite(url)`` in place of each http(s) ``href``; all other bytes are unchanged.

    ``rewrite`` takes and returns the plain URL: this function decodes and encodes ``&amp;``.
    """
    html = unified(html, _NAMES)
    pieces, position = [], 0
    for tag in markup.tags(without_placeholders(html)):
        href = tag.attribute("href")
        if href is None or tag.name in _NOT_LINKS:
            continue
        value = html[href.start : href.end]
        bare = value.strip(" \t\n\f\r")
        url = markup.unescape(bare)
        if not _is_link(url) or (changed := rewrite(url)) == url:
            continue
        before, after = value.split(bare, 1)
        pieces += [html[position : href.start], before, markup.escape(changed, href.quote), after]
        position = href.end
    return "".join([*pieces, html[position:]])


def anchor_texts(html: str) -> dict[str, str]:
    """For the URL of each ``<a>``, the text of its first link: no tags, at most 255 characters."""
    html = unified(html, _NAMES)
    texts: dict[str, str] = {}
    url, start = "", 0
    for tag in markup.tags(without_placeholders(html)):
        if tag.name != "a":
            continue
        words = " ".join(plain_text(html[start : tag.start]).split()) if url else ""
        if words:
            texts.setdefault(url, words[:LINK_TEXT_LIMIT])
        href = None if tag.closing else tag.attribute("href")
        url, start = (markup.unescape(html[href.start : href.end]).strip() if href else ""), tag.end
    return texts


def rewrite_text(text: str, rewrite: Callable[[str], str]) -> str:
    """``text`` with ``rewrite(url)`` in place of each bare http(s) URL; punctuation after it is unchanged."""

    def replaced(found: re.Match[str]) -> str:
        url = _without_trailing_punctuation(found[0])
        return (rewrite(url) if _is_link(url) else url) + found[0][len(url) :]

    return _BARE_URL.sub(replaced, unified(text, _NAMES))


def _is_link(url: str) -> bool:
    return len(url) <= LONGEST_URL and _HTTP.match(url) is not None and not UNSUBSCRIBE_PLACEHOLDER.search(url)


def _without_trailing_punctuation(url: str) -> str:
    """A bracket at the end belongs to the URL when it was opened there."""
    end = len(url)
    unopened = url.count(")") - url.count("(")
    while url[end - 1] in _TRAILING and not (url[end - 1] == ")" and unopened <= 0):
        end -= 1
        unopened -= url[end] == ")"
    return url[:end]
