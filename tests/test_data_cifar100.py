"""CIFAR-100's records of two labels, from files, an archive and a mirror."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_download import Web, remote, serving

from tombola.errors import DataError
from tombola.tasks.data import sources
from tombola.tasks.data.cifar import load_cifar100

pytestmark = pytest.mark.usefixtures("no_configuration")


def records(n: int) -> NDArray[np.uint8]:
    made = np.random.default_rng(n).integers(0, 256, (n, 3074), dtype=np.uint8)
    made[:, 0] = np.arange(n) % 20
    made[:, 1] = (99 - np.arange(n)) % 100
    return made


FILES = {"train.bin": records(7), "test.bin": records(3)}


def write(root: Path) -> Path:
    folder = root / "cifar-100-binary"
    folder.mkdir()
    for name, made in FILES.items():
        (folder / name).write_bytes(made.tobytes())
    return folder


def archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {"fine_label_names.txt": b"apple", **{n: r.tobytes() for n, r in FILES.items()}}.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def check(root: Path) -> None:
    for data, made in zip(load_cifar100(root, download=False), FILES.values(), strict=True):
        assert data.y.tolist() == made[:, 1].tolist()
        assert data.x.shape == (len(made), 3, 32, 32)
        assert data.x[1, 2, 3, 4] == made[1, 2 + 2 * 1024 + 3 * 32 + 4]
        assert np.array_equal(data.x.reshape(len(made), -1).numpy(), made[:, 2:])
        assert (data.mean, data.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def test_the_fine_label_counts(tmp_path: Path) -> None:
    write(tmp_path)
    check(tmp_path)


def test_an_archive_in_place_is_unpacked_without_what_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(archive())
    check(tmp_path)
    assert sorted(p.name for p in (tmp_path / "cifar-100-binary").iterdir()) == ["test.bin", "train.bin"]


def test_the_archive_comes_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = remote(archive(), name="cifar-100-binary.tar.gz")  # type: ignore[no-untyped-call]
    with serving(Web({file.name: archive()})) as web:
        made = sources.Source("cifar100", "CIFAR-100", "", (file,), (web.url,))
        monkeypatch.setattr("tombola.tasks.data.cifar.CIFAR100", made)
        monkeypatch.setitem(sources.SOURCES, "cifar100", made)
        for _ in range(2):
            train, test = load_cifar100(tmp_path)
    assert (len(train), len(test)) == (7, 3)
    assert [path for path, _ in web.asked] == ["/cifar-100-binary.tar.gz"]
    check(tmp_path)


@pytest.mark.parametrize("size", [0, 3073, 3075, 3074 * 50_001])
def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path, size: int) -> None:
    path = write(tmp_path) / "train.bin"
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=rf"1 to 50,000 records of 3,074 bytes, but is {size:,} bytes") as caught:
        load_cifar100(tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_a_fine_label_out_of_range_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path) / "test.bin"
    path.write_bytes(b"\x00\x64" + path.read_bytes()[2:])
    with pytest.raises(DataError, match="0 to 99, but one is 100"):
        load_cifar100(tmp_path, download=False)


def test_pickles_are_never_read_and_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(DataError, match="never read") as caught:
        load_cifar100(tmp_path, download=False)
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz" in str(caught.value)
