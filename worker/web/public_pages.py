"""The HTML of the public address: a title, a sentence, and at most one button. No script, nothing from elsewhere."""

from http import HTTPStatus

import falcon
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from worker.web.html_assets import asset, csp_hash
from worker.web.unsubscribe_words import WORDS, PageWords, Words, language_of

RETRY_SECONDS = 60  # what Retry-After says


class PublicPages:
    """Writes a page into a response, in the language that its reader prefers."""

    def __init__(self) -> None:
        loader = PackageLoader("worker.web")
        made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        self._template = made.get_template("unsubscribe.html")
        self._style = asset("unsubscribe.css")
        self._headers = {
            "Content-Security-Policy": f"default-src 'none'; style-src '{csp_hash(self._style)}'; "
            "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "X-Robots-Tag": "noindex",
            "Vary": "Accept-Language",
        }

    def words(self, request: falcon.Request) -> Words:
        return WORDS[language_of(request.get_header("Accept-Language") or "")]

    def write(
        self,
        request: falcon.Request,
        response: falcon.Response,
        page: PageWords,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        **values: str,
    ) -> None:
        """``values``: what the placeholders of the page stand for."""
        response.status = status
        response.content_type = "text/html; charset=utf-8"
        response.set_headers(self._headers)
        response.text = self._template.render(
            language=language_of(request.get_header("Accept-Language") or ""),
            title=page.title,
            text=page.text.format(**values),
            button=page.button,
            action=page.action,
            style=Markup(self._style),  # noqa: S704 - our own file, whose hash is in the policy
        )

    def write_error(self, request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
        """The page for an error; Falcon has set the status and its headers."""
        words, status = self.words(request), HTTPStatus(error.status_code)
        if status is HTTPStatus.NOT_FOUND:
            page = words.not_found
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR or status is HTTPStatus.TOO_MANY_REQUESTS:
            page = words.try_again
        else:
            page = words.bad_request
        self.write(request, response, page, status=status)
