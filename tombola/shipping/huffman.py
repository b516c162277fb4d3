"""Huffman codes over small alphabets: the symbols are whole numbers from 0.

Codes are canonical: ordered by length and, within a length, by symbol, so that the lengths alone tell them. No code is
longer than ``LIMIT`` bits; among codes of that kind the lengths are the best (package-merge, Larmore & Hirschberg
1990), which are as good as Huffman's own wherever his keep to the limit. Symbols that never occur have the length 0.
Where only one symbol occurs it has the length 1, but no bits are written: the count says it all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tombola.errors import InputError, TicketError

Lengths: TypeAlias = NDArray[np.uint8]
Symbols: TypeAlias = NDArray[np.uint16]
Integers: TypeAlias = NDArray[np.int64]

LIMIT = 15

_BLOCK = 2**18  # bytes that are decoded at once; what is held for each is 8 times as many windows of 4 bytes


def code_lengths(counts: NDArray[Any]) -> Lengths:
    """The length in bits of each symbol's code, for symbols that occur so many times (1-D, whole numbers from 0).

    Raises ``InputError`` for other counts, and where more than 2**15 symbols occur.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise InputError(f"counts of symbols are whole numbers of 0 or more in a row, but got {counts!r}")
    lengths: Lengths = np.zeros(counts.size, np.uint8)
    occurring = np.flatnonzero(counts)
    if occurring.size > 2**LIMIT:
        raise InputError(f"codes of up to {LIMIT} bits tell at most {2**LIMIT:,} symbols apart, not {occurring.size:,}")
    rarest_first = occurring[np.argsort(counts[occurring], kind="stable")]
    lengths[rarest_first] = 1 if occurring.size == 1 else _package_merge(counts[rarest_first].astype(np.int64))
    return lengths


def encode(symbols: NDArray[Any], lengths: Lengths) -> bytes:
    """The codes of the symbols one after the other, the first bit highest in its byte, padded with zeros.

    Raises ``InputError`` for symbols without a code, and ``TicketError`` for lengths that are those of no code.
    """
    symbols = np.asarray(symbols)
    if symbols.size and not (symbols.min() >= 0 and symbols.max() < lengths.size and lengths[symbols].all()):
        raise InputError("a symbol that is to be encoded has no code")
    occurring, longest = _by_code(lengths)
    if occurring.size <= 1 or not symbols.size:
        return b""
    # Each code as the top bits of a number of as many bits as the longest.
    sizes = 1 << (longest - lengths[occurring].astype(np.int64))
    codes = np.zeros(lengths.size, np.int64)
    codes[occurring] = np.cumsum(sizes) - sizes
    widths = lengths[symbols].astype(np.int64)
    starts = np.cumsum(widths) - widths
    bits = np.zeros(int(starts[-1] + widths[-1]), np.bool_)
    for bit in range(longest):
        longer = widths > bit
        bits[starts[longer] + bit] = (codes[symbols[longer]] >> (longest - 1 - bit)) & 1
    return np.packbits(bits).tobytes()


