import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tombola.atomic import write_atomic
from tombola.errors import InputError, TicketError
from tombola.sealed import DTYPES, canonical_json, content_hash, plain_json, seal, tensor_bytes, unseal

torch.set_num_threads(1)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    raw = bytes(byte & 1 for byte in raw) if dtype == torch.bool else raw
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(tensor_bytes(a), tensor_bytes(b))


@given(st.dictionaries(st.text(), JSON, max_size=3), st.dictionaries(st.text(max_size=5), tensors(), max_size=4))
@settings(deadline=None)
def test_what_is_sealed_is_unsealed_bit_for_bit(manifest, content):
    data = seal(manifest, content, kind="thing")
    found, loaded = unseal(data, kind="thing")
    assert canonical_json(found) == canonical_json(manifest)
    assert loaded.keys() == content.keys()
    assert all(same(loaded[name], content[name]) for name in content)
    assert seal(found, dict(reversed(loaded.items())), kind="thing") == data


def test_the_order_of_keys_does_not_matter_and_everything_else_does():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3, 4])
    base = content_hash("k", {"a": 1, "b": 2}, {"x": one, "y": two})
    assert content_hash("k", {"b": 2, "a": 1}, {"y": two, "x": one}) == base
    others = [
        content_hash("l", {"a": 1, "b": 2}, {"x": one, "y": two}),
        content_hash("k", {"a": 1, "b": 3}, {"x": one, "y": two}),
        content_hash("k", {"a": 1, "b": 2}, {"x": one, "z": two}),
        content_hash("k", {"a": 1, "b": 2}, {"x": one.reshape(1, 2), "y": two}),
        content_hash("k", {"a": 1, "b": 2}, {"x": one.view(torch.int32), "y": two}),
        content_hash("k", {"a": 1, "b": 2}, {"x": -one, "y": two}),
        content_hash("k", {"a": 1, "b": 2}, {"x": one}),
    ]
    assert len({base, *others}) == 8


def test_tensors_may_share_memory_and_have_any_strides():
    base = torch.arange(12.0).reshape(3, 4)
    content = {"base": base, "same": base, "turned": base.T, "part": base[1:], "wide": base[:, :1].expand(3, 5)}
    content["conjugate"] = torch.tensor([1 + 2j]).conj()
    content["parameter"] = torch.nn.Parameter(base[0])
    _, loaded = unseal(seal({}, content, kind="k"), kind="k")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in content.items())


def test_any_safetensors_reader_opens_a_sealed_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(seal({"a": [1, None]}, {"x": torch.ones(2)}, kind="k"))
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("x"), torch.ones(2))
        document = json.loads(file.metadata()["tombola"])
    assert (document["kind"], document["format"], document["manifest"]) == ("k", 1, {"a": [1, None]})


def test_manifests_come_back_as_plain_json():
    data = seal({"t": (1, 2), "n": {2: "b", 10: "a"}, "inf": math.inf, "nan": math.nan}, {}, kind="k")
    manifest, _ = unseal(data, kind="k")
    assert math.isnan(manifest.pop("nan"))
    assert manifest == {"t": [1, 2], "n": {"2": "b", "10": "a"}, "inf": math.inf}
    assert canonical_json({"b": 1.5, "a": "é"}) == '{"a":"\\u00e9","b":1.5}'
    origin = {"list": [1]}
    plain_json(origin)["list"].append(2)
    assert origin == {"list": [1]}


def test_what_is_not_json_or_not_storable_is_refused():
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for bad in ({"x": {1}}, {"x": loop}, {"x": deep}, {"x": torch.ones(1)}, {"x": {1: 2, "1": 3}}):
        with pytest.raises(InputError, match="JSON"):
            seal(bad, {}, kind="k")
    for tensor in (torch.ones(1, dtype=torch.complex128), torch.ones(2).to_sparse(), torch.ones([1] * 65)):
        with pytest.raises(InputError, match="'x' is"):
            seal({}, {"x": tensor}, kind="k")
    with pytest.raises(InputError, match="'__metadata__'"):
        seal({}, {"__metadata__": torch.ones(1)}, kind="k")
    with pytest.raises(InputError, match=r"fit in 16,777,216 bytes"):
        seal({"x": "x" * 2**24}, {}, kind="k")


def forged(document, content=None):
    """A safetensors file with any metadata under Tombola's name."""
    text = document if isinstance(document, str) else json.dumps(document)
    return save_tensors(content or {}, {"tombola": text})


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes):
    """A file whose hash is right, and one tensor's entry in the header changed."""
    tensor = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changes
    digest = content_hash("k", {}, {"x": torch.tensor([7, 8], dtype=torch.uint8)})
    text = json.dumps({"format": 1, "kind": "k", "manifest": {}, "sha256": digest})
    return raw({"__metadata__": {"tombola": text}, "x": tensor}, b"\x07\x08")


def test_the_forgery_of_the_next_test_is_otherwise_right():
    assert torch.equal(unseal(entry(), kind="k")[1]["x"], torch.tensor([7, 8], dtype=torch.uint8))


