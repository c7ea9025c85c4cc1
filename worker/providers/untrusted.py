"""What servers say, made fit for a log line, an error message and a database column.

A reply is text from somebody else: it may be long, hold control characters or escape sequences, and
repeat what it was sent, the password or the token included (Meta does so: "Malformed access token ...").
"""

from collections.abc import Iterable

from worker.content.one_line import one_line

LIMIT = 300


def printable(said: str | bytes, secrets: Iterable[str] = ()) -> str:
    """One line of at most 300 printable characters; each of ``secrets`` is replaced by ``***``.

    Secrets are replaced before the text is cut, so that no half of one stays at the end.
    """
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return one_line(text, LIMIT)