def decode(data: bytes, count: int, lengths: Lengths) -> Symbols:
    """The ``count`` symbols that ``encode`` made ``data`` of.

    Raises ``TicketError`` where lengths or bytes are not those of so many symbols. Time and memory grow with ``count``
    and the number of bytes, whatever they say.
    """
    occurring, longest = _by_code(lengths)
    if occurring.size <= 1 or not count:
        if data or bool(count) != bool(occurring.size):
            raise TicketError(f"{len(data)} bytes and {occurring.size} codes can't hold {count:,} symbols")
        return np.full(count, occurring[0] if count else 0, np.uint16)
    if not count <= 8 * len(data) < count * longest + 8:
        raise TicketError(f"{count:,} symbols with codes of up to {longest} bits can't take {len(data):,} bytes")
    # Which symbol it is that begins at a bit, by that bit and the next ones, as many as in the longest code.
    table = np.repeat(occurring.astype(np.uint16), 1 << (longest - lengths[occurring].astype(np.int64)))
    symbols = np.concatenate(list(_blocks(data, table, lengths[table], longest)))[:count]
    used = int(lengths[symbols].sum(dtype=np.int64))
    if symbols.size != count or -(-used // 8) != len(data) or data[-1] & ((1 << (8 * len(data) - used)) - 1):
        raise TicketError(f"{len(data):,} bytes don't hold {count:,} symbols, or hold something after them")
    return symbols


def encode_with_lengths(symbols: NDArray[Any], alphabet: int) -> bytes:
    """The lengths of the best code for symbols below ``alphabet``, half a byte each, and then the encoded symbols."""
    lengths = code_lengths(np.bincount(symbols, minlength=alphabet))
    halves = np.append(lengths, np.zeros(alphabet % 2, np.uint8))
    return (halves[::2] << 4 | halves[1::2]).tobytes() + encode(symbols, lengths)


def decode_with_lengths(data: bytes, count: int, alphabet: int) -> Symbols:
    """The ``count`` symbols that ``encode_with_lengths`` made ``data`` of; ``TicketError`` as for ``decode``."""
    at = -(-alphabet // 2)
    if len(data) < at:
        raise TicketError(f"the lengths of {alphabet} codes take {at} bytes, but got {len(data)}")
    pairs = np.frombuffer(data, np.uint8, at)
    halves: Lengths = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)
    if halves[alphabet:].any():
        raise TicketError("there is something after the lengths of the codes")
    return decode(data[at:], count, halves[:alphabet])


def _package_merge(ascending: Integers) -> Lengths:
    """The lengths of the best code of at most ``LIMIT`` bits for counts in ascending order, two or more."""
    count = ascending.size
    levels, packages = [], ascending[:0]
    for _ in range(LIMIT):
        merged = np.concatenate([ascending, packages])
        order = np.argsort(merged, kind="stable")
        levels.append(order < count)  # which are symbols; the others are packages of two of the level before
        merged = merged[order]
        packages = merged[0 : merged.size // 2 * 2 : 2] + merged[1::2]
    lengths: Lengths = np.zeros(count, np.uint8)
    taken = 2 * count - 2
    for is_symbol in reversed(levels):
        found = int(is_symbol[:taken].sum())
        lengths[:found] += 1
        taken = 2 * (taken - found)
    return lengths


def _by_code(lengths: Lengths) -> tuple[Integers, int]:
    """The symbols that have a code, in the order of their codes, and the greatest length.

    ``TicketError`` where the lengths leave a bit string without a symbol, or give it two.
    """
    occurring = np.flatnonzero(lengths)
    occurring = occurring[np.argsort(lengths[occurring], kind="stable")]
    longest = int(lengths[occurring[-1]]) if occurring.size else 0
    begun = int((2**LIMIT >> lengths[occurring].astype(np.int64)).sum())  # strings of LIMIT bits that begin with a code
    known = longest == 1 if occurring.size == 1 else longest <= LIMIT and begun == 2**LIMIT
    if occurring.size and not known:
        raise TicketError(f"the lengths of {occurring.size} codes are not those of a Huffman code")
    return occurring, longest


def _blocks(data: bytes, table: Symbols, widths: Lengths, longest: int) -> Iterator[Symbols]:
    """The symbols block by block; zeros after the end are taken for more of them."""
    padded = np.frombuffer(data + b"\0\0", np.uint8)
    at = 0  # the bit of the block at which its first symbol begins
    for first in range(0, len(data), _BLOCK):
        part = padded[first : first + _BLOCK + 2].astype(np.uint32)
        words = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        windows = (words[:, None] >> (24 - longest - np.arange(8, dtype=np.uint32))).reshape(-1) & (2**longest - 1)
        steps, starts = widths[windows].tobytes(), []
        while at < len(steps):  # one symbol leads to the next: the one thing that can't be done for all at once
            starts.append(at)
            at += steps[at]
        at -= len(steps)
        yield table[windows[starts]]
