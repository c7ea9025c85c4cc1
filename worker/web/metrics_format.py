"""Which of its formats /metrics answers in, from a request's Accept header (RFC 9110, section 12.5.1).

    application/json               the summary
    application/openmetrics-text   OpenMetrics, where its version is one that is known here, or is not named
    anything else, or nothing      Prometheus's text format: a header that cannot be read never costs the metrics

The highest q decides, then the order. A media range that cannot be read counts as not named.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

JSON = "application/json"
OPENMETRICS = "application/openmetrics-text"
TEXT = "text/plain"
OPENMETRICS_VERSIONS = ("", "1.0.0")
TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
ESCAPINGS = ("allow-utf-8", "underscores", "dots", "values")

# pieces that end nowhere but at a comma or a semicolon outside of quotes; an open quote lasts to the end
_PIECE = re.compile(r'[,;]|(?:"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^",;])+', re.DOTALL)
_QUALITY = re.compile(r"(?:0(?:\.\d{0,6})?|1(?:\.0{0,6})?)", re.ASCII)


@dataclass(frozen=True)
class MediaRange:
    """One element of an Accept header. Names are in lower case, values without their quotes."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def quality(self) -> float:
        """Its q, from 0 (never) to 1; 0 when it cannot be read."""
        text = self.parameters.get("q", "1")
        return float(text) if _QUALITY.fullmatch(text) else 0.0

    @property
    def version(self) -> str:
        return self.parameters.get("version", "")


def choose_format(accept: str) -> MediaRange:
    """The media range that decides: JSON, OPENMETRICS or TEXT is its name."""
    offered = [each for each in _media_ranges(accept) if _is_offered(each)]
    return max(offered, key=lambda each: each.quality, default=MediaRange(TEXT))


def prometheus_accept(chosen: MediaRange) -> str:
    """The media range as an Accept header of the one form that prometheus_client reads."""
    if chosen.name == TEXT and not chosen.version:
        return ""
    version = "1.0.0" if chosen.name == OPENMETRICS else chosen.version
    escaping = chosen.parameters.get("escaping", "")
    return f"{chosen.name};version={version}" + (f";escaping={escaping}" if escaping in ESCAPINGS else "")


def _is_offered(media_range: MediaRange) -> bool:
    if not media_range.quality:
        return False
    if media_range.name == OPENMETRICS:
        return media_range.version in OPENMETRICS_VERSIONS
    if media_range.name == TEXT:
        return media_range.version in TEXT_VERSIONS
    return media_range.name == JSON


def _media_ranges(accept: str) -> Iterator[MediaRange]:
    name, parameters, is_parameter = "", dict[str, str](), False
    for piece in [*_PIECE.findall(accept), ","]:
        if piece == ",":
            if name:
                yield MediaRange(name, parameters)
            name, parameters, is_parameter = "", {}, False
        elif piece == ";":
            is_parameter = True
        elif is_parameter:
            key, _, value = piece.partition("=")
            parameters[key.strip().lower()] = _unquoted(value.strip())
        else:
            name = piece.strip().lower()


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    return value
