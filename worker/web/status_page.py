"""The status page: one HTML document, made by the server, which reloads its content every five seconds.

Everything it shows comes from worker/web/overview.py. The templates escape all values. The Content-Security-Policy
allows only the page's own style sheet and script, by their hashes: nothing else can be loaded, run or styled.
"""

import time
from collections.abc import Callable, Mapping
from datetime import tzinfo

import falcon
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from worker.web import formatting
from worker.web.backlog import figures
from worker.web.dependencies import SystemSnapshot
from worker.web.html_assets import asset, csp_hash
from worker.web.job_views import STATES
from worker.web.last_hour_charts import last_hour_charts
from worker.web.overview import Overview, overview


class StatusPage:
    """The page at /; it asks for METRICS_TOKEN where that is set."""

    guarded = True

    def __init__(self, snapshot: Callable[[], SystemSnapshot], started: float, zones: Mapping[str, tzinfo]) -> None:
        """``started``: time.monotonic at the start of the process; ``zones``: as from overview.job_zones."""
        self._snapshot = snapshot
        self._started = started
        self._zones = zones
        self._template = environment().get_template("page.html")
        self._style, self._script = asset("page.css"), asset("page.js")
        self._policy = "; ".join(
            (
                "default-src 'none'",
                f"style-src '{csp_hash(self._style)}'",
                f"script-src '{csp_hash(self._script)}'",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        now = time.time()
        shown = overview(self._snapshot(), now, self._zones, time.monotonic() - self._started)
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", self._policy)
        response.text = self.html(shown)

    on_head = on_get

    def html(self, shown: Overview) -> str:
        """The whole document."""
        return self._template.render(
            shown=shown,
            headline=formatting.HEADLINES[shown.state],
            charts=last_hour_charts(shown),
            style=Markup(self._style),  # noqa: S704 - our own file, whose hash is in the policy
            script=Markup(self._script),  # noqa: S704
        )


def environment() -> Environment:
    """Jinja's environment with autoescape, and the functions of worker/web/formatting.py."""
    made = Environment(
        loader=PackageLoader("worker.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("span", "ago", "moment", "clock", "count", "capped", "rate")
    made.globals |= {name: getattr(formatting, name) for name in names}
    made.globals |= {"marks": formatting.MARKS, "states": STATES, "iso": _iso, "figures": figures}
    return made


def _iso(at: float) -> str:
    """A time for <time datetime>: ``2026-01-31T09:30:00Z``."""
    return formatting.moment(at).replace(" UTC", "Z").replace(" ", "T")
