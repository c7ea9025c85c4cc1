"""Text from outside (users, servers) on one line: for logs, error messages, pages and mails."""

# Python counts them as not printable, but they are part of words in Indian scripts.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def printable(text: str, instead: str = " ") -> str:
    """``text`` with ``instead`` for each control character, line end and mark that changes the text direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _JOINERS else instead for char in text)


def one_line(text: object, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, cut with an ellipsis; white space becomes one space."""
    # Only twice the limit is looked at: longer text is cut anyway.
    line = " ".join(printable(str(text)[: 2 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
