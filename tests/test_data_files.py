"""The readers of MNIST's and CIFAR-10's files, on small ones."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from tombola.errors import DataError
from tombola.tasks.data.cifar import load_cifar10
from tombola.tasks.data.idx import load_fashion_mnist, load_mnist


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings of the user."""
    for name in ("TOMBOLA_DATA", "TOMBOLA_CONFIG", "TOMBOLA_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "etc" / name)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


# idx files


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root, folder="MNIST", *, zipped=True, train=5, test=3):
    made = {}
    for part, n in (("train", train), ("t10k", test)):
        images = np.random.default_rng(n).integers(0, 256, (n, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(n) % 10)):
            path = root / folder / "raw" / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
            made[part, kind] = array
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_read_gzipped_and_unpacked(tmp_path, zipped):
    made = write_mnist(tmp_path, zipped=zipped)
    for part, data in zip(("train", "t10k"), load_mnist(tmp_path, download=False), strict=True):
        assert data.x.dtype == torch.uint8
        assert np.array_equal(data.x[:, 0].numpy(), made[part, "images-idx3"])
        assert np.array_equal(data.y.numpy(), made[part, "labels-idx1"])
        assert (data.mean, data.std) == ((0.1307,), (0.3081,))


def test_fashion_mnist_has_its_own_folder_and_normalisation(tmp_path):
    write_mnist(tmp_path, "FashionMNIST")
    train, test = load_fashion_mnist(tmp_path, download=False)
    assert (len(train), len(test)) == (5, 3)
    assert (train.mean, train.std) == ((0.2860,), (0.3530,))


