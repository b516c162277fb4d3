"""SVHN and the reader of its MATLAB files: against SciPy's writer, byte by byte, and on damaged files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat  # type: ignore[import-untyped]
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import sources
from tombola.tasks.data.matlab import read_mat
from tombola.tasks.data.svhn import load_svhn

LIMIT = 10**6


pytestmark = pytest.mark.usefixtures("no_configuration")


def arrays(n: int, **changes: Any) -> dict[str, Any]:
    """X and y as SVHN has them: y is of doubles with the digit 0 as 10."""
    x = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    y = np.arange(1, n + 1, dtype=float)[:, None] % 11
    y[y == 0] = 10
    return {"X": x, "y": y} | changes


def write(root: Path, part: str, n: int, *, compressed: bool = True, **changes: Any) -> dict[str, Any]:
    made = arrays(n, **changes)
    savemat(root / f"{part}_32x32.mat", made, do_compression=compressed)
    return made


@pytest.mark.parametrize("compressed", [True, False])
def test_images_are_put_upright_and_class_10_is_the_digit_0(tmp_path: Path, compressed: bool) -> None:
    made = [write(tmp_path, part, n, compressed=compressed) for part, n in (("train", 13), ("test", 3))]
    for data, own in zip(load_svhn(tmp_path, download=False), made, strict=True):
        n = own["X"].shape[3]
        assert data.x.shape == (n, 3, 32, 32)
        for example in range(n):
            for colour in range(3):
                assert np.array_equal(data.x[example, colour].numpy(), own["X"][:, :, colour, example])
        assert data.y.tolist() == [int(label) % 10 for label in own["y"][:, 0]]
        assert data.y.dtype == torch.int64
    assert 0 in load_svhn(tmp_path, download=False)[0].y


def test_what_does_not_fit_is_refused_with_the_rule(tmp_path: Path) -> None:
    write(tmp_path, "test", 2)
    x = arrays(2)["X"]
    for changes, rule in (
        ({"y": np.array([[1], [11]])}, "labels in .* must be 1 to 10, but one is 11"),
        ({"y": np.array([[0], [1]])}, "but one is 0"),
        ({"y": np.array([[1.5], [1]])}, "but one is 1.5"),
        ({"y": np.array([[np.nan], [1]])}, "but one is nan"),
        ({"y": np.array([[1], [2], [3]])}, r"y of shape \(N, 1\), with N above 0, but .* y has shape \(3, 1\)"),
        ({"X": x[:, :, :, :0], "y": np.zeros((0, 1))}, "with N above 0"),
        ({"X": x.astype(np.float32)}, "X is float32"),
        ({"X": x[:31]}, r"X is uint8 of shape \(31, 32, 3, 2\)"),
        ({"X": x + 1j}, "no array of numbers named X"),
        ({"X": "text"}, "no array of numbers named X"),
        ({"X": {"a": 1}}, "no array of numbers named X"),
    ):
        write(tmp_path, "train", 2, **changes)
        with pytest.raises(DataError, match=rule) as caught:
            load_svhn(tmp_path, download=False)
        assert str(tmp_path / "train_32x32.mat") in str(caught.value)


def test_missing_files_come_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    write(tmp_path / "made", "train", 3)
    write(tmp_path / "made", "test", 2)
    files = {path.name: path.read_bytes() for path in sorted((tmp_path / "made").iterdir())}
    names = [file.name for file in sources.SVHN.files]
    listed = tuple(remote(files[name], name=name) for name in names)  # type: ignore[no-untyped-call]
    with serving(Web(files)) as web:
        made = sources.Source("svhn", "SVHN", "", listed, (web.url,))
        monkeypatch.setattr("tombola.tasks.data.svhn.SVHN", made)
        monkeypatch.setitem(sources.SOURCES, "svhn", made)
        for _ in range(2):
            train, test = load_svhn(tmp_path / "root")
    assert (len(train), len(test)) == (3, 2)
    assert [path for path, _ in web.asked] == ["/train_32x32.mat", "/test_32x32.mat"]


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SVHN") as caught:
        load_svhn(tmp_path, download=False)
    for name in ("train_32x32.mat", "test_32x32.mat"):
        assert f"{tmp_path / name}  from  http://ufldl.stanford.edu/housenumbers/{name}" in str(caught.value)


# The format


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"])
def test_arrays_of_every_type_are_read_as_they_were_written(tmp_path: Path, dtype: str, compressed: bool) -> None:
    made = {f"a{i}": np.arange(np.prod(s)).reshape(s).astype(dtype) for i, s in enumerate([(1, 1), (3, 5), (2, 3, 4)])}
    savemat(tmp_path / "a.mat", {"other": "text", **made, "last": 1.0}, do_compression=compressed)
    found = read_mat(tmp_path / "a.mat", made, limit=LIMIT)
    assert found.keys() == made.keys()
    for name, array in made.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def by_hand(numbers: bytes = bytes([1, 2, 3, 4, 5, 6]), shape: tuple[int, ...] = (2, 3), kind: int = 2) -> bytes:
    """A file with the double array "a", stored in bytes as MATLAB does it, its name in the short form."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)

    parts = element(6, struct.pack("<II", 6, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    parts += struct.pack("<HH4s", 1, 1, b"a") + element(kind, numbers)
    return bytes(124) + b"\x00\x01IM" + element(14, parts)


def test_a_file_made_by_hand_from_the_specification(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(by_hand())
    found: NDArray[Any] = read_mat(path, ["a"], limit=LIMIT)["a"]
    assert found.tolist() == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "doesn't begin like"),
        (by_hand()[:127] + b"I", "doesn't begin like"),
        (by_hand()[:140], "reaches beyond its place"),
        (by_hand(shape=(2, 4)), r"the numbers for its shape \(2, 4\)"),
        (by_hand(shape=(-2, -3)), "the numbers for its shape"),
        (by_hand(kind=77), "the numbers for its shape"),
        (by_hand()[:128], "no array of numbers named a"),
        (by_hand()[:128] + struct.pack("<II", 15, 3) + b"abc", "can't be read"),
        (by_hand()[:128] + struct.pack("<II", 15, 2**31), "reaches beyond its place"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, rule: str) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rule) as caught:
        read_mat(path, ["a"], limit=LIMIT)
    assert str(path) in str(caught.value)


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    bomb = zlib.compress(by_hand(bytes(50 * LIMIT), (50 * LIMIT,))[128:], 9)
    (tmp_path / "a.mat").write_bytes(by_hand()[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        read_mat(tmp_path / "a.mat", ["a"], limit=LIMIT)


@pytest.mark.parametrize("compressed", [True, False])
def test_no_damage_gets_past_as_another_error(tmp_path: Path, compressed: bool) -> None:
    write(tmp_path, "train", 3, compressed=compressed)
    write(tmp_path, "test", 1)
    path = tmp_path / "train_32x32.mat"
    good, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        content = bytearray(good)
        if trial % 3 == 0:
            del content[int(rng.integers(len(good))) :]
        else:  # in the headers of arrays, which are at the beginning and, of y, at the end
            place = rng.integers(0, 220) if trial % 3 == 1 else len(good) - 1 - rng.integers(0, 90)
            content[int(place)] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            load_svhn(tmp_path, download=False)
        except DataError:
            refused += 1
    assert refused > 100
