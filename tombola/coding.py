"""Lossless codes for bool tensors: a mask takes as few bytes as the smallest of them.

Most codes look at a tensor as a matrix: dimension 0 is its rows (a layer's outputs), all the others its columns.

================  ======================================================================================
``empty``         nothing is kept: no bytes
``full``          everything is kept: no bytes
``bits``          one bit an entry
``live``          every entry where a live row meets a live column: structured masks
``gaps``          Rice-coded gaps between kept entries, row by row: sparse masks
``live-gaps``     which rows and columns are live, then ``gaps`` in the matrix of these alone
================  ======================================================================================

``gaps-t`` and ``live-gaps-t`` do the same column by column. A row or column is live where anything in it is kept.
Magnitude pruning leaves many dead, such as the border pixels of an image, which makes the ``live`` codes the shortest
for first layers.

Everything is whole-array numpy: the work and the memory grow with the number of entries, whatever the bytes say.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tombola.errors import InputError, TicketError, suggestion

Bools: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

CODES = ("empty", "full", "bits", "live", "gaps", "gaps-t", "live-gaps", "live-gaps-t")


def encode(tensor: Tensor) -> tuple[str, bytes]:
    """The name and the bytes of the shortest code for a bool tensor; among equals the first in ``CODES``."""
    if tensor.dtype != torch.bool:
        raise InputError(f"only bool tensors have a code, but got {tensor.dtype}")
    kept, total = int(tensor.sum()), tensor.numel()
    if kept in (0, total):
        return ("empty" if kept == 0 else "full"), b""
    matrix: Bools = tensor.detach().cpu().reshape(_matrix_shape(tuple(tensor.shape))).contiguous().numpy()
    rows: Bools = np.logical_or.reduce(matrix, axis=1)
    columns: Bools = np.logical_or.reduce(matrix, axis=0)
    alive = _pack(rows) + _pack(columns)
    best = ("bits", _pack(matrix))
    if kept == int(rows.sum()) * int(columns.sum()) and len(alive) < len(best[1]):
        best = ("live", alive)
    dead = not (rows.all() and columns.all())
    living = matrix[np.ix_(rows, columns)] if dead else matrix
    for code, view, prefix in (
        ("gaps", matrix, b""),
        ("gaps-t", matrix.T, b""),
        ("live-gaps", living, alive),
        ("live-gaps-t", living.T, alive),
    ):
        if code.startswith("gaps") or dead:
            data = _rice(view, shorter_than=len(best[1]) - len(prefix))
            best = best if data is None else (code, prefix + data)
    return best


def decode(code: str, data: bytes, shape: tuple[int, ...], kept: int) -> Tensor:
    """The bool tensor of ``shape`` and with ``kept`` entries kept that ``encode`` made ``code`` and ``data`` of.

    Raises ``TicketError`` where the bytes are not those of such a tensor.
    """
    if any(size < 0 for size in shape):
        raise TicketError(f"a mask's shape can't have a negative size, but got {shape}")
    total = math.prod(shape)
    if not 0 <= kept <= total:
        raise TicketError(f"a mask of {total} entries can't keep {kept} of them")
    if code not in CODES:
        raise TicketError(f"no mask code {code!r}; a newer Tombola may know it.{suggestion(code, CODES)}")
    if code in ("empty", "full"):
        if data or kept != (total if code == "full" else 0):
            raise TicketError(
                f"the mask code {code!r} contradicts {len(data)} bytes of data and {kept} of {total} kept"
            )
        return torch.full(shape, code == "full", dtype=torch.bool)
    if len(data) > _bytes_for(total):
        raise TicketError(f"a mask of {total} entries takes at most {_bytes_for(total)} bytes, but got {len(data)}")
    if kept in (0, total):
        raise TicketError(f"a mask that keeps {kept} of {total} entries is coded 'empty' or 'full', but got {code!r}")
    rows, columns = _matrix_shape(shape)
    matrix = _decode_matrix(code, data, rows, columns, kept)
    if int(matrix.sum()) != kept:
        raise TicketError(f"the mask's bytes keep {int(matrix.sum())} entries, but {kept} were announced")
    return torch.from_numpy(np.ascontiguousarray(matrix)).reshape(shape)


def _decode_matrix(code: str, data: bytes, rows: int, columns: int, kept: int) -> Bools:
    if code == "bits":
        return _unpack(data, rows * columns).reshape(rows, columns)
    if code.startswith("gaps"):
        return _decode_gaps(code, data, rows, columns, kept)
    middle, end = _bytes_for(rows), _bytes_for(rows) + _bytes_for(columns)
    live_rows, live_columns = _unpack(data[:middle], rows), _unpack(data[middle:end], columns)
    if code == "live":
        if len(data) != end:
            raise TicketError(f"{len(data) - end} bytes too many after a mask's live rows and columns")
        return np.logical_and.outer(live_rows, live_columns)
    matrix = np.zeros((rows, columns), np.bool_)
    inner = _decode_gaps(code, data[end:], int(live_rows.sum()), int(live_columns.sum()), kept)
    if not (inner.any(axis=1).all() and inner.any(axis=0).all()):
        raise TicketError("the mask's bytes call a row or column live in which nothing is kept")
    matrix[np.ix_(live_rows, live_columns)] = inner
    return matrix


def _decode_gaps(code: str, data: bytes, rows: int, columns: int, kept: int) -> Bools:
    flat = np.zeros(rows * columns, np.bool_)
    flat[_unrice(data, kept, flat.size)] = True
    return flat.reshape(columns, rows).T if code.endswith("-t") else flat.reshape(rows, columns)


def _rice(matrix: Bools, *, shorter_than: int) -> bytes | None:
    """Rice code of the gaps between kept entries, row by row; None where it would not be shorter than asked.

    One byte with the parameter k. Then each gap's quotient by 2**k in unary (so many zeros, and a one). Then, from a
    byte of their own, the remainders' k bits: first the lowest bit of every remainder, then the next.
    """
    positions = np.flatnonzero(matrix)
    gaps = np.diff(positions, prepend=-1) - 1
    k, bits = _parameter(gaps)
    if 1 + bits // 8 >= shorter_than:
        return None
    ends = np.cumsum((gaps >> k) + 1)
    unary = np.zeros(int(ends[-1]), np.bool_)
    unary[ends - 1] = True
    planes = np.empty((k, gaps.size), np.bool_)
    for bit in range(k):
        planes[bit] = (gaps >> bit) & 1
    data = bytes([k]) + _pack(unary) + _pack(planes)
    return data if len(data) < shorter_than else None


def _parameter(gaps: Integers) -> tuple[int, int]:
    """The Rice parameter with the shortest code for ``gaps``, and that code's length in bits."""
    best, k, quotients = (0, int(gaps.sum()) + gaps.size), 1, gaps
    while gaps.size * (1 + k) < best[1]:
        quotients = quotients >> 1
        best = min(best, (k, int(quotients.sum()) + gaps.size * (1 + k)), key=lambda found: found[1])
        k += 1
    return best


