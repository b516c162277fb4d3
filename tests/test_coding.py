import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.coding import CODES, decode, encode
from tombola.errors import InputError, TicketError

torch.set_num_threads(1)


@st.composite
def masks(draw):
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    kind = draw(st.sampled_from(("random", "structured", "dead")))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    mask = torch.rand(shape, generator=generator) < draw(st.floats(0, 1))
    for dim, size in enumerate(shape[:2]):
        if kind != "random" and size:
            alive = torch.rand(size, generator=generator) < 0.6
            mask = (torch.ones_like(mask) if kind == "structured" and dim == 0 else mask).movedim(dim, -1)
            mask = (mask & alive).movedim(-1, dim)
    return mask


def round_trip(mask):
    code, data = encode(mask)
    assert code in CODES
    assert torch.equal(decode(code, data, tuple(mask.shape), int(mask.sum())), mask)
    return code, data


@given(masks())
def test_what_is_encoded_is_decoded(mask):
    code, data = round_trip(mask)
    assert len(data) <= -(-mask.numel() // 8)
    assert encode(mask) == (code, data)


@pytest.mark.parametrize("density", [0.0005, 0.012, 0.1, 0.6, 0.999])
@pytest.mark.parametrize("transposed", [False, True])
def test_large_masks_of_every_density(density, transposed):
    mask = torch.rand(300, 784, generator=torch.Generator().manual_seed(1)) < density
    mask[:, :40] = False
    round_trip(mask.T if transposed else mask)


def test_nothing_and_everything_take_no_bytes():
    assert encode(torch.zeros(3, 4, dtype=torch.bool)) == ("empty", b"")
    assert encode(torch.ones(3, 4, dtype=torch.bool)) == ("full", b"")
    assert encode(torch.ones(0, 4, dtype=torch.bool)) == ("empty", b"")
    assert encode(torch.tensor(True)) == ("full", b"")


def test_literal_bits():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert encode(mask) == ("bits", b"\xac")


def test_literal_gaps():
    """One entry, at 21 of 48: gap 21 = 1 * 16 + 5. k = 4; unary 01; remainder bits 1, 0, 1, 0, the lowest first."""
    assert torch.equal(decode("gaps", b"\x04\x40\xa0", (48,), 1).nonzero(), torch.tensor([[21]]))
    mask = torch.zeros(48, dtype=torch.bool)
    mask[21] = True
    assert len(encode(mask)[1]) == 3


def test_structured_masks_take_a_bit_for_a_row_or_a_column():
    mask = torch.zeros(64, 32, 3, 3, dtype=torch.bool)
    mask[::3, 4:20] = True
    code, data = round_trip(mask)
    assert (code, len(data)) == ("live", (64 + 32 * 9) // 8)


def test_dead_columns_cost_less_than_scattered_entries():
    """As many entries, anywhere or in a quarter of the columns only: 2 bits an entry fewer, 1 a row and column more."""
    generator = torch.Generator().manual_seed(0)
    scattered = torch.zeros(300, 784, dtype=torch.bool)
    scattered.view(-1)[torch.randperm(300 * 784, generator=generator)[:2800]] = True
    columns = torch.zeros(300, 784, dtype=torch.bool)
    inner = torch.zeros(300, 196, dtype=torch.bool)
    inner.view(-1)[torch.randperm(300 * 196, generator=generator)[:2800]] = True
    columns[:, ::4] = inner
    (code, short), (_, long) = round_trip(columns), round_trip(scattered)
    assert code.startswith("live-gaps")
    assert len(long) - len(short) > 0.9 * (2 * 2800 - 784 - 300) / 8


def test_random_masks_take_little_more_than_their_entropy():
    mask = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) < 0.02
    p = mask.float().mean().double()
    entropy = -float(p * p.log2() + (1 - p) * (1 - p).log2()) * mask.numel() / 8
    assert entropy < len(round_trip(mask)[1]) < 1.03 * entropy


def test_only_bool_tensors_have_a_code():
    with pytest.raises(InputError, match=r"bool.*float32"):
        encode(torch.ones(3))


@pytest.mark.parametrize(
    ("code", "data", "shape", "kept", "reason"),
    [
        ("zip", b"", (2,), 1, "no mask code 'zip'"),
        ("bits", b"\x80", (-1, -2), 1, "negative"),
        ("bits", b"\x80", (2,), 3, "can't keep 3"),
        ("bits", b"\x80", (2,), -1, "can't keep -1"),
        ("full", b"", (2,), 1, "contradicts"),
        ("empty", b"", (2,), 1, "contradicts"),
        ("empty", b"\x00", (2,), 0, "contradicts"),
        ("bits", b"", (0, 3), 0, "coded 'empty' or 'full'"),
        ("bits", b"\x00", (3,), 0, "coded 'empty' or 'full'"),
        ("live", b"\xe0", (3,), 3, "coded 'empty' or 'full'"),
        ("bits", b"", (2,), 1, "take 1 bytes, but got 0"),
        ("bits", b"\x80\x00", (2,), 1, "at most 1 bytes"),
        ("bits", b"\xa0", (2,), 1, "beyond its end"),
        ("bits", b"\xc0", (2,), 1, "keep 2 entries, but 1"),
        ("live", b"\x80", (4, 9), 1, "take 2 bytes, but got 0"),
        ("live", b"\x80\x80\x00\x00", (4, 9), 1, "1 bytes too many"),
        ("live", b"\x88\x80\x00", (4, 9), 1, "beyond its end"),
        ("live", b"\x80\xc0\x00", (4, 9), 1, "keep 2 entries, but 1"),
        ("gaps", b"", (99,), 1, "can't tell"),
        ("gaps", b"\x00", (99,), 1, "can't tell"),
        ("gaps", b"\x07\x80\x00", (99,), 1, "Rice parameter 7"),
        ("gaps", b"\xff\x80\x00", (99,), 1, "Rice parameter 255"),
        ("gaps", b"\x00\x00", (99,), 1, "hold 0 gaps"),
        ("gaps", b"\x00\xc0", (99,), 1, "hold 2 gaps"),
        ("gaps", b"\x00\x80\x00", (99,), 1, "loose ends"),
        ("gaps", b"\x04\x80\x08", (99,), 1, "beyond its end"),
        ("gaps", b"\x06\x40\xfc", (99,), 1, "keeps entry 127, but has only 99"),
        ("live-gaps", b"\xc0\x40\x00\x00\x40", (4, 9), 1, "nothing is kept"),
        ("live-gaps", b"\x00\x00\x00\x00\x80", (4, 9), 1, "can't tell"),
        ("live-gaps-t", b"\xc0\x40\x00\x00\x20", (4, 9), 1, "keeps entry 2, but has only 2"),
    ],
)
def test_malformed_codes_are_refused(code, data, shape, kept, reason):
    with pytest.raises(TicketError, match=reason):
        decode(code, data, shape, kept)


@given(
    st.sampled_from(CODES),
    st.binary(max_size=12),
    st.lists(st.integers(0, 12), max_size=3).map(tuple),
    st.integers(0, 20),
)
@settings(max_examples=1000)
def test_random_bytes_are_refused_or_a_mask_as_announced(code, data, shape, kept):
    try:
        mask = decode(code, data, shape, kept)
    except TicketError:
        return
    assert (mask.dtype, tuple(mask.shape), int(mask.sum())) == (torch.bool, shape, kept)


def test_every_changed_byte_is_refused_or_another_mask():
    """No two streams of one code and length decode to the same mask: no bit of them is idle."""
    mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.04
    mask[:, 10:20] = False
    for code in ("gaps", "gaps-t"):
        view = mask if code == "gaps" else mask.T.contiguous()
        name, data = encode(view.flatten())
        assert name == "gaps"
        for at in range(len(data)):
            for bit in range(8):
                broken = bytearray(data)
                broken[at] ^= 1 << bit
                try:
                    other = decode(code, bytes(broken), tuple(mask.shape), int(mask.sum()))
                except TicketError:
                    continue
                assert not torch.equal(other, mask)
