"""The page behind an unsubscribe link.

GET shows a button and changes nothing: mail scanners open every link. POST unsubscribes, whether a mail program sends
it (RFC 8058) or the button, and takes it back for the second button. All of them can be repeated.
"""

import logging
from email.parser import BytesParser
from urllib.parse import parse_qsl

import falcon

from worker.content.one_line import one_line
from worker.content.unsubscribe_token import Subscription, UnsubscribeTokens
from worker.web.public_pages import RETRY_SECONDS, PublicPages
from worker.web.unsubscribe_words import UNDO, UNSUBSCRIBE, PageWords, Words
from worker.web.unsubscriptions import ListUnavailable, Unsubscriptions

log = logging.getLogger(__name__)

_LONGEST_NAME = 100  # characters shown of a tenant's name
_MOST_FIELDS = 20


class UnsubscribePage:
    """At /u/{token}."""

    def __init__(self, tokens: UnsubscribeTokens, unsubscriptions: Unsubscriptions, pages: PublicPages) -> None:
        self._tokens = tokens
        self._unsubscriptions = unsubscriptions
        self._pages = pages

    def on_get(self, request: falcon.Request, response: falcon.Response, token: str) -> None:
        """Raises HTTPNotFound, and HTTPServiceUnavailable while the button would not work."""
        subscription = self._subscription(token)
        self._write(request, response, subscription, self._pages.words(request).ask)

    on_head = on_get

    def on_options(self, request: falcon.Request, response: falcon.Response, token: str) -> None:
        """Raises HTTPNotFound."""
        self._subscription(token)
        response.set_header("Allow", "GET, HEAD, OPTIONS, POST")

    def on_post(self, request: falcon.Request, response: falcon.Response, token: str) -> None:
        """Raises HTTPNotFound, HTTPBadRequest for another form, and HTTPServiceUnavailable."""
        subscription = self._subscription(token)
        form = _form(request.content_type or "", request.bounded_stream.read())
        if form.get("list-unsubscribe", "").lower() == "one-click":
            self._unsubscribe(subscription)
            response.content_type = "text/plain; charset=utf-8"
            response.text = "Unsubscribed.\n"
        elif form.get("action") == UNSUBSCRIBE:
            self._unsubscribe(subscription)
            self._write(request, response, subscription, self._pages.words(request).done)
        elif form.get("action") == UNDO:
            self._resubscribe(subscription)
            self._write(request, response, subscription, self._pages.words(request).undone)
        else:
            raise falcon.HTTPBadRequest

    def _subscription(self, token: str) -> Subscription:
        try:
            return self._tokens.read(token)
        except ValueError:
            raise falcon.HTTPNotFound from None

    def _unsubscribe(self, subscription: Subscription) -> None:
        try:
            if self._unsubscriptions.unsubscribe(subscription):
                log.info("somebody unsubscribed", _described(subscription))
        except ListUnavailable:
            raise _unavailable() from None

    def _resubscribe(self, subscription: Subscription) -> None:
        try:
            if self._unsubscriptions.resubscribe(subscription):
                log.info("somebody took an unsubscription back", _described(subscription))
        except ListUnavailable:
            raise _unavailable() from None

    def _write(
        self, request: falcon.Request, response: falcon.Response, subscription: Subscription, page: PageWords
    ) -> None:
        words = self._pages.words(request)
        sender = self._sender(subscription, words)
        self._pages.write(request, response, page, sender=sender, messages=words.messages[subscription.channel])

    def _sender(self, subscription: Subscription, words: Words) -> str:
        try:
            name = self._unsubscriptions.sender(subscription.tenant_id)
        except ListUnavailable:
            raise _unavailable() from None
        return one_line(name or "", _LONGEST_NAME) or words.sender


def _described(subscription: Subscription) -> dict[str, str]:
    """For the log: not the address."""
    return {
        "tenant": subscription.tenant_id,
        "channel": subscription.channel,
        "campaign": subscription.campaign_id,
    }


def _unavailable() -> falcon.HTTPServiceUnavailable:
    return falcon.HTTPServiceUnavailable(retry_after=RETRY_SECONDS)


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """The fields of a form by their names in lower case, as a browser or a mail program sends it.

    What is not a form has none.
    """
    if content_type.lower().lstrip().startswith("multipart/form-data"):
        return _multipart(content_type, body)
    try:
        pairs = parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MOST_FIELDS)
    except ValueError:
        return {}
    return {name.lower(): value.strip() for name, value in pairs}


def _multipart(content_type: str, body: bytes) -> dict[str, str]:
    message = BytesParser().parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    form: dict[str, str] = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(payload, bytes):
            form[name.lower()] = payload.decode("utf-8", "replace").strip()
    return form