def _unrice(data: bytes, kept: int, total: int) -> Integers:
    """The positions of ``kept`` among ``total`` entries that ``_rice`` coded."""
    k = data[0] if data else 0
    planes_at = len(data) - _bytes_for(kept * k)
    if planes_at < 2 or 1 << k > total:
        raise TicketError(
            f"{len(data)} bytes with the Rice parameter {k} can't tell where {kept} of {total} entries lie"
        )
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8)[1:planes_at]))
    if ends.size != kept or ends[-1] // 8 != planes_at - 2:
        raise TicketError(f"the mask's bytes hold {ends.size} gaps or loose ends, but {kept} gaps were announced")
    gaps = (np.diff(ends, prepend=-1) - 1) << k
    for bit, plane in enumerate(_unpack(data[planes_at:], k * kept).reshape(k, kept)):
        gaps |= plane.astype(np.int64) << bit
    positions: Integers = np.cumsum(gaps + 1) - 1
    if positions[-1] >= total:
        raise TicketError(f"the mask keeps entry {positions[-1]}, but has only {total}")
    return positions


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


def _bytes_for(bits: int) -> int:
    return -(-bits // 8)


def _pack(bools: Bools) -> bytes:
    return np.packbits(bools).tobytes()


def _unpack(data: bytes, count: int) -> Bools:
    """``count`` bools from exactly the bytes that hold them, with the bits left over in the last byte zero."""
    if len(data) != _bytes_for(count):
        raise TicketError(f"{count} bits of a mask take {_bytes_for(count)} bytes, but got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[count:].any():
        raise TicketError(f"the last byte of {count} bits of a mask has bits set beyond its end")
    return bits[:count].view(np.bool_)
