"""Texts that are sent to servers and that come from them, octet by octet."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.providers.http import retry_after_seconds
from worker.providers.smtp_transaction import wire_content
from worker.providers.untrusted import list_at, number_at, safe_text, text_at

JOINERS = re.compile("[\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}]")  # parts of words, not printable to Python

NOW = 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT


def received(wire: bytes) -> bytes:
    """The content as a server reads it: up to the lone dot, one dot less on each stuffed line."""
    assert wire.endswith(b"\r\n.\r\n")
    lines = wire.removesuffix(b".\r\n").split(b"\r\n")
    assert b"." not in lines
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


@given(st.lists(st.sampled_from([b".", b"..", b"", b"x", b".x", b"x."])))
def test_dots_arrive_as_they_are(lines: list[bytes]) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    assert received(wire_content(content)) == content or not content


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n"])).map(b"".join))
def test_no_line_end_of_any_kind_ends_the_message_early(content: bytes) -> None:
    wire = wire_content(content)
    for before in (b"\r", b"\n"):
        for after in (b"\r", b"\n"):
            assert before + b"." + after not in wire.removesuffix(b"\r\n.\r\n") + b"\r\n"
    assert wire.endswith(b"\r\n.\r\n")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 5000, 86_400.0),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Sun, 09 Sep 2001 01:47:40 GMT", 60.0),
        ("Sun, 09 Sep 2001 01:47:40", 60.0),
        ("Sun, 09 Sep 2001 01:45:40 GMT", 0.0),
        ("Sun, 09 Sep 2031 01:45:40 GMT", 86_400.0),
        ("Sun, 99 Sep 2001 01:45:40 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text())
def test_retry_after_survives_anything(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or (math.isfinite(seconds) and 0 <= seconds <= 86_400)


@given(st.text() | st.binary())
@example("क\N{ZERO WIDTH JOINER}ष")
def test_safe_text_is_one_short_line(said: str | bytes) -> None:
    text = safe_text(said)
    assert JOINERS.sub("", text).isprintable()
    assert len(text) <= 300


def test_safe_text_cuts_no_secret_in_half() -> None:
    assert "hunter" not in safe_text("x" * 296 + "hunter2 " * 300, ["hunter2", ""])
    assert safe_text("a\r\n\x1b[0m\u202eb", ["x"]) == "a [0m b"


BODY = {"error": {"code": 190, "message": "no", "error_data": {"details": "why"}}, "messages": [{"id": "wamid"}, 7]}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("error", "message"), "no"),
        (("error", "error_data", "details"), "why"),
        (("messages", 0, "id"), "wamid"),
        (("messages", 1, "id"), ""),
        (("messages", 2, "id"), ""),
        (("messages", "id"), ""),
        (("error", "code"), ""),
        (("error", 0), ""),
        (("error", "message", "deeper"), ""),
        (("nothing", "there"), ""),
    ],
)
def test_text_at(path: tuple[str | int, ...], text: str) -> None:
    assert text_at(BODY, *path) == text


def test_values_of_other_types() -> None:
    assert number_at(BODY, "error", "code") == 190
    assert number_at(BODY, "error", "message") is None
    assert list_at(BODY, "messages") == BODY["messages"]
    assert list_at(BODY, "error") == []
    assert text_at("text") == "text"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
)


@given(json_values, st.lists(st.integers(0, 3) | st.text()))
def test_json_of_any_shape_is_read_without_an_error(value: object, path: list[str | int]) -> None:
    assert isinstance(text_at(value, *path), str)
    assert isinstance(number_at(value, *path), int | None)
    assert isinstance(list_at(value, *path), list)