GOOD = {"format": 1, "kind": "k", "manifest": {}, "sha256": content_hash("k", {}, {})}
DEEP = b"[" * 10_000_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "only 0 bytes"),
        (b"PK\x03\x04", "only 4 bytes"),
        ((10**12).to_bytes(8, "little") + b"{}", "1,000,000,000,000 bytes"),
        (b"\xff" * 100, "at most 16,777,216"),
        ((100).to_bytes(8, "little") + b"{}", "truncated"),
        (raw(b"not json"), "isn't JSON"),
        (raw("{}".encode("utf-16")), "isn't JSON"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "isn't JSON"),
        (raw(b"[1]"), "isn't a JSON object"),
        (raw(DEEP), "nested too deep"),
        (forged('{"manifest":' + DEEP.decode()), "nested too deep"),
        (raw({}), "metadata entry 'tombola' is missing"),
        (raw({"__metadata__": 3}), "metadata entry 'tombola' is missing"),
        (save_tensors({"x": torch.ones(1)}), "metadata entry 'tombola' is missing"),
        (forged("nonsense"), "isn't JSON"),
        (forged("[]"), "isn't a JSON object"),
        (forged('{"format":1,"format":1}'), "a key occurs twice"),
        (raw(b'{"x":{},"x":{}}'), "a key occurs twice"),
        (forged({"format": 1}), "metadata isn't that"),
        (forged(GOOD | {"format": 2}), "format 2.*upgrade"),
        (forged(GOOD | {"format": 0}), "metadata isn't that"),
        (forged(GOOD | {"format": True}), "metadata isn't that"),
        (forged(GOOD | {"format": "1"}), "metadata isn't that"),
        (forged(GOOD | {"more": 1}), "metadata isn't that"),
        (forged(GOOD | {"manifest": []}), "manifest isn't"),
        (forged(GOOD | {"kind": "other"}), "kind 'k', but got one of the kind 'other'"),
        (forged(GOOD | {"kind": ["k"]}), "kind"),
        (forged(GOOD | {"sha256": "0" * 64}), "content has the hash"),
        (forged(GOOD | {"sha256": None}), "content has the hash"),
        (forged(GOOD, {"x": torch.ones(1)}), "content has the hash"),
        (entry(dtype="F4"), "dtype 'F4'"),
        (entry(dtype=["U8"]), "dtype"),
        (entry(dtype="I8"), "content has the hash"),
        (entry(shape=[2, 1]), "content has the hash"),
        (entry(shape=[-2]), "no valid shape"),
        (entry(shape=[2.0]), "no valid shape"),
        (entry(shape=None), "no valid shape"),
        (entry(shape=[1] * 65), "can't have the shape"),
        (entry(shape=[0, 2**40, 2**40]), "can't have the shape"),
        (entry(shape=[10**9, 10**4]), "tensors can't be read"),
        (entry(data_offsets=[0, 1]), "tensors can't be read"),
        (entry(data_offsets=[1, 3]), "tensors can't be read"),
        (entry(data_offsets=[-1, 1]), "tensors can't be read"),
        (entry(data_offsets=None), "tensors can't be read"),
        (entry() + b"more", "tensors can't be read"),
        (entry()[:-1], "tensors can't be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_hostile_and_damaged_files_are_refused(data, reason):
    with pytest.raises(TicketError, match=reason):
        unseal(data, kind="k")


def test_overlapping_tensors_are_refused():
    ones = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    header = {"__metadata__": {"tombola": json.dumps(GOOD)}, "x": ones, "y": ones | {"data_offsets": [1, 3]}}
    with pytest.raises(TicketError, match="can't be read"):
        unseal(raw(header, b"abc"), kind="k")


def test_bool_tensors_hold_nothing_but_0_and_1():
    odd = torch.tensor([1, 2], dtype=torch.uint8).view(torch.bool)
    with pytest.raises(TicketError, match="neither 0 nor 1"):
        unseal(seal({}, {"x": odd}, kind="k"), kind="k")


def test_nothing_is_unpickled(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "pickle")
    with pytest.raises(TicketError):
        unseal((tmp_path / "pickle").read_bytes(), kind="k")


def test_the_header_has_a_limit():
    data = seal({"x": "y" * 1000}, {}, kind="k")
    with pytest.raises(TicketError, match="at most 1,000"):
        unseal(data, kind="k", limit=1000)
    assert unseal(data, kind="k", limit=2000)[0] == {"x": "y" * 1000}


def test_every_flipped_byte_and_every_truncation_is_noticed():
    content = {"a": torch.tensor([1.5, -0.0]), "b": torch.tensor(3), "c": torch.empty(0, 2)}
    data = seal({"m": [1, "two", None]}, content, kind="k")
    for at in range(len(data)):
        with pytest.raises(TicketError):
            unseal(data[:at], kind="k")
        for flip in (0x01, 0x20, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= flip
            try:
                manifest, loaded = unseal(bytes(broken), kind="k")
            except TicketError:
                continue
            assert manifest == {"m": [1, "two", None]}
            assert all(same(loaded[name], content[name]) for name in content)


def test_seal_leaves_its_input_alone():
    base = torch.arange(4.0)
    loaded = load_tensors(seal({}, {"x": base, "y": base}, kind="k"))
    loaded["x"][0] = 9
    assert base.tolist() == [0, 1, 2, 3]
    assert loaded["y"][0] == 0


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    seen = []

    def fail(*args):
        seen.extend(name for name in os.listdir(tmp_path) if name != "file")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    assert len(seen) == 1
    assert seen[0].startswith(".")
    assert seen[0].endswith(".tmp")


def test_write_atomic_says_what_the_system_says(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "file", b"")
    with pytest.raises(OSError, match="irectory"):
        write_atomic(tmp_path, b"")
    assert not list(Path(tmp_path).parent.glob(".*.tmp"))
