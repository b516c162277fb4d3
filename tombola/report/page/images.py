"""Pictures of masks as small images that a page can hold."""

from __future__ import annotations

import base64
import struct
import zlib

from tombola.pictures import Grid, Picture
from tombola.report.drawing import SEQUENCE

_NOTHING = (22, 24, 29)
_SHADES = 254
"""Of what is kept; the first of a palette's colours is for nothing, the last one for gaps."""
_GAP = _SHADES + 1


def highest(picture: Picture) -> float:
    """The largest number of a picture, which is its brightest."""
    return max((value for grid in picture.grids for row in grid for value in row if value is not None), default=0.0)


def data_url(grid: Grid, top: float) -> str:
    """A grid as a PNG image in a ``data:`` address: dark for 0, brighter up to ``top``; gaps are clear."""
    return "data:image/png;base64," + base64.b64encode(png(grid, top)).decode()


def png(grid: Grid, top: float) -> bytes:
    """A grid as a PNG image of a pixel for each cell."""
    height, width = len(grid), len(grid[0])
    lines = b"".join(b"\0" + bytes(_index(value, top) for value in row) for row in grid)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(part for colour in _palette() for part in colour)),
        (b"tRNS", b"\xff" * _GAP + b"\0"),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _index(value: float | None, top: float) -> int:
    if value is None:
        return _GAP
    return 0 if value <= 0 else 1 + round((_SHADES - 1) * min(value / top, 1.0))


def _palette() -> list[tuple[int, ...]]:
    stops = [tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in SEQUENCE]
    shades = [_between(stops, (len(stops) - 1) * number / (_SHADES - 1)) for number in range(_SHADES)]
    return [_NOTHING, *shades, (0, 0, 0)]


def _between(stops: list[tuple[int, ...]], place: float) -> tuple[int, ...]:
    first = min(int(place), len(stops) - 2)
    part = place - first
    return tuple(round(a + part * (b - a)) for a, b in zip(stops[first], stops[first + 1], strict=True))
