"""What everybody can reach, at PUBLIC_PORT: the unsubscribe page and nothing else.

It is an application and a server of its own: nothing of the status page is in it, and its clients do not keep those
of the status page waiting.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import falcon

from worker.content.unsubscribe_token import UnsubscribeTokens
from worker.runtime import program
from worker.runtime.settings import Settings
from worker.web.answer_headers import HEADERS
from worker.web.callers import Network, RateLimit, caller_of
from worker.web.error_handler import unexpected
from worker.web.public_pages import RETRY_SECONDS, PublicPages
from worker.web.unsubscribe_page import UnsubscribePage
from worker.web.unsubscriptions import Unsubscriptions

log = logging.getLogger(__name__)

BODY_BYTES = 8192  # of a form
_LIMIT_LOG_SECONDS = 60.0  # from one line about callers that ask too often to the next


def create() -> falcon.App[Any, Any]:
    """Makes the application for worker/web/gunicorn_worker.py. Raises SettingsError."""
    settings = program.settings_from_environment("web")
    return application(settings, Unsubscriptions(settings.database_url))


def application(settings: Settings, unsubscriptions: Unsubscriptions) -> falcon.App[Any, Any]:
    """``settings`` have keys of links."""
    pages = PublicPages()
    app = falcon.App(middleware=[PublicGuard(settings.public_proxies, pages)])
    app.req_options.strip_url_path_trailing_slash = True  # editors put one after what looks like a host
    app.add_error_handler(Exception, unexpected)
    app.set_error_serializer(pages.write_error)
    app.add_route("/u/{token}", UnsubscribePage(UnsubscribeTokens(settings.link_keys), unsubscriptions, pages))
    return app


class PublicGuard:
    """Refuses callers that ask too often, and adds headers to every answer."""

    def __init__(
        self, proxies: list[Network], pages: PublicPages, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock`` counts seconds."""
        self._proxies = proxies
        self._pages = pages
        self._clock = clock
        self._limit = RateLimit(clock)
        self._logged = threading.Lock()
        self._logged_at = -_LIMIT_LOG_SECONDS

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Raises HTTPTooManyRequests."""
        caller = caller_of(request.remote_addr, request.get_header("X-Forwarded-For") or "", self._proxies)
        if not self._limit.allows(caller):
            self._log()
            raise falcon.HTTPTooManyRequests(retry_after=RETRY_SECONDS)

    def process_response(
        self, request: falcon.Request, response: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        for name, value in HEADERS.items():
            if response.get_header(name) is None:  # the pages have their own policy
                response.set_header(name, value)

    def _log(self) -> None:
        with self._logged:
            if self._clock() - self._logged_at < _LIMIT_LOG_SECONDS:
                return
            self._logged_at = self._clock()
        log.warning("a caller of the public address asks too often, it gets 429")
