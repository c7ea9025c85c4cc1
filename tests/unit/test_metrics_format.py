"""The format of /metrics by the Accept header: what can be read is followed, and nothing costs the metrics."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder

from worker.web.metrics_format import JSON, OPENMETRICS, TEXT, choose_format, prometheus_accept

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        (PROMETHEUS_3, OPENMETRICS),
        (PROMETHEUS_2, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ('APPLICATION/OpenMetrics-Text ; Version = "1.0.0" ; Q=1.000', OPENMETRICS),
        ('application/openmetrics-text; version="1.0\\.0"', OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0-rc.1", TEXT),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        ("application/openmetrics-text; version=99999999999999999999.0.0", TEXT),
        ("application/openmetrics-text; version=", OPENMETRICS),
        ("application/openmetrics-text; version=latest", TEXT),
        ('application/openmetrics-text; version="1.0.0', TEXT),
        ("application/openmetrics-text; version=２.0.0", TEXT),
        ("text/plain", TEXT),
        ('text/plain; version="1.0.0"', TEXT),
        ("text/plain; version=0.0.4, application/openmetrics-text", TEXT),
        ("text/plain;q=0.5, application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=0.0, application/json;q=0.001", JSON),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/html, application/json;q=0.9, */*;q=0.1", JSON),
        ("text/plain;q=0.1, application/json;q=0.2", JSON),
        ("text/plain, application/json", TEXT),
        ('text/plain;x="a,application/json;b", application/json;q=0.5', TEXT),
        ("application/json;q=0", TEXT),
        ("application/json;q=high", TEXT),
        ("application/json;q=nan, text/plain;q=0.1", TEXT),
        ("application/json;q=1.5", TEXT),
        ("application/json;q=-1", TEXT),
        ("application/json;q=", TEXT),
        ("application/jsonp", TEXT),
        ("application/json text/plain", TEXT),
        ("\x00\xff\xfe", TEXT),
        (";;;,,,===", TEXT),
        ('"', TEXT),
        ("q=1", TEXT),
    ],
)
def test_the_format(accept: str, chosen: str) -> None:
    assert choose_format(accept).name == chosen


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain; version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        ('text/plain; version="1.0.0"', "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        (
            PROMETHEUS_3,
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
        (
            "application/openmetrics-text;escaping=none;version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
    ],
)
def test_prometheus_client_reads_it(accept: str, content_type: str) -> None:
    """The version and the escaping that were asked for are those of the answer."""
    assert choose_encoder(prometheus_accept(choose_format(accept)))[1] == content_type


@given(st.text(alphabet=st.characters(max_codepoint=255)) | st.text(alphabet=' ,;="\\q.01aj/*'))
def test_any_header(accept: str) -> None:
    """There is a format for it, and prometheus_client has an encoder."""
    chosen = choose_format(accept)
    assert chosen.name in (JSON, OPENMETRICS, TEXT)
    assert choose_encoder(prometheus_accept(chosen))


@pytest.mark.parametrize("piece", ['"', '"\\', ";", ",", "a/b,", '"a', " ", '="', "a;b=c,", "\\"])
def test_a_long_header_takes_linear_time(piece: str) -> None:
    """Ten times the length takes about ten times as long, not a hundred times."""

    def seconds(length: int) -> float:
        began = time.process_time()
        choose_format((piece * length)[:length])
        return time.process_time() - began

    short = max(min(seconds(20_000) for _ in range(3)), 0.002)
    assert min(seconds(200_000) for _ in range(3)) < 40 * short
