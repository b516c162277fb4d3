import copy
import json
import math
import os
import struct
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tombola.errors import InputError, TicketError
from tombola.mask import Mask
from tombola.sealed import DTYPES, seal, tensor_bytes, unseal
from tombola.ticket import Ticket, load

torch.set_num_threads(1)

ORIGIN = {
    "task": "mnist-lenet300",
    "method": "imp",
    "seed": 0,
    "round": 20,
    "recipe": {
        "optimizer": "adam",
        "learning_rate": 0.0012,
        "weight_decay": 0.0,
        "batch_size": 60,
        "length": "50000it",
        "schedule": {"kind": "constant", "milestones": [], "warmup": "0it"},
        "engine": "sparse",
        "precision": "float32",
        "evaluate_every": "100it",
        "augmentation": None,
        "validation": 5000,
    },
    "data": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4",
    "versions": {"tombola": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.3.5", "python": "3.11.7"},
    "results": {"early_stop_step": 12300, "validation_loss": 0.0731239471, "test_accuracy": 0.9812},
}


def lenet():
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def small():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def small_ticket(origin=None):
    torch.manual_seed(0)
    net = small()
    mask = Mask({name: torch.rand(m.shape) < 0.5 for name, m in Mask.full(net).items()})
    return Ticket(mask, net.state_dict(), origin or {"task": "t", "seed": 3})


def highest(scores, density):
    """The mask of the entries with the highest scores, over all layers."""
    kept = round(density * sum(s.numel() for s in scores.values()))
    threshold = torch.cat([s.flatten() for s in scores.values()]).topk(kept).values[-1]
    return Mask({name: s >= threshold for name, s in scores.items()})


def uniform_mask(density):
    generator = torch.Generator().manual_seed(0)
    return highest({n: torch.rand(m.shape, generator=generator) for n, m in Mask.full(lenet()).items()}, density)


def magnitude_like_mask(density):
    """Density uneven over rows and columns, none of the border pixels, and more of the upper layers."""
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for name, m in Mask.full(lenet()).items():
        uneven = (
            torch.randn(m.shape[0], 1, generator=generator).exp() * torch.randn(m.shape[1], generator=generator).exp()
        )
        scores[name] = torch.rand(m.shape, generator=generator).pow(-0.5) * uneven / m.shape[1] ** 0.5
    pixels = torch.zeros(28, 28)
    pixels[4:24, 4:24] = 1
    scores["0.weight"] *= pixels.flatten()
    return highest(scores, density)


def bits(ticket):
    return {n: (v.dtype, tuple(v.shape), bytes(tensor_bytes(v).numpy())) for n, v in ticket.values.items()}


def assert_same(one, two):
    assert one == two
    assert one.mask == two.mask
    assert list(one.mask) == list(two.mask)
    assert list(one.values) == list(two.values)
    assert bits(one) == bits(two)
    assert json.dumps(one.origin) == json.dumps(two.origin)
    assert one.digest == two.digest


@st.composite
def tickets(draw):
    masks, values = {}, {}
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(list(DTYPES.values())))
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        entries = math.prod(shape)
        raw = draw(st.binary(min_size=entries * dtype.itemsize, max_size=entries * dtype.itemsize))
        raw = bytes(byte & 1 for byte in raw) if dtype == torch.bool else raw
        name = draw(st.sampled_from(("fc.weight", "masks", "values.", "ü", ""))) + str(number)
        empty = torch.empty(shape, dtype=dtype)
        values[name] = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else empty
        if draw(st.booleans()):
            masks[name] = torch.tensor(
                draw(st.lists(st.booleans(), min_size=entries, max_size=entries)), dtype=torch.bool
            )
            masks[name] = masks[name].reshape(shape)
    origin = draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.floats(), max_size=2))
    return Ticket(Mask(masks), values, origin)


@given(tickets())
@settings(deadline=None)
def test_a_ticket_comes_back_bit_for_bit(ticket):
    data = ticket.to_bytes()
    again = Ticket.from_bytes(data)
    assert_same(ticket, again)
    assert again.to_bytes() == data
    for name, mask in again.mask.items():
        assert not tensor_bytes(again.values[name][~mask]).any()


def test_nan_payloads_and_negative_zeros_survive_a_file(tmp_path):
    payloads = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7F800001, -(2**31), 0], dtype=torch.int32).view(torch.float32)
    values = {
        "a": payloads,
        "masked": payloads.repeat(2),
        "minus": torch.full((7,), -0.0),
        "nan": payloads[:1].repeat(9),
    }
    ticket = Ticket(Mask({"masked": torch.arange(10) % 3 > 0}), values, {})
    again = load(ticket.save(tmp_path / "a.ticket"))
    assert_same(ticket, again)
    assert bits(again)["a"][2] == struct.pack("<5i", 0x7FC00001, -0x3FFFFF, 0x7F800001, -(2**31), 0)
    assert bits(again)["minus"][2] == struct.pack("<7f", *[-0.0] * 7)


