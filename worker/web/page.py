"""The status page: one HTML document that the server makes, which asks for itself again every five seconds.

Everything it shows comes from worker/web/overview.py. Templates escape all that they are given; nothing on the page
may load, run or style anything but the two blocks that came with it, which its Content-Security-Policy names by hash.
"""

import base64
import hashlib
import time
from collections.abc import Mapping
from datetime import tzinfo
from importlib import resources

import falcon
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from worker.web import words
from worker.web.backlog import figures
from worker.web.dependencies import Dependencies
from worker.web.hour import charts_of
from worker.web.jobs import STATES
from worker.web.overview import Overview, overview


class Page:
    """The page at /; with METRICS_TOKEN it wants the token."""

    guarded = True

    def __init__(self, dependencies: Dependencies, started: float, zones: Mapping[str, tzinfo]) -> None:
        """``started``: when the process did, by time.monotonic; ``zones``: see overview."""
        self._dependencies = dependencies
        self._started = started
        self._zones = zones
        self._template = environment().get_template("page.html")
        self._style, self._script = _asset("page.css"), _asset("page.js")
        self._policy = "; ".join(
            (
                "default-src 'none'",
                f"style-src '{_hash(self._style)}'",
                f"script-src '{_hash(self._script)}'",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        now = time.time()
        shown = overview(self._dependencies.snapshot(), now, self._zones, time.monotonic() - self._started)
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", self._policy)
        response.text = self.html(shown)

    def html(self, shown: Overview) -> str:
        """The whole document."""
        return self._template.render(
            shown=shown,
            headline=words.HEADLINES[shown.state],
            charts=charts_of(shown),
            style=Markup(self._style),  # noqa: S704 - our own file, and the policy's hash is of these very bytes
            script=Markup(self._script),  # noqa: S704
        )


def environment() -> Environment:
    """Jinja's, with autoescape, and the words of worker/web/words.py as functions."""
    made = Environment(
        loader=PackageLoader("worker.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("span", "ago", "moment", "clock", "count", "capped", "rate")
    made.globals |= {name: getattr(words, name) for name in names}
    made.globals |= {"marks": words.MARKS, "states": STATES, "iso": _iso, "figures": figures}
    return made


def _asset(name: str) -> str:
    return resources.files("worker.web").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline block (https://www.w3.org/TR/CSP3/#grammardef-hash-source)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _iso(at: float) -> str:
    """For <time datetime>: what words.moment says, as machines write it."""
    return words.moment(at).replace(" UTC", "Z").replace(" ", "T")
