"""Text of strangers on one line: for logs, error messages, pages and mails."""

# Not printable to Python, but part of words in Indian scripts.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def printable(text: str, instead: str = " ") -> str:
    """``text`` with ``instead`` for each control character, line end, and mark that changes the writing direction."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _JOINERS else instead for char in text)


def one_line(text: object, limit: int) -> str:
    """``text`` on one line, cut with an ellipsis after ``limit`` characters; runs of white space are one space."""
    # twice the limit is enough to look at
    line = " ".join(printable(str(text)[: 2 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
