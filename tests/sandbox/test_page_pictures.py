"""The pictures of the status page: small enough for a README, and compressed without a change of their pixels."""

import struct
import zlib
from pathlib import Path

import pytest

from sandbox.page_pictures import PNG_SIGNATURE, WIDTH, compressed

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
LARGEST_BYTES = 200_000


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_compressed_keeps_the_pixels_and_drops_the_rest() -> None:
    """Image data may be spread over chunks; texts and times of the picture are left out."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 2, 8, 2, 0, 0, 0))
    pixels = bytes(2 * (1 + 300))
    data = zlib.compress(pixels, 0)
    parts = chunk(b"IDAT", data[:50]) + chunk(b"IDAT", data[50:])
    png = PNG_SIGNATURE + header + chunk(b"tEXt", b"Software\0anything") + parts + chunk(b"IEND", b"")
    small = compressed(png)
    assert small == PNG_SIGNATURE + header + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    assert compressed(small) == small


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pictures_of_the_project(theme: str) -> None:
    """They are in docs/images, as wide as the page and not too large."""
    png = (IMAGES / f"status-{theme}.png").read_bytes()
    assert png.startswith(PNG_SIGNATURE)
    assert struct.unpack(">I", png[16:20]) == (WIDTH,)
    assert len(png) < LARGEST_BYTES
