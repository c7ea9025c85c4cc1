"""Where the recipients of a campaign unsubscribe: an address of which each of them fills in a part.

It is in the header fields of e-mails, and in texts it takes the place of ``{{unsubscribe_url}}``.
"""

import html as html_entities
import re
from dataclasses import dataclass

from worker.content.placeholder_spellings import unified
from worker.content.placeholders import RECIPIENT_ID_SLOT, UNSUBSCRIBE_TOKEN_SLOT
from worker.content.unsubscribe_token import TokenMaker

UNSUBSCRIBE_NAME = "unsubscribe_url"
UNSUBSCRIBE_PLACEHOLDER = re.compile(rf"\{{\{{\s*{UNSUBSCRIBE_NAME}\s*\}}\}}")

# editors put a scheme before what does not look like an address
_REPLACED = re.compile(rf"(?:[Hh][Tt][Tt][Pp][Ss]?://)?{UNSUBSCRIBE_PLACEHOLDER.pattern}")


@dataclass(frozen=True, slots=True)
class UnsubscribeLink:
    """``url``: https, http or mailto, with placeholders and slots; ``token``: for the worker's own page."""

    url: str
    # from an address as in Subscription to the value of its slot ``unsubscribe_token``; None: a page of the CRM's own
    token: TokenMaker | None = None

    @classmethod
    def of_crm(cls, url: str) -> "UnsubscribeLink":
        """To UNSUBSCRIBE_URL; ``{{recipient_id}}`` and ``{{email}}`` are filled in."""
        return cls(url.replace("{{recipient_id}}", RECIPIENT_ID_SLOT))

    @classmethod
    def of_worker(cls, public_url: str, token: TokenMaker) -> "UnsubscribeLink":
        """To the page at PUBLIC_URL (worker/web/unsubscribe_page.py)."""
        return cls(f"{public_url}/u/{UNSUBSCRIBE_TOKEN_SLOT}", token)

    def in_text(self, text: str) -> str:
        """``text`` with the address in place of ``{{unsubscribe_url}}``, however that is written."""
        return _REPLACED.sub(lambda _: self.url, unified(text, [UNSUBSCRIBE_NAME]))

    def in_html(self, html: str) -> str:
        """As ``in_text``."""
        escaped = html_entities.escape(self.url)
        return _REPLACED.sub(lambda _: escaped, unified(html, [UNSUBSCRIBE_NAME]))