@pytest.mark.parametrize(("dtype", "payload"), [(torch.float16, -1023), (torch.bfloat16, -127)])
def test_the_payload_of_an_only_survivor_survives_a_file(dtype, payload):
    value = torch.tensor([0, payload, 0], dtype=torch.int16).view(dtype)
    ticket = Ticket(Mask({"x": torch.tensor([False, True, False])}), {"x": value}, {})
    again = Ticket.from_bytes(ticket.to_bytes())
    assert_same(ticket, again)
    assert again.values["x"].view(torch.int16).tolist() == [0, payload, 0]


@pytest.mark.parametrize("make_mask", [uniform_mask, magnitude_like_mask])
def test_a_ticket_of_1_2_percent_takes_less_than_20000_bytes(make_mask):
    torch.manual_seed(0)
    ticket = Ticket(make_mask(0.012), lenet().state_dict(), ORIGIN)
    assert ticket.mask.kept == pytest.approx(0.012 * 266_200, abs=3)
    data = ticket.to_bytes()
    assert len(data) < 20_000
    assert_same(ticket, Ticket.from_bytes(data))


def test_equal_values_are_stored_once():
    mask = Mask({"w": torch.eye(1000, dtype=torch.bool)})
    ones = Ticket(mask, {"w": torch.ones(1000, 1000), "b": torch.full((5000,), -0.0)}, {})
    assert len(ones.to_bytes()) < 3000  # 1000 + 5000 values of 4 bytes, one by one
    assert_same(ones, Ticket.from_bytes(ones.to_bytes()))


def test_values_are_copied_and_what_is_pruned_is_zero():
    net = small()
    with torch.no_grad():
        net[0].weight.fill_(-math.inf)
    mask = Mask({"0.weight": torch.arange(20).reshape(4, 5) % 2 == 0})
    ticket = Ticket(mask, net.state_dict(), {"a": [1]})
    assert (ticket.values["0.weight"] == torch.where(mask["0.weight"], -math.inf, 0.0)).all()
    assert bool((net[0].weight == -math.inf).all())
    with torch.no_grad():
        net[0].bias.fill_(7)
    assert not (ticket.values["0.bias"] == 7).any()


def test_values_in_any_memory_layout():
    turned = torch.arange(6.0).reshape(2, 3).T
    ticket = Ticket(Mask({"w": turned > 1}), {"w": turned.requires_grad_(), "v": torch.ones(1).expand(4)}, {})
    assert ticket.values["w"].is_contiguous()
    assert not ticket.values["w"].requires_grad
    assert ticket.values["w"].tolist() == [[0, 3], [0, 4], [2, 5]]
    assert_same(ticket, Ticket.from_bytes(ticket.to_bytes()))


def test_density_digest_equality_and_words():
    ticket = small_ticket()
    assert ticket.density == ticket.mask.density
    other = small_ticket({"task": "t", "seed": 4})
    assert ticket != other
    assert ticket.digest == other.digest
    assert ticket == small_ticket()
    assert hash(ticket) == hash(small_ticket())
    values = {**ticket.values, "0.bias": ticket.values["0.bias"] + 1}
    assert Ticket(ticket.mask, values, ticket.origin).digest != ticket.digest
    assert Ticket(Mask({}), ticket.values, ticket.origin).digest != ticket.digest
    assert ticket != "ticket"
    assert repr(ticket) == f"Ticket(task t, seed 3, density {ticket.density:.4%}, {ticket.digest[:12]})"
    assert_same(ticket, copy.deepcopy(ticket))


def test_the_mask_takes_the_order_of_the_values():
    """So that a shuffle, which draws layer by layer, is the same before and after a file."""
    ticket = small_ticket()
    turned = Ticket(
        Mask({name: ticket.mask[name] for name in reversed(list(ticket.mask))}), ticket.values, ticket.origin
    )
    assert list(turned.mask) == ["0.weight", "3.weight"]


def test_the_constructor_refuses_what_does_not_fit():
    values = {"weight": torch.ones(2, 3)}
    with pytest.raises(InputError, match=r"'wieght', which has no values. Did you mean 'weight'"):
        Ticket(Mask({"wieght": torch.ones(2, 3, dtype=torch.bool)}), values, {})
    with pytest.raises(InputError, match=r"shape \(3, 2\), but its values have shape \(2, 3\)"):
        Ticket(Mask({"weight": torch.ones(3, 2, dtype=torch.bool)}), values, {})
    with pytest.raises(InputError, match="'x' is int"):
        Ticket(Mask({}), {"x": 3}, {})
    with pytest.raises(InputError, match=r"'x' is torch.complex128"):
        Ticket(Mask({}), {"x": torch.ones(1, dtype=torch.complex128)}, {})
    with pytest.raises(InputError, match="JSON"):
        Ticket(Mask({}), {}, {"when": object()})


