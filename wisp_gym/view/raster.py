"""A small picture: rectangles, hatching and text on an array of pixels, and a PNG file of it, with numpy alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np

Colour = tuple[int, int, int]

GLYPH_COLUMNS, GLYPH_ROWS = 5, 8
ADVANCE = GLYPH_COLUMNS + 1  # pixels from one character to the next

# The dot-matrix letters of character displays, five columns each: two hexadecimal digits a column, lowest bit on top;
# the eighth row is for descenders.
GLYPHS = """
(=001C224100 )=0041221C00 ,=0050300000 -=0808080808 .=0060600000 /=2010080402 :=0036360000 +=08083E0808
0=3E5149453E 1=00427F4000 2=4261514946 3=2141454B31 4=1814127F10 5=2745454539 6=3C4A494930 7=0171090503
8=3649494936 9=064949291E a=2054545478 b=7F48444438 c=3844444420 d=384444487F e=3854545418 f=087E090102
g=18A4A4A47C h=7F08040478 i=00447D4000 j=4080847D00 k=7F10284400 l=00417F4000 m=7C04180478 n=7C08040478
o=3844444438 p=FC24242418 q=18242424FC r=7C08040408 s=4854545420 t=043F444020 u=3C4040207C v=1C2040201C
w=3C4030403C x=4428102844 y=1CA0A0A07C z=4464544C44
"""
FONT = dict(item.split("=", 1) for item in GLYPHS.split())


def glyph(character: str) -> np.ndarray:
    """(8, 5) bool pixels of a character; unknown ones are blank."""
    columns = np.frombuffer(bytes.fromhex(FONT.get(character.lower(), "00" * GLYPH_COLUMNS)), np.uint8)
    return np.unpackbits(columns[:, None], axis=1, bitorder="little").T.astype(bool)


def blank(width: int, height: int, colour: Colour) -> np.ndarray:
    """(height, width, 3) uint8 picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def text_width(words: str, scale: int = 1) -> int:
    """Pixels that `words` cover from left to right."""
    return max(0, len(words) * ADVANCE - 1) * scale


def text(picture: np.ndarray, x: int, y: int, words: str, colour: Colour, scale: int = 1) -> None:
    """Write `words` with the upper left corner at (x, y); what lies outside the picture is cut off."""
    for index, character in enumerate(words):
        dots = np.kron(glyph(character), np.ones((scale, scale), bool))
        left = x + index * ADVANCE * scale
        place = picture[max(y, 0) : y + dots.shape[0], max(left, 0) : left + dots.shape[1]]
        place[dots[: place.shape[0], : place.shape[1]]] = colour


def box(picture: np.ndarray, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
    """Fill the pixels x0 ≤ x < x1, y0 ≤ y < y1 (cut to the picture)."""
    picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = colour


def hatched_box(
    picture: np.ndarray, x0: int, y0: int, x1: int, y1: int, colour: Colour, paper: Colour, step: int
) -> None:
    """Fill with diagonal stripes of `colour` on `paper`, `step` pixels apart, continuous across neighbouring boxes."""
    x0, y0 = max(x0, 0), max(y0, 0)
    box(picture, x0, y0, x1, y1, paper)
    place = picture[y0 : max(y1, 0), x0 : max(x1, 0)]
    y, x = np.mgrid[y0 : y0 + place.shape[0], x0 : x0 + place.shape[1]]
    place[(x + y) % step < (step + 1) // 2] = colour


def png(picture: np.ndarray) -> bytes:
    """A PNG file of an (H, W, 3) uint8 picture (8 bits, RGB, no filter; W3C PNG specification, second edition)."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = picture.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file: length, name, data, checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
