"""Huffman codes: as short as the textbook's, the same symbols back, and refusal of what is no code."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.errors import InputError, TicketError
from tombola.shipping import huffman
from tombola.shipping.huffman import (
    LIMIT,
    code_lengths,
    decode,
    decode_with_lengths,
    encode,
    encode_with_lengths,
)

COUNTS = st.lists(st.integers(0, 1000), max_size=40).map(np.array).map(lambda counts: counts.astype(np.int64))


def textbook(counts: Sequence[int]) -> int:
    """The bits of all symbols in Huffman's code: the sum of what is merged, two by two, the rarest first."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        bits += merged
        heapq.heappush(heap, merged)
    return bits


def kraft(lengths: np.ndarray) -> float:
    return sum(2.0 ** -int(length) for length in lengths if length)


@given(COUNTS)
@settings(deadline=None)
def test_no_code_is_shorter(counts: np.ndarray) -> None:
    lengths = code_lengths(counts)
    assert ((lengths > 0) == (counts > 0)).all()
    if np.count_nonzero(counts) < 2:
        assert lengths.sum() == np.count_nonzero(counts)
        return
    assert kraft(lengths) == 1
    bits, total = int((counts * lengths).sum()), int(counts.sum())
    assert bits == textbook(counts.tolist())  # 40 symbols of up to 1000 never need more than 15 bits
    entropy = -sum(c / total * math.log2(c / total) for c in counts.tolist() if c)
    assert entropy - 1e-9 <= bits / total < entropy + 1


@given(st.lists(st.integers(1, 50), min_size=2, max_size=8))
@settings(deadline=None)
def test_among_codes_within_the_limit_none_is_shorter(counts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huffman, "LIMIT", 4)
        lengths = code_lengths(np.array(counts))
    best = min(
        sum(c * n for c, n in zip(sorted(counts, reverse=True), lengths, strict=True))
        for lengths in itertools.combinations_with_replacement(range(1, 5), len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert lengths.max() <= 4
    assert int((lengths * np.array(counts)).sum()) == best


def test_the_limit_holds_where_huffmans_own_code_is_longer() -> None:
    """With Fibonacci's numbers each merge is of everything before and one more symbol: n symbols need n - 1 bits."""
    counts = [1, 1]
    while len(counts) < 25:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(np.array(counts))
    assert lengths.max() == LIMIT
    assert kraft(lengths) == 1
    assert textbook(counts) < int((lengths * np.array(counts)).sum()) < 1.001 * textbook(counts)
    assert code_lengths(np.array(counts[:16])).max() == 15


def test_literal_code() -> None:
    """0, 10, 110, 111: ordered by length and then by symbol."""
    lengths = code_lengths(np.array([1, 4, 2, 1]))
    assert lengths.tolist() == [3, 1, 2, 3]
    data = encode(np.array([1, 2, 0, 3]), lengths)
    assert data == bytes([0b0_10_110_11, 0b1_0000000])
    assert decode(data, 4, lengths).tolist() == [1, 2, 0, 3]
    assert encode_with_lengths(np.array([1, 2, 0, 3, 1, 1, 2, 1]), 5) == b"\x31\x23\x00" + bytes(
        [0b01011011, 0b10010000]
    )


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1)))))
@settings(deadline=None)
def test_what_is_encoded_is_decoded(drawn: tuple[int, list[int]]) -> None:
    alphabet, symbols = drawn
    data = encode_with_lengths(np.array(symbols, dtype=np.int64), alphabet)
    assert decode_with_lengths(data, len(symbols), alphabet).tolist() == symbols


@pytest.mark.parametrize("block", [1, 2, 7, 2**18])
def test_symbols_may_lie_across_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huffman, "_BLOCK", block)
    symbols = np.minimum(np.random.default_rng(0).geometric(0.02, 3000), 400)
    lengths = code_lengths(np.bincount(symbols))
    assert lengths.max() > 9  # longer than a byte
    assert (decode(encode(symbols, lengths), symbols.size, lengths) == symbols).all()


