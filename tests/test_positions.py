"""Huffman-coded gaps: literal bytes, the same mask back, and the entries of the paper's own format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola import coding
from tombola.errors import TicketError
from tombola.shipping.positions import RELATIVE, decode, encode, stored_entries

torch.set_num_threads(1)


def at(positions: list[int], size: int) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[positions] = True
    return mask


@given(st.lists(st.integers(0, 6), max_size=3), st.integers(0, 2**32), st.floats(0, 1))
@settings(deadline=None)
def test_what_is_encoded_is_decoded(shape: list[int], seed: int, density: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    code, data = encode(mask)
    assert torch.equal(decode(code, data, tuple(shape), int(mask.sum())), mask)
    assert len(data) <= len(coding.encode(mask)[1])


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3])
def test_uneven_gaps_take_fewer_bytes_than_rices_code(density: float) -> None:
    """Stretches of kept entries far from each other: no geometric distribution, which Rice's code is made for."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(40_000, generator=generator) < density
    mask = (starts | starts.roll(1) | starts.roll(2) | starts.roll(3)).reshape(200, 200)
    code, data = encode(mask)
    assert code == RELATIVE
    assert len(data) < len(coding.encode(mask)[1])
    assert torch.equal(decode(code, data, (200, 200), int(mask.sum())), mask)


def test_literal_bytes() -> None:
    """With 2 bits a symbol of 3 is a filler for 3 pruned entries. Kept are 0, 1, 2 and 9: gaps 0, 0, 0 and 6, which is
    3, 3 and 0. Both symbols have codes of one bit: 0 for 0, 1 for 3."""
    data = bytes([2, 2, 0, 0, 0, 0x10, 0x01, 0b000110_00])
    assert torch.equal(decode(RELATIVE, data, (2, 6), 4), at([0, 1, 2, 9], 12).reshape(2, 6))


@pytest.mark.parametrize(
    ("data", "shape", "kept"),
    [
        (bytes([2, 2, 0, 0]), (12,), 4),
        (b"", (12,), 4),
        (bytes([0, 2, 0, 0, 0, 0x10, 0x01, 0x18]), (12,), 4),
        (bytes([9, 2, 0, 0, 0, 0x10, 0x01, 0x18]), (12,), 4),
        (bytes([2, 3, 0, 0, 0, 0x10, 0x01, 0x18]), (12,), 4),  # the third filler would be the padding's 0
        (bytes([2, 2, 0, 0, 0, 0x10, 0x01, 0x18]), (12,), 3),
        (bytes([2, 2, 0, 0, 0, 0x10, 0x01, 0x18]), (9,), 4),  # position 9 is outside
        (bytes([2, 2, 0, 0, 0, 0x10, 0x01, 0x0C]), (12,), 4),  # a filler at the end
        (bytes([2, 2, 0, 0, 0, 0x11, 0x01, 0x18]), (12,), 4),
        (bytes([2, 255, 255, 255, 255, 0x00, 0x01]), (12,), 4),
        (bytes([2, 0, 0, 0, 0, 0x10, 0x00]), (12,), 0),
        (bytes([2, 0, 0, 0, 0, 0x10, 0x00]), (0,), 1),
    ],
)
def test_what_is_no_mask_is_refused(data: bytes, shape: tuple[int, ...], kept: int) -> None:
    with pytest.raises(TicketError):
        decode(RELATIVE, data, shape, kept)


@given(st.binary(max_size=12), st.integers(0, 20))
@settings(deadline=None)
def test_whatever_is_read_is_refused_or_a_mask(data: bytes, kept: int) -> None:
    try:
        mask = decode(RELATIVE, data, (4, 5), kept)
    except TicketError:
        return
    assert mask.shape == (4, 5)
    assert int(mask.sum()) == kept


def test_fillers_of_the_papers_format() -> None:
    """With 3 bits a difference is 1 to 8: from 0 to 8 and from 8 to 17 there are 8 and 9, and 9 takes a filler."""
    assert stored_entries(at([0, 8, 17], 18), 3) == 4
    assert stored_entries(at([7], 8), 3) == 1
    assert stored_entries(at([8], 9), 3) == 2
    assert stored_entries(at([40], 41), 3) == 6
    assert stored_entries(at([], 41), 3) == 0
