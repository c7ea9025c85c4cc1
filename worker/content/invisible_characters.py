"""Characters that show nothing: white space of all kinds, controls, and marks of width zero.

They come along when an address, a number or a text is copied from a web page, a spreadsheet or a chat. The function
worker.is_invisible in worker/sql/migrations has the same ranges; a test compares the two for every character.
"""

import re

RANGES = (
    (0x00, 0x20),  # C0 controls and the space
    (0x7F, 0xA0),  # delete, C1 controls, no-break space
    (0xAD, 0xAD),  # soft hyphen
    (0x34F, 0x34F),  # combining grapheme joiner
    (0x61C, 0x61C),  # Arabic letter mark
    (0x115F, 0x1160),  # Hangul fillers
    (0x1680, 0x1680),  # Ogham space mark
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian variation selectors and vowel separator
    (0x2000, 0x200F),  # spaces of all widths, zero width space, joiners, direction marks
    (0x2028, 0x202F),  # line and paragraph separators, direction embeddings, narrow no-break space
    (0x205F, 0x206F),  # mathematical space, word joiner, invisible operators, direction isolates
    (0x2800, 0x2800),  # Braille pattern blank
    (0x3000, 0x3000),  # ideographic space
    (0x3164, 0x3164),  # Hangul filler
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFA0, 0xFFA0),  # halfwidth Hangul filler
    (0xFFF9, 0xFFFB),  # interlinear annotations
    (0xE0001, 0xE007F),  # tags
    (0xE0100, 0xE01EF),  # variation selectors supplement
)

CHARACTERS = "".join(chr(code) for first, last in RANGES for code in range(first, last + 1))

# For the inside of a character class of ``re``.
CLASS = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in RANGES)

_ANY = re.compile(f"[{CLASS}]+")


def trimmed(text: str) -> str:
    """``text`` without invisible characters at its ends."""
    if text.isascii() and text.isprintable():  # most texts: to look for all characters takes longer
        return text.strip(" ")
    return text.strip(CHARACTERS)


def removed(text: str) -> str:
    """``text`` without any invisible characters."""
    return _ANY.sub("", text)