IMAGES = idx(np.zeros((5, 28, 28)))
DAMAGED_IDX = {
    "images: magic": (
        "train-images-idx3-ubyte",
        b"\x00\x00\x08\x01" + IMAGES[4:],
        "00000803, but begins with 00000801",
    ),
    "images: dtype": ("train-images-idx3-ubyte", b"\x00\x00\x0d\x03" + IMAGES[4:], "magic"),
    "images: empty": ("train-images-idx3-ubyte", b"", "begins with nothing"),
    "images: header": ("train-images-idx3-ubyte", IMAGES[:9], "ends within its header"),
    "images: truncated": ("train-images-idx3-ubyte", IMAGES[:-30], "truncated|but has only 3,890"),
    "images: too long": ("train-images-idx3-ubyte", IMAGES + b"\0", "but has more"),
    "images: none": ("train-images-idx3-ubyte", idx(np.zeros((0, 28, 28))), "must hold something"),
    "images: size": ("train-images-idx3-ubyte", idx(np.zeros((5, 27, 28))), "28x28, but its header says 27x28"),
    "images: absurd": ("train-images-idx3-ubyte", IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "more than can be in it"),
    "labels: count": ("train-labels-idx1-ubyte", idx(np.zeros(4)), "one label per image"),
    "labels: range": ("train-labels-idx1-ubyte", idx(np.array([0, 1, 2, 10, 3])), "0 to 9, but one is 10"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", DAMAGED_IDX)
def test_a_damaged_idx_file_is_named_with_the_rule(tmp_path, damage, zipped):
    name, content, rule = DAMAGED_IDX[damage]
    write_mnist(tmp_path, zipped=zipped)
    path = tmp_path / "MNIST" / "raw" / (name + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=rule) as caught:
        load_mnist(tmp_path, download=False)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["cut short", "a bit of the data flipped", "a bit of the checksum flipped", "not gzip"]
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        del content[-200:]
    elif damage == "not gzip":
        content[:] = IMAGES
    else:
        content[-6 if "checksum" in damage else len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match="can't be read") as caught:
        load_mnist(tmp_path, download=False)
    assert str(path) in str(caught.value)


# CIFAR-10


def cifar_records(n, seed):
    records = np.random.default_rng(seed).integers(0, 256, (n, 3073), dtype=np.uint8)
    records[:, 0] = (np.arange(n) + seed) % 10
    return records


def cifar_files():
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {name: cifar_records(i + 1, i) for i, name in enumerate(names)}


def write_cifar(root):
    files = cifar_files()
    (root / "cifar-10-batches-bin").mkdir()
    for name, records in files.items():
        (root / "cifar-10-batches-bin" / name).write_bytes(records.tobytes())
    return files


def cifar_archive(path, files=None, extra=()):
    with tarfile.open(path, "w:gz") as tar:
        for member in extra:
            tar.addfile(member)
        for name, records in reversed((cifar_files() if files is None else files).items()):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records.nbytes
            tar.addfile(member, io.BytesIO(records.tobytes()))


def check_cifar(loaded):
    files = list(cifar_files().values())
    for data, records in zip(loaded, (np.concatenate(files[:5]), files[5]), strict=True):
        assert np.array_equal(data.y.numpy(), records[:, 0])
        assert data.x.shape == (len(records), 3, 32, 32)
        assert data.x[1, 2, 3, 4] == records[1, 1 + 2 * 1024 + 3 * 32 + 4]
        assert np.array_equal(data.x.reshape(len(records), -1).numpy(), records[:, 1:])


def test_cifar_is_read_plane_by_plane_with_counts_from_the_file_sizes(tmp_path):
    write_cifar(tmp_path)
    check_cifar(load_cifar10(tmp_path, download=False))


@pytest.mark.parametrize("size", [0, 3072, 3074, 3073 * 10_001])
def test_a_cifar_file_of_the_wrong_size_is_refused(tmp_path, size):
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=f"but is {size:,} bytes") as caught:
        load_cifar10(tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_a_cifar_label_out_of_range_is_refused(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="0 to 9, but one is 10") as caught:
        load_cifar10(tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_pickles_are_never_read_and_the_error_says_so(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="never read") as caught:
        load_cifar10(tmp_path, download=False)
    message = str(caught.value)
    assert str(tmp_path / "cifar-10-binary.tar.gz") in message
    assert str(tmp_path / "cifar-10-batches-bin") in message


def test_an_archive_in_place_is_unpacked_and_only_the_missing_files_are_taken(tmp_path):
    write_cifar(tmp_path)
    folder = tmp_path / "cifar-10-batches-bin"
    (folder / "data_batch_2.bin").unlink()
    mine = (folder / "data_batch_1.bin").stat()
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz")
    check_cifar(load_cifar10(tmp_path, download=False))
    assert (folder / "data_batch_1.bin").stat().st_ino == mine.st_ino
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar-10-batches-bin", "cifar-10-binary.tar.gz"]


def member(name, kind, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_hostile_members_of_an_archive_are_not_followed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    hostile = [
        member("../outside", tarfile.REGTYPE),
        member("/outside", tarfile.REGTYPE),
        member("cifar-10-batches-bin/unasked.bin", tarfile.REGTYPE),
        member("cifar-10-batches-bin", tarfile.SYMTYPE, str(tmp_path / "elsewhere")),
    ]
    cifar_archive(root / "cifar-10-binary.tar.gz", extra=hostile)
    check_cifar(load_cifar10(root, download=False))
    assert [p.name for p in tmp_path.iterdir()] == ["root"]
    assert sorted(p.name for p in (root / "cifar-10-batches-bin").iterdir()) == sorted(cifar_files())


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(cifar_records(2, 0).tobytes())
    files = cifar_files()
    del files["test_batch.bin"]
    link = member("cifar-10-batches-bin/test_batch.bin", tarfile.SYMTYPE, str(tmp_path / "secret"))
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz", files, extra=[link])
    with pytest.raises(DataError, match=r"must hold cifar-10-batches-bin/test_batch\.bin as a regular file"):
        load_cifar10(tmp_path, download=False)
    assert not (tmp_path / "cifar-10-batches-bin").exists()


def test_an_archive_with_a_huge_member_is_refused(tmp_path):
    files = cifar_files()
    files["data_batch_1.bin"] = np.zeros((10_001, 3073), np.uint8)
    cifar_archive(tmp_path / "cifar-10-binary.tar.gz", files)
    with pytest.raises(DataError, match="must not exceed 30,730,000 bytes"):
        load_cifar10(tmp_path, download=False)
    assert not (tmp_path / "cifar-10-batches-bin").exists()


@pytest.mark.parametrize("cut", [0, 20, 3000])
def test_a_truncated_archive_leaves_no_files(tmp_path, cut):
    path = tmp_path / "cifar-10-binary.tar.gz"
    cifar_archive(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="can't be unpacked") as caught:
        load_cifar10(tmp_path, download=False)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
