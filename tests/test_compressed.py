"""The compressed file: the same ticket back, the sizes of its stages, and refusal of everything else."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tombola.errors import InputError, TicketError, TombolaError
from tombola.mask import Mask
from tombola.sealed import DTYPES, HEADER_LIMIT, seal, tensor_bytes, unseal
from tombola.shipping import compressed
from tombola.shipping.compressed import compress, decompress, from_bytes, to_bytes
from tombola.shipping.sharing import shared_ticket
from tombola.ticket import Ticket

torch.set_num_threads(1)


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def random_mask(model: nn.Module, density: float) -> Mask:
    generator = torch.Generator().manual_seed(0)
    return Mask({name: torch.rand(m.shape, generator=generator) < density for name, m in Mask.full(model).items()})


def small_ticket() -> Ticket:
    model = net(nn.Linear(9, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    ticket = Ticket(random_mask(model, 0.4), model.state_dict(), {"task": "t", "seed": 3})
    return shared_ticket(ticket, 2)


def assert_same(one: Ticket, two: Ticket) -> None:
    assert one == two
    assert list(one.values) == list(two.values)
    for name, value in one.values.items():
        assert two.values[name].dtype == value.dtype
        assert torch.equal(tensor_bytes(two.values[name]), tensor_bytes(value))
    assert one.mask == two.mask
    assert list(one.mask) == list(two.mask)


# ---- what comes back


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    masks, values = {}, {}
    for number in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        few = draw(st.lists(st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize), min_size=1, max_size=5))
        raw = b"".join(draw(st.lists(st.sampled_from(few), min_size=math.prod(shape), max_size=math.prod(shape))))
        raw = bytes(byte & 1 for byte in raw) if dtype == torch.bool else raw
        name = draw(st.sampled_from(("fc.weight", "data", "ü", ""))) + str(number)
        empty = torch.empty(shape, dtype=dtype)
        values[name] = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else empty
        if draw(st.booleans()):
            kept = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
            masks[name] = torch.tensor(kept, dtype=torch.bool).reshape(shape)
    origin = draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.floats(), max_size=2))
    return Ticket(Mask(masks), values, origin)


@given(tickets())
@settings(deadline=None)
def test_a_ticket_comes_back_bit_for_bit(ticket: Ticket) -> None:
    data, sizes = to_bytes(ticket)
    assert sizes.file == len(data)
    again = from_bytes(data)
    assert_same(ticket, again)
    assert to_bytes(again) == (data, sizes)


def test_kept_zeros_and_odd_bits_survive(tmp_path: Path) -> None:
    payloads = torch.tensor([0x7FC00001, -0x3FFFFF, -(2**31), 0, 0x7F800000], dtype=torch.int32).view(torch.float32)
    mask = Mask({"w": torch.arange(20).reshape(4, 5) % 3 > 0})
    ticket = Ticket(mask, {"w": payloads.repeat(4, 1), "b": payloads, "minus": torch.full((3,), -0.0)}, {})
    compress(ticket, tmp_path / "a.tdc")
    again = decompress(tmp_path / "a.tdc")
    assert_same(ticket, again)
    assert again.mask.kept == 13  # among them entries that are 0.0 and -0.0
    raw = again.values["w"][mask["w"]].view(torch.int32).tolist()
    assert 0 in raw
    assert -(2**31) in raw


@pytest.mark.parametrize(("dtype", "payload"), [(torch.float16, -1023), (torch.bfloat16, -127)])
def test_the_payload_of_an_only_survivor_survives(dtype: torch.dtype, payload: int) -> None:
    value = torch.tensor([0, payload, 0], dtype=torch.int16).view(dtype)
    ticket = Ticket(Mask({"x": torch.tensor([False, True, False])}), {"x": value}, {})
    again = from_bytes(to_bytes(ticket)[0])
    assert_same(ticket, again)
    assert again.values["x"].view(torch.int16).tolist() == [0, payload, 0]


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_layers_of_any_density(density: float) -> None:
    model = net(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(100, 70))
    ticket = shared_ticket(Ticket(random_mask(model, density), model.state_dict(), {}), 4)
    assert_same(ticket, from_bytes(to_bytes(ticket)[0]))


def test_bits_share_the_values_first(tmp_path: Path) -> None:
    model = net(nn.Linear(100, 60))
    ticket = Ticket(random_mask(model, 0.9), model.state_dict(), {"task": "t"})
    with pytest.raises(
        InputError, match=r"at most 4,096 distinct values of a layer, but '0.weight' has 5,\d\d\d: share"
    ):
        compress(ticket, tmp_path / "a.tdc")
    assert os.listdir(tmp_path) == []
    sizes = compress(ticket, tmp_path / "a.tdc", 5)
    again = decompress(tmp_path / "a.tdc")
    assert_same(again, shared_ticket(ticket, 5))
    assert again.origin["shared"] == {"bits": 5}
    assert [layer.distinct for layer in sizes.layers] == [32]
    assert sizes.file == (tmp_path / "a.tdc").stat().st_size
    with pytest.raises(InputError, match="1 to 12 bits, but got 13"):
        compress(ticket, tmp_path / "a.tdc", 13)


def test_a_lenet_of_8_percent_takes_less_than_a_thirtieth() -> None:
    """21,296 weights: 5 bits for the value, about 5.1 for the position; 1,640 bytes of biases; a kB of the rest."""
    model = net(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    ticket = shared_ticket(Ticket(random_mask(model, 0.08), model.state_dict(), {"task": "mnist-lenet300"}), 5)
    data, sizes = to_bytes(ticket)
    assert sizes.total.dense == 4 * 266_610
    assert len(data) < 4 * 266_610 / 30
    assert sizes.file - sizes.total.huffman < 1000  # names, shapes, origin, hash
    assert sizes.total.huffman < sizes.total.shared < sizes.total.pruned < sizes.total.dense
    assert_same(ticket, from_bytes(data))


# ---- sizes


def test_sizes_of_every_stage_by_hand() -> None:
    """Matrix: 3 kept at 0, 40 and 69, so a difference of 40 > 32 with one filler: 4 entries of 5 + 32 bits in 19 bytes;
    2 values: 4 entries of 5 + 1 bits in 3 bytes, and 8 bytes of values.

    Kernel: 2 kept at 0 and 40, within 8 bits: 2 x 40 bits; one value, which needs no index: 2 x 8 bits and 4 bytes.
    """
    matrix, kernel = torch.zeros(1, 70), torch.zeros(1, 8, 3, 3)
    matrix[0, 0] = matrix[0, 40] = 1
    matrix[0, 69] = 2
    kernel.view(-1)[0] = kernel.view(-1)[40] = 7
    whole = torch.arange(10.0)
    values = {"matrix": matrix, "kernel": kernel, "whole": whole, "bias": torch.arange(3.0), "ones": torch.ones(5)}
    mask = Mask({"matrix": matrix != 0, "kernel": kernel != 0, "whole": torch.ones(10, dtype=torch.bool)})
    _, sizes = to_bytes(Ticket(mask, values, {}))
    stages = [(s.name, s.kept, s.distinct, s.dense, s.pruned, s.shared) for s in sizes.layers]
    assert stages == [
        ("matrix", 3, 2, 280, 19, 11),
        ("kernel", 2, 1, 288, 10, 6),
        ("whole", 10, 10, 40, 40, 5 + 40),  # no positions; 4 bits to tell 10 values apart
    ]
    assert sizes.layers[0].huffman == 8 + 1 + 1 + 4  # values, two code lengths, 3 bits of indices, gaps 0, 39, 28
    assert sizes.layers[2].huffman == 40 + 5 + 5  # ten values, their code lengths, 34 bits
    assert (sizes.others.kept, sizes.others.dense, sizes.others.pruned, sizes.others.shared) == (8, 32, 32, 32)
    assert sizes.others.huffman == 12  # five times the same is in the manifest
    total = sizes.total
    assert (total.entries, total.kept, total.dense) == (70 + 72 + 10 + 8, 3 + 2 + 10 + 8, 280 + 288 + 40 + 32)
    assert sizes.ratio == total.dense / sizes.file
    assert [row["name"] for row in sizes.rows()] == ["matrix", "kernel", "whole", sizes.others.name, "total"]
    assert sizes.rows()[0]["pruned"] == 19


# ---- paths


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tdc"
    with pytest.raises(TicketError, match=f"no compressed ticket at {path}"):
        decompress(path)
    with pytest.raises(TicketError, match="no compressed ticket at"):
        decompress(tmp_path)
    with pytest.raises(TicketError, match=r"no compressed ticket at|can't read"):
        decompress("a\0b")
    with pytest.raises(InputError, match=r"can't write a compressed ticket to .*missing"):
        compress(small_ticket(), tmp_path / "missing" / "a.tdc")
    path.write_bytes(b"something else")
    with pytest.raises(TicketError, match=r"a\.tdc: not a Tombola file"):
        decompress(path)
    compress(small_ticket(), str(path))
    assert os.listdir(tmp_path) == ["a.tdc"]
    assert_same(decompress(str(path)), small_ticket())
    ticket = small_ticket().save(tmp_path / "a.ticket")
    with pytest.raises(TicketError, match="kind 'compressed', but got one of the kind 'ticket'"):
        decompress(ticket)
    huge = tmp_path / "huge.tdc"
    with huge.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TicketError, match="1,099,511,627,776 bytes, and at most"):
        decompress(huge)
    monkeypatch.setattr(compressed, "from_bytes", lambda data, **settings: Ticket(Mask({}), {}, {}))
    with pytest.raises(TombolaError, match="can't be read back as it was"):
        compress(small_ticket(), tmp_path / "b.tdc")
    assert not (tmp_path / "b.tdc").exists()


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(InputError, match=r"entries\.0\.name"):
        to_bytes(Ticket(Mask({}), {"x" * 1001: torch.ones(1)}, {}))
    with pytest.raises(InputError, match="a manifest must fit in"):
        to_bytes(Ticket(Mask({}), {}, {"long": "x" * HEADER_LIMIT}))


# ---- damaged and hostile files


def test_max_entries_bounds_the_values() -> None:
    ticket = small_ticket()
    data, count = to_bytes(ticket)[0], sum(value.numel() for value in ticket.values.values())
    assert from_bytes(data, max_entries=count) == ticket
    with pytest.raises(TicketError, match=f"has {count} values, and at most {count - 1} are read"):
        from_bytes(data, max_entries=count - 1)


def test_every_flipped_byte_and_every_truncation_is_noticed() -> None:
    ticket = small_ticket()
    data, _ = to_bytes(ticket)
    for at in range(len(data)):
        with pytest.raises(TicketError):
            from_bytes(data[:at])
        for flip in (0x01, 0xFF):
            broken = bytearray(data)
            broken[at] ^= flip
            try:
                assert from_bytes(bytes(broken)) == ticket
            except TicketError:
                continue


Change = Callable[[dict[str, Any], dict[str, Any], bytearray], object]


def forge(change: Change) -> bytes:
    """A compressed file with a right hash, of a manifest and data that ``change`` has had its way with."""
    _, tensors = unseal(to_bytes(small_ticket())[0], kind="compressed")
    manifest = json.loads(zlib.decompress(tensors["manifest"].numpy().tobytes()))
    data = bytearray(tensors["data"].numpy().tobytes())
    change(manifest, {entry["name"]: entry for entry in manifest["entries"]}, data)
    return container(zlib.compress(json.dumps(manifest).encode()), bytes(data))


def container(manifest: bytes, data: bytes, **more: torch.Tensor) -> bytes:
    tensors = {"manifest": manifest, "data": data}
    plain = {name: torch.tensor(list(raw), dtype=torch.uint8) for name, raw in tensors.items()}
    return seal({}, {**plain, **more}, kind="compressed")


def test_the_forgery_of_the_next_tests_is_otherwise_right() -> None:
    assert from_bytes(forge(lambda manifest, entries, data: None)) == small_ticket()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, e, d: m.clear(), "wrong at entries"),
        (lambda m, e, d: m.update(more=1), "wrong at more"),
        (lambda m, e, d: m.update(origin=[]), "wrong at origin"),
        (lambda m, e, d: m["entries"].append(m["entries"][0]), "lists a name twice"),
        (lambda m, e, d: m["entries"].pop(), "data take .* bytes, but it has"),
        (lambda m, e, d: d.append(0), "data take .* bytes, but it has"),
        (lambda m, e, d: d.pop(), "data take .* bytes, but it has"),
        (lambda m, e, d: e["0.weight"].update(shape=[10**9, 10**9]), "1,000,000,000,000,000,0.. values, and at most"),
        (lambda m, e, d: e["1.weight"].update(shape=[0, 2**62]), "values, and at most 1,073,741,824"),
        (lambda m, e, d: e["0.weight"].update(shape=[-6, -9]), r"wrong at entries.0.shape.0"),
        (lambda m, e, d: e["0.weight"].update(shape=[1] * 65), r"wrong at entries.0.shape"),
        (lambda m, e, d: e["0.weight"].update(shape=[9, 7]), "bytes|keep"),
        (lambda m, e, d: e["0.weight"].update(dtype="F5"), "unknown dtype, 'F5'"),
        (lambda m, e, d: e["0.weight"].update(dtype="F64"), "bytes"),
        (lambda m, e, d: e["0.weight"].update(dtype="BOOL"), "can't be 4 BOOL values"),
        (lambda m, e, d: e["0.bias"].update(dtype="BOOL", shape=[24]), "can't be 24 BOOL values"),
        (lambda m, e, d: e["0.weight"].pop("values"), "a mask without values"),
        (lambda m, e, d: e["0.weight"].pop("mask"), "values without a mask"),
        (lambda m, e, d: e["0.weight"].update(constant="00000000"), "or both"),
        (lambda m, e, d: e["1.weight"].update(constant="00"), "1 bytes can't be 1 F32 values"),
        (lambda m, e, d: e["1.weight"].update(constant="0000000g"), r"wrong at entries.2.constant"),
        (lambda m, e, d: e["1.weight"].pop("constant"), "data take"),
        (lambda m, e, d: e["0.weight"]["mask"].update(kept=55), "keep|tell"),
        (lambda m, e, d: e["0.weight"]["mask"].update(kept=2**70), "can't keep|tell"),
        (lambda m, e, d: e["0.weight"]["mask"].update(kept=-1), r"wrong at entries.0.mask.kept"),
        (lambda m, e, d: e["0.weight"]["mask"].update(kept=1), "keep|tell"),
        (lambda m, e, d: e["0.weight"]["mask"].update(code="zip"), "no mask code 'zip'"),
        (lambda m, e, d: e["0.weight"]["mask"].update(bytes=2**70), "data take"),
        (lambda m, e, d: e["0.weight"]["values"].update(distinct=4097), r"wrong at entries.0.values.distinct"),
        (lambda m, e, d: e["0.weight"]["values"].update(distinct=4096), "can't be 4,096 F32 values"),
        (lambda m, e, d: e["0.weight"]["values"].update(distinct=0), "bytes"),
        (lambda m, e, d: e["0.weight"]["values"].update(bytes=True), r"wrong at entries.0.values.bytes"),
        (lambda m, e, d: d.__setitem__(slice(None), b"\xff" * len(d)), "tell|keep|beyond"),
    ],
)
def test_hostile_manifests_are_refused(change: Change, reason: str) -> None:
    with pytest.raises(TicketError, match=reason):
        from_bytes(forge(change))


@given(st.data())
@settings(deadline=None)
def test_hostile_data_are_refused_or_a_ticket(drawn: st.DataObject) -> None:
    def change(manifest: dict[str, Any], entries: dict[str, Any], data: bytearray) -> None:
        for _ in range(drawn.draw(st.integers(1, 3))):
            data[drawn.draw(st.integers(0, len(data) - 1))] = drawn.draw(st.integers(0, 255))

    try:
        assert from_bytes(forge(change)).mask.keys() == small_ticket().mask.keys()
    except TicketError:
        return


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (container(b"", b""), "cut off"),
        (container(b"no zlib", b""), "can't be read: Error -3"),
        (container(zlib.compress(b"{}") + b"more", b""), "something after it"),
        (container(zlib.compress(b"{}")[:-3], b""), "cut off"),
        (container(zlib.compress(b"{"), b""), "can't be read"),
        (container(zlib.compress(b"\xff"), b""), "can't be read"),
        (container(zlib.compress(b"[" * 10**6), b""), "can't be read"),
        (container(zlib.compress(b"1" * 10_000), b""), "can't be read"),
        (container(zlib.compress(b"[]"), b""), "manifest of the compressed ticket is wrong"),
        (container(zlib.compress(b" " * (HEADER_LIMIT + 1)), b""), "longer than 16,777,216 bytes"),
        (container(b"", b"", more=torch.ones(1)), "two tensors of bytes"),
        (seal({}, {"manifest": torch.ones(1), "data": torch.ones(1)}, kind="compressed"), "two tensors of bytes"),
        (seal({"x": 1}, {}, kind="compressed"), "two tensors of bytes"),
    ],
)
def test_hostile_containers_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(TicketError, match=reason):
        from_bytes(data)
