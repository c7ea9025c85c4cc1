"""The errors of the development Qdrant, with the HTTP statuses of the real one.

Refusal                  400  the request is wrong
├── Unauthorized         401  no API key, or a wrong one
├── NotFound             404  no such collection, point or snapshot
├── Conflict             409  the collection exists already
├── TooLarge             413  the body is longer than service.max_request_size_mb
└── EngineFailed         500  the engine failed
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Refusal(Exception):
    """The text becomes the answer's status.error; it names what is wrong in the request."""

    status = 400


class Unauthorized(Refusal):
    status = 401


class NotFound(Refusal):
    status = 404


class Conflict(Refusal):
    status = 409


class TooLarge(Refusal):
    status = 413


class EngineFailed(Refusal):
    status = 500


def no_collection(name: str) -> NotFound:
    return NotFound(f"Not found: Collection `{name}` doesn't exist!")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turns the engine's errors into a Refusal with the first line of their text."""
    try:
        yield
    except Refusal:
        raise
    except BaseException as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "PanicException":  # of the engine's Rust code: no Exception, not exported
            raise EngineFailed(f"Service internal error: {text}") from error
        if not isinstance(error, Exception):
            raise
        if text.startswith("No point with id"):
            raise NotFound(f"Not found: {text} found") from error
        if text.startswith("Service runtime error"):
            raise EngineFailed(text) from error
        raise Refusal(f"Wrong input: {text}") from error