def test_many_symbols_of_all_lengths() -> None:
    symbols = np.minimum(np.random.default_rng(0).geometric(0.4, 300_000), 30)
    lengths = code_lengths(np.bincount(symbols))
    assert lengths.max() > 12
    assert (decode(encode(symbols, lengths), symbols.size, lengths) == symbols).all()


def test_a_single_symbol_and_none_take_no_bytes() -> None:
    lengths = code_lengths(np.array([0, 0, 9]))
    assert lengths.tolist() == [0, 0, 1]
    assert encode(np.full(9, 2), lengths) == b""
    assert decode(b"", 9, lengths).tolist() == [2] * 9
    nothing = code_lengths(np.array([0, 0]))
    assert encode(np.empty(0, np.int64), nothing) == b""
    assert decode(b"", 0, nothing).size == 0
    assert encode_with_lengths(np.empty(0, np.int64), 0) == b""
    assert decode_with_lengths(b"", 0, 0).size == 0


@given(st.binary(max_size=6), st.integers(0, 50), st.lists(st.integers(0, 4) | st.integers(0, 255), max_size=6))
@settings(deadline=None, max_examples=500)
def test_whatever_is_read_is_refused_or_exactly_what_would_be_written(
    data: bytes, count: int, drawn: list[int]
) -> None:
    lengths = np.array(drawn, dtype=np.uint8)
    try:
        symbols = decode(data, count, lengths)
    except TicketError:
        return
    assert symbols.size == count
    assert encode(symbols, lengths) == data


@pytest.mark.parametrize(
    ("data", "count", "lengths"),
    [
        (b"\x5f", 4, [3, 1, 2, 3]),  # the last symbol is cut off
        (b"\x5b\x80\x00", 4, [3, 1, 2, 3]),  # a byte too many
        (b"\x5b\x81", 4, [3, 1, 2, 3]),  # a bit in the padding
        (b"\x5b\x80", 3, [3, 1, 2, 3]),
        (b"\x5b\x80", 10**15, [3, 1, 2, 3]),
        (b"", 4, [3, 1, 2, 3]),
        (b"\x5b\x80", 4, [2, 1, 2, 3]),  # two symbols for one string of bits
        (b"\x5b\x80", 4, [3, 1, 2, 4]),  # strings without a symbol
        (b"\x00", 4, [16, *range(1, 17)]),  # longer than the limit
        (b"\x00", 4, [255, 1]),
        (b"", 4, [0, 0]),
        (b"", 4, [0, 2]),
        (b"", 0, [0, 1]),
        (b"\x00", 0, [1, 1]),
        (b"\x00", 1, [0, 1]),
    ],
)
def test_what_is_no_code_is_refused(data: bytes, count: int, lengths: list[int]) -> None:
    with pytest.raises(TicketError):
        decode(data, count, np.array(lengths, dtype=np.uint8))


def test_damaged_lengths_are_refused() -> None:
    with pytest.raises(TicketError, match="lengths of 5 codes take 3 bytes, but got 2"):
        decode_with_lengths(b"\x31\x23", 4, 5)
    with pytest.raises(TicketError, match="something after the lengths"):
        decode_with_lengths(b"\x11\x01\x00", 1, 3)


def test_bad_input_is_refused() -> None:
    lengths = code_lengths(np.array([3, 1, 0]))
    for symbols in ([2], [3], [-1]):
        with pytest.raises(InputError, match="has no code"):
            encode(np.array(symbols), lengths)
    for counts in (np.array([-1, 2]), np.array([0.5]), np.array([[1]])):
        with pytest.raises(InputError, match="whole numbers of 0 or more"):
            code_lengths(counts)
    with pytest.raises(InputError, match="at most 32,768 symbols"):
        code_lengths(np.ones(2**15 + 1, np.int64))
    assert code_lengths(np.ones(2**15, np.int64)).tolist() == [15] * 2**15
