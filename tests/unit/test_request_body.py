"""The body of a request, however it is cut into chunks, and however those arrive."""

from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.web.request_body import body_of
from worker.web.wsgi_answers import BadRequest

LIMIT = 300


def request(**headers: str) -> Any:
    """A request with these headers, in the form that gunicorn's parser gives them."""
    return SimpleNamespace(headers=[(name.replace("_", "-"), value) for name, value in headers.items()])


def taken(asked: Any, pieces: list[bytes]) -> tuple[bytes | None, bytes]:
    """What the body is when the pieces arrive one after the other, and what is left of them."""
    arriving, received, body = body_of(asked, LIMIT), bytearray(), None
    for piece in pieces:
        received += piece
        if body is None:
            body = arriving.take(received)
    return body, bytes(received)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


PLACES = st.lists(st.integers(0, 2000), max_size=12)


@given(body=st.binary(max_size=LIMIT), chunks=PLACES, arrivals=PLACES, after=st.binary(max_size=9))
def test_chunks(body: bytes, chunks: list[int], arrivals: list[int], after: bytes) -> None:
    """The data comes out as it was, and what follows the body stays."""
    parts = [b"%X;a=b\r\n%b\r\n" % (len(part), part) for part in cut(body, chunks) if part]
    sent = b"".join([*parts, b"0\r\nX-Trailer: y\r\n\r\n", after])
    assert taken(request(TRANSFER_ENCODING="chunked"), cut(sent, arrivals)) == (body, after)


@given(body=st.binary(max_size=LIMIT), arrivals=PLACES, after=st.binary(max_size=9))
def test_a_length(body: bytes, arrivals: list[int], after: bytes) -> None:
    found = taken(request(CONTENT_LENGTH=f"0{len(body)}"), cut(body + after, arrivals))
    assert found == (body, after)


@given(sent=st.binary(max_size=LIMIT * 2), arrivals=PLACES)
def test_anything_else_is_refused_or_unfinished(sent: bytes, arrivals: list[int]) -> None:
    """There is no other error, and never more data than the limit."""
    body = None
    with suppress(BadRequest):
        body, _ = taken(request(TRANSFER_ENCODING="chunked"), cut(sent, arrivals))
    assert body is None or len(body) <= LIMIT


def test_without_a_body() -> None:
    assert taken(request(), [b""]) == (b"", b"")


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (request(CONTENT_LENGTH=str(LIMIT + 1)), b""),
        (request(CONTENT_LENGTH="9" * 400), b""),
        (request(TRANSFER_ENCODING="chunked"), b"FFFFFFFF\r\n"),
        (request(TRANSFER_ENCODING="chunked"), b"12C\r\n" + b"x" * LIMIT + b"\r\n1\r\nx\r\n0\r\n\r\n"),
        (request(TRANSFER_ENCODING="chunked"), b"1;" + b"x" * 5000),
        (request(TRANSFER_ENCODING="chunked"), b"0\r\n" + b"X: y\r\n" * 1000),
    ],
    ids=["length", "digits", "chunk", "chunks", "line", "trailers"],
)
def test_too_large(asked: Any, sent: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        taken(asked, [sent])
    assert caught.value.status == 413
