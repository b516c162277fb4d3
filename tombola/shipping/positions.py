"""Where the kept weights lie: Huffman-coded gaps with fillers (Han, Mao & Dally 2016, sections 2 and 4).

A mask is read row-major. A gap is the number of pruned entries before a kept one. With g bits a symbol of up to
2**g - 2 is a gap, and the symbol 2**g - 1 is a filler: so many pruned entries, and the gap isn't over. In the paper a
filler is a stored weight of 0; here it has no value, because its symbol says that it is one.

The code ``relative`` is a byte with g, the number of fillers in 4 bytes, little-endian, the code lengths of the 2**g
symbols, half a byte each, and the encoded symbols.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tombola.coding import decode as decode_plainly
from tombola.coding import encode as encode_plainly
from tombola.errors import TicketError
from tombola.shipping.huffman import code_lengths, decode_with_lengths, encode_with_lengths

Integers: TypeAlias = NDArray[np.int64]

RELATIVE = "relative"
MOST_BITS = 8

_HEAD = 5


def encode(mask: Tensor) -> tuple[str, bytes]:
    """The name and the bytes of the shortest code for a bool tensor: ``relative``, or one of ``tombola.coding``."""
    code, data = encode_plainly(mask)
    if not data:
        return code, data
    gaps = _gaps(mask)
    bits = min(range(1, MOST_BITS + 1), key=lambda g: _length(gaps, g))
    if _length(gaps, bits) >= len(data):
        return code, data
    filler = 2**bits - 1
    fillers = gaps // filler
    symbols = np.full(gaps.size + int(fillers.sum()), filler)
    symbols[np.cumsum(fillers + 1) - 1] = gaps % filler
    head = bytes([bits]) + int(fillers.sum()).to_bytes(4, "little")
    return RELATIVE, head + encode_with_lengths(symbols, 2**bits)


def decode(code: str, data: bytes, shape: tuple[int, ...], kept: int) -> Tensor:
    """The bool tensor of ``shape`` and with ``kept`` entries kept that ``encode`` made ``code`` and ``data`` of.

    Raises ``TicketError`` where the bytes are not those of such a tensor.
    """
    if code != RELATIVE:
        return decode_plainly(code, data, shape, kept)
    total, bits = math.prod(shape), data[0] if data else 0
    fillers = int.from_bytes(data[1:_HEAD], "little")
    if len(data) < _HEAD or not 1 <= bits <= MOST_BITS or not 1 <= kept <= total - fillers:
        raise TicketError(f"{len(data)} bytes can't tell where {kept} of {total} entries lie")
    symbols = decode_with_lengths(data[_HEAD:], kept + fillers, 2**bits)
    ends = np.cumsum(symbols, dtype=np.int64)
    ends += np.cumsum(symbols != 2**bits - 1)  # a gap ends with an entry that is kept
    positions = ends[symbols != 2**bits - 1] - 1
    if positions.size != kept or symbols[-1] == 2**bits - 1 or positions[-1] >= total:
        raise TicketError(f"the mask's bytes keep {positions.size} entries, or others than the {total} there are")
    mask = torch.zeros(total, dtype=torch.bool)
    mask[torch.from_numpy(positions)] = True
    return mask.reshape(shape)


def stored_entries(mask: Tensor, bits: int) -> int:
    """How many entries the paper's sparse format stores: those kept, and a filler for every 2**bits in a difference.

    There the difference between two positions, 1 to 2**bits, takes ``bits`` bits, and fillers are entries of value 0.
    """
    gaps = _gaps(mask)
    return gaps.size + int((gaps >> bits).sum())


def _gaps(mask: Tensor) -> Integers:
    positions = np.flatnonzero(mask.numpy())
    return np.diff(positions, prepend=-1) - 1


def _length(gaps: Integers, bits: int) -> int:
    """The bytes of the code ``relative`` with so many bits."""
    filler = 2**bits - 1
    counts = np.append(np.bincount(gaps % filler, minlength=filler), (gaps // filler).sum())
    coded = int((counts * code_lengths(counts)).sum()) if np.count_nonzero(counts) > 1 else 0
    return _HEAD + (1 << bits) // 2 + -(-coded // 8)
