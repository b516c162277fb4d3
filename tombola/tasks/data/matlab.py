"""Numeric arrays in MATLAB's files of version 5, read without trusting them.

Only what data sets need: real numeric arrays, compressed or not, little-endian. SciPy's reader does more, but crashes
the process on some damaged files. Source: "MAT-File Format", The MathWorks, version 5 section.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tombola.errors import DataError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_DTYPES = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_NUMERIC = range(6, 16)
"""Classes of arrays of numbers, from double to uint64."""
_COMPLEX = 0x800


def read_mat(path: Path, names: Collection[str], *, limit: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of these names, in MATLAB's shapes and in the dtypes they are stored in, which may be smaller ones.

    An array may take ``limit`` bytes at most; what else is in the file is passed over. ``DataError`` names the file and
    what is wrong with it.
    """
    try:
        data = memoryview(path.read_bytes())
        if len(data) < _HEADER or bytes(data[124:128]) != b"\x00\x01IM":
            raise ValueError("it doesn't begin like a little-endian MATLAB file of version 5")
        found: dict[str, npt.NDArray[Any]] = {}
        at = _HEADER
        while at < len(data) and len(found) < len(names):
            kind, content, at = _element(data, at)
            if kind == _COMPRESSED:
                kind, content, _ = _element(_decompressed(content, limit), 0)
            if kind == _MATRIX:
                _read_array(content, names, found)
        lacking = [name for name in names if name not in found]
        if lacking:
            raise ValueError(f"it holds no array of numbers named {lacking[0]}")
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}; delete it or replace it by a good copy") from error
    return found


def _element(data: memoryview, at: int) -> tuple[int, memoryview, int]:
    """The type and content of the element that begins at a place, and where the next begins."""
    kind, size = struct.unpack_from("<II", data, at)
    if kind >> 16:  # the short form: type and size in one word, up to four bytes in the next
        kind, size = kind & 0xFFFF, kind >> 16
        begin, end, following = at + 4, at + 8, at + 8
    else:
        begin, end = at + 8, len(data)
        following = begin + size + (0 if kind == _COMPRESSED else -size % 8)
    if begin + size > min(end, len(data)):
        raise ValueError(f"an element of {size:,} bytes at byte {at:,} reaches beyond its place")
    return kind, data[begin : begin + size], following


def _decompressed(content: memoryview, limit: int) -> memoryview:
    unpacker, most = zlib.decompressobj(), limit + 4096  # beside the numbers: shape, name and tags
    data = unpacker.decompress(content, most + 1)
    if len(data) > most:
        raise ValueError(f"an array takes more than {limit:,} bytes")
    if not unpacker.eof:
        raise ValueError("a compressed array ends too early")
    return memoryview(data)


def _read_array(content: memoryview, names: Collection[str], found: dict[str, npt.NDArray[Any]]) -> None:
    """Add the array to ``found`` if its name is asked for and it is one of real numbers."""
    _, flags, at = _element(content, 0)
    _, dimensions, at = _element(content, at)
    _, text, at = _element(content, at)
    (word,) = struct.unpack_from("<I", flags)
    name = bytes(text).decode("latin-1")
    if name not in names or (word & 0xFF) not in _NUMERIC or word & _COMPLEX:
        return
    kind, numbers, _ = _element(content, at)
    shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
    dtype = np.dtype(_DTYPES.get(kind, "V1"))
    if dtype.kind == "V" or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"the array {name} doesn't have the numbers for its shape {shape}")
    found[name] = np.frombuffer(numbers, dtype).reshape(shape, order="F")