def test_what_could_not_be_read_is_not_written():
    with pytest.raises(InputError, match=r"entries\.0\.name"):
        Ticket(Mask({}), {"x" * 1001: torch.ones(1)}, {}).to_bytes()


def test_the_model_has_the_values_and_the_mask():
    ticket = small_ticket()
    net = ticket.model(small)
    assert all(torch.equal(value, ticket.values[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        net[0].weight.fill_(1)
    assert not bool((ticket.values["0.weight"] == 1).any())


def test_the_model_is_that_of_the_task(monkeypatch):
    tasks = types.ModuleType("tombola.tasks")
    tasks.get_task = lambda name: types.SimpleNamespace(model={"t": small}[name])
    monkeypatch.setitem(sys.modules, "tombola.tasks", tasks)
    assert isinstance(small_ticket().model()[1], nn.BatchNorm1d)


def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"doesn't fit the net: (?s:.*)0\.weight"):
        small_ticket().model(lenet)
    with pytest.raises(InputError, match="names no task"):
        small_ticket({"seed": 1}).model()


def test_save_replaces_and_load_reads(tmp_path):
    path = tmp_path / "a.ticket"
    path.write_bytes(b"something else")
    assert small_ticket().save(str(path)) == path
    assert os.listdir(tmp_path) == ["a.ticket"]
    assert_same(load(str(path)), small_ticket())
    with pytest.raises(InputError, match=r"can't write a ticket to .*missing"):
        small_ticket().save(tmp_path / "missing" / "a.ticket")


def test_paths_without_a_ticket(tmp_path):
    missing = tmp_path / "missing.ticket"
    with pytest.raises(TicketError, match=f"^no ticket file at {missing}$"):
        load(missing)
    with pytest.raises(TicketError, match="a folder, not a ticket file"):
        load(tmp_path)
    with pytest.raises(TicketError, match="device or a pipe"):
        load("/dev/zero")
    with pytest.raises(TicketError, match="can't read"):
        load("a\0b")
    empty = tmp_path / "empty.ticket"
    empty.touch()
    with pytest.raises(TicketError, match=r"empty.ticket: .*only 0 bytes"):
        load(empty)
    huge = tmp_path / "huge.ticket"
    with huge.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TicketError, match="1,099,511,627,776 bytes, and at most"):
        load(huge)


def test_max_entries_bounds_the_values():
    ticket = small_ticket()
    count = sum(value.numel() for value in ticket.values.values())
    assert Ticket.from_bytes(ticket.to_bytes(), max_entries=count) == ticket
    with pytest.raises(TicketError, match=f"has {count} values, and at most {count - 1} are read"):
        Ticket.from_bytes(ticket.to_bytes(), max_entries=count - 1)


def test_every_flipped_byte_and_every_truncation_is_noticed():
    ticket = small_ticket()
    data = ticket.to_bytes()
    for at in range(len(data)):
        with pytest.raises(TicketError):
            Ticket.from_bytes(data[:at])
        for flip in (0x01, 0xFF):
            broken = bytearray(data)
            broken[at] ^= flip
            try:
                assert Ticket.from_bytes(bytes(broken)) == ticket
            except TicketError:
                continue


def forge(change, *, kind="ticket"):
    """A ticket file with a right hash, of a manifest and tensors that ``change`` has had its way with."""
    manifest, tensors = unseal(small_ticket().to_bytes(), kind="ticket")
    entries = {entry["name"]: entry for entry in manifest["entries"]}
    change(manifest, entries, tensors)
    return seal(manifest, tensors, kind=kind)


def test_the_forgery_of_the_next_test_is_otherwise_right():
    assert Ticket.from_bytes(forge(lambda manifest, entries, tensors: None)) == small_ticket()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, e, t: m.clear(), "wrong at entries"),
        (lambda m, e, t: m.update(more=1), "wrong at more"),
        (lambda m, e, t: m.update(origin=[]), "wrong at origin"),
        (lambda m, e, t: m.update(entries={}), "wrong at entries"),
        (lambda m, e, t: m["entries"].append(m["entries"][0]), "twice"),
        (lambda m, e, t: m.update(entries=[{"name": "", "shape": [], "dtype": ""}] * 100_001), "at most 100000 items"),
        (lambda m, e, t: m["entries"].pop(), "tensors are not those"),
        (lambda m, e, t: e["0.weight"].update(shape=[10**9, 10**9]), "1,000,000,000,000,000,0.. values"),
        (lambda m, e, t: e["1.weight"].update(shape=[2**30 + 1]), "values, and at most 1,073,741,824"),
        (lambda m, e, t: e["1.weight"].update(shape=[0, 2**62]), "values, and at most 1,073,741,824"),
        (lambda m, e, t: e["0.weight"].update(shape=[-4, -5]), r"wrong at entries.0.shape.0"),
        (lambda m, e, t: e["0.weight"].update(shape=[4, 5.0]), r"wrong at entries.0.shape.1"),
        (lambda m, e, t: e["0.weight"].update(shape=[1] * 65), r"wrong at entries.0.shape"),
        (lambda m, e, t: e["0.weight"].update(shape=[5, 5]), "mask|bytes"),
        (lambda m, e, t: e["0.weight"]["mask"].update(kept=21), "keeps 21 of the 20 of '0.weight'"),
        (lambda m, e, t: e["0.weight"]["mask"].update(kept=2**70), "keeps .* of the 20"),
        (lambda m, e, t: e["0.weight"]["mask"].update(kept=-1), r"wrong at entries.0.mask.kept"),
        (lambda m, e, t: e["0.weight"]["mask"].update(kept=True), r"wrong at entries.0.mask.kept"),
        (lambda m, e, t: e["0.weight"]["mask"].update(kept=1), r"shape \(1,\) for '0.weight'"),
        (lambda m, e, t: e["0.weight"]["mask"].update(code="zip"), "no mask code 'zip'"),
        (lambda m, e, t: e["0.weight"]["mask"].update(code="z" * 99), r"wrong at entries.0.mask.code"),
        (lambda m, e, t: e["0.weight"]["mask"].update(bytes=1), "masks take 2 bytes, but it has 4"),
        (lambda m, e, t: e["0.weight"]["mask"].update(bytes=2**70), "masks take"),
        (lambda m, e, t: e["0.weight"].pop("mask"), "masks take 1 bytes, but it has 4"),
        (lambda m, e, t: e["0.weight"].update(dtype="F64"), "needs F64 values"),
        (lambda m, e, t: e["0.weight"].update(dtype="F5"), "unknown dtype, 'F5'"),
        (lambda m, e, t: e["1.weight"].update(constant="00"), "1 bytes can't be 1 F32 values"),
        (lambda m, e, t: e["1.weight"].update(constant="0000000g"), r"wrong at entries.2.constant"),
        (lambda m, e, t: e["1.weight"].update(constant="00000000\n"), r"wrong at entries.2.constant"),
        (lambda m, e, t: e["1.weight"].update(dtype="BOOL", constant="02"), "can't be 1 BOOL values"),
        (lambda m, e, t: e["1.weight"].pop("constant"), "tensors are not those.*values.1.weight"),
        (lambda m, e, t: t.pop("values.0.bias"), "tensors are not those.*values.0.bias"),
        (lambda m, e, t: t.pop("masks"), "tensors are not those.*masks"),
        (lambda m, e, t: t.update(more=torch.ones(1)), "tensors are not those.*more"),
        (lambda m, e, t: t.update({"values.0.bias": torch.ones(5)}), r"shape \(4,\) for '0.bias'"),
        (lambda m, e, t: t.update({"values.0.bias": torch.ones(4).int()}), "for '0.bias', but has torch.int32"),
        (lambda m, e, t: t.update(masks=t["masks"].float()), "masks take"),
        (lambda m, e, t: t.update(masks=torch.full_like(t["masks"], 255)), "beyond its end|keep"),
    ],
)
def test_hostile_manifests_are_refused(change, reason):
    with pytest.raises(TicketError, match=reason):
        Ticket.from_bytes(forge(change))


def test_other_kinds_of_files_are_refused():
    with pytest.raises(TicketError, match="kind 'ticket', but got one of the kind 'checkpoint'"):
        Ticket.from_bytes(forge(lambda manifest, entries, tensors: None, kind="checkpoint"))
    with pytest.raises(TicketError, match="1,000,000,000,000 bytes"):
        Ticket.from_bytes((10**12).to_bytes(8, "little") + b"{}")
    with pytest.raises(TicketError, match="nested too deep"):
        Ticket.from_bytes((10**7).to_bytes(8, "little") + b"[" * 10**7)


def test_a_deeply_nested_origin_is_read_or_refused():
    """Python gives up on nesting at a depth of its own, be it while reading, hashing or copying the origin."""
    read = 0
    for depth in range(500, 1000):
        nested: list[object] = []
        for _ in range(depth):
            nested = [nested]
        try:
            data = seal(
                {"entries": [], "origin": {"x": nested}}, {"masks": torch.empty(0, dtype=torch.uint8)}, kind="ticket"
            )
        except InputError:
            break
        try:
            read += Ticket.from_bytes(data).origin == {"x": nested}
        except TicketError:
            continue
    assert 0 < read < 500
