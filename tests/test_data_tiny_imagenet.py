"""Tiny-ImageNet: small sets made by hand, in a folder, in an archive and on a mirror, and archives that mean harm."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_download import Web, remote, serving

from tombola.errors import DataError, InputError
from tombola.tasks.data import sources
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.tiny_imagenet import load_tiny_imagenet

ARCHIVE, FOLDER, KEPT = "tiny-imagenet-200.zip", "tiny-imagenet-200", "tiny-imagenet-200.safetensors"
CLASSES = ("n02000002", "n01000001")  # not in alphabetical order


pytestmark = pytest.mark.usefixtures("no_configuration")


def jpeg(shade: int, side: int = 64, mode: str = "RGB") -> bytes:
    """An image of one colour, its right half black: JPEG keeps such blocks almost as they are."""
    image = Image.new(mode, (side, side), shade if mode == "L" else (shade, shade // 2, 10))
    image.paste(0 if mode == "L" else (0, 0, 0), (side // 2, 0, side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def made_files() -> dict[str, bytes]:
    files = {"wnids.txt": "\n".join(CLASSES).encode() + b"\n", "words.txt": b"n01000001\tthing\n"}
    for number, name in enumerate(CLASSES):
        for image in range(3):
            grey = image == 2
            files[f"train/{name}/images/{name}_{image}.JPEG"] = jpeg(
                100 * number + 20 * image, mode="L" if grey else "RGB"
            )
        files[f"train/{name}/{name}_boxes.txt"] = b""
    rows = [f"val_{i}.JPEG\t{CLASSES[i % 2]}\t0\t32\t44\t62" for i in (1, 0)]
    files["val/val_annotations.txt"] = "\n".join(rows).encode()
    files |= {f"val/images/val_{i}.JPEG": jpeg(200 + i) for i in range(2)}
    return files | {"test/images/test_0.JPEG": jpeg(7)}


def write_zip(path: Path, files: Mapping[str, bytes], prefix: str = f"{FOLDER}/") -> None:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(prefix + name, content)


def write_folder(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = root / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def check(loaded: tuple[Arrays, Arrays]) -> None:
    train, test = loaded
    assert train.x.shape == (6, 3, 64, 64)
    assert train.x.dtype == torch.uint8
    expected = {(100 * number + 20 * image, number) for number in range(2) for image in range(3)}
    found = set()
    for x, y in zip(train.x.int(), train.y.tolist(), strict=True):
        shade = int(x[0, 5, 5])
        near = min(expected, key=lambda pair: abs(pair[0] - shade))
        assert abs(near[0] - shade) <= 3
        assert y == near[1]
        found.add(near)
        grey = near[0] % 100 == 40
        assert abs(int(x[1, 5, 5]) - (shade if grey else shade // 2)) <= 3
        assert int(x[:, 5, 60].max()) <= 3  # the right half: rows and columns are not swapped
    assert found == expected
    assert [abs(int(x[0, 5, 5]) - shade) <= 3 for x, shade in zip(test.x, (201, 200), strict=True)] == [True, True]
    assert test.y.tolist() == [1, 0]


def test_an_archive_is_read_without_unpacking_and_what_was_decoded_is_kept(tmp_path: Path) -> None:
    write_zip(tmp_path / ARCHIVE, made_files())
    first = load_tiny_imagenet(tmp_path, download=False)
    check(first)
    assert sorted(p.name for p in tmp_path.iterdir()) == [KEPT, ARCHIVE]
    (tmp_path / ARCHIVE).unlink()
    again = load_tiny_imagenet(tmp_path, download=False)
    check(again)
    assert [a.digest for a in first] == [a.digest for a in again]


def test_a_folder_is_read_where_there_is_one(tmp_path: Path) -> None:
    write_folder(tmp_path, made_files())
    write_zip(tmp_path / ARCHIVE, {})
    loaded = load_tiny_imagenet(tmp_path, download=False)
    check(loaded)
    write_zip(tmp_path / "other.zip", made_files())
    (tmp_path / "root").mkdir()
    (tmp_path / "other.zip").rename(tmp_path / "root" / ARCHIVE)
    assert [a.digest for a in loaded] == [a.digest for a in load_tiny_imagenet(tmp_path / "root", download=False)]


def test_the_archive_comes_from_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "made.zip", made_files())
    content = (tmp_path / "made.zip").read_bytes()
    with serving(Web({ARCHIVE: content})) as web:
        file = remote(content, name=ARCHIVE)  # type: ignore[no-untyped-call]
        made = sources.Source("tiny-imagenet", "Tiny-ImageNet", "", (file,), (web.url,))
        monkeypatch.setattr("tombola.tasks.data.tiny_imagenet.TINY_IMAGENET", made)
        monkeypatch.setitem(sources.SOURCES, "tiny-imagenet", made)
        for _ in range(2):
            check(load_tiny_imagenet(tmp_path / "root"))
    assert [path for path, _ in web.asked] == [f"/{ARCHIVE}"]


def test_without_pillow_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'tombola\[images\]'"):
        load_tiny_imagenet(tmp_path, download=False)


def test_what_is_kept_needs_no_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, made_files())
    load_tiny_imagenet(tmp_path, download=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    check(load_tiny_imagenet(tmp_path, download=False))


def test_members_that_lead_elsewhere_are_never_written(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    hostile = {"../outside.JPEG": b"x", "train/../../x/images/x_0.JPEG": b"x", "train/n01000001/images/x.JPEG": b"x"}
    write_zip(root / ARCHIVE, made_files() | hostile)
    with zipfile.ZipFile(root / ARCHIVE, "a") as out:
        out.writestr("/absolute.JPEG", b"x")
    check(load_tiny_imagenet(root, download=False))
    assert [p.name for p in tmp_path.iterdir()] == ["root"]
    assert sorted(p.name for p in root.iterdir()) == [KEPT, ARCHIVE]


IMAGE = f"train/{CLASSES[0]}/images/{CLASSES[0]}_1.JPEG"
DAMAGE: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no list": ({"wnids.txt": None}, "wnids.txt"),
    "empty list": ({"wnids.txt": b""}, "1 to 200 classes"),
    "a class twice": ({"wnids.txt": b"n02000002\nn02000002\n"}, "each once"),
    "a path for a class": ({"wnids.txt": b"../../etc\n"}, "1 to 200 classes like"),
    "too many classes": ({"wnids.txt": "\n".join(f"n{i:08d}" for i in range(201)).encode()}, "1 to 200 classes"),
    "no text": ({"wnids.txt": b"\xff\xfe"}, "must be plain text"),
    "no annotations": ({"val/val_annotations.txt": None}, "val_annotations.txt"),
    "another class": ({"val/val_annotations.txt": b"val_0.JPEG\tn09999999\t0\n"}, "an image and a class, but says"),
    "a path for an image": ({"val/val_annotations.txt": b"../val_0.JPEG\tn02000002\n"}, "an image and a class"),
    "no validation images": ({"val/val_annotations.txt": b""}, "1 to 120,000 validation images, but holds 0"),
    "a missing image": ({"val/images/val_1.JPEG": None}, "val_1.JPEG"),
    "no training images": (
        {"wnids.txt": b"n00000007\n", "val/val_annotations.txt": b"val_0.JPEG\tn00000007"},
        "holds 0",
    ),
    "no image": ({IMAGE: b"GIF89a"}, f"{CLASSES[0]}_1.JPEG in .* can't be read as an image"),
    "half an image": ({IMAGE: jpeg(9)[:300]}, f"{CLASSES[0]}_1.JPEG in .* can't be read as an image"),
    "another size": ({IMAGE: jpeg(9, side=32)}, "must be an image of 64x64, but is one of 32x32"),
    "a huge file": ({IMAGE: jpeg(9) + bytes(2**20)}, "must not exceed 1,048,576 bytes"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_missing_or_damaged_is_named(tmp_path: Path, damage: str, zipped: bool) -> None:
    changes, rule = DAMAGE[damage]
    if damage == "no list" and not zipped:
        rule = "is not in the data root"  # a folder without the list counts as none
    files = {name: content for name, content in (made_files() | changes).items() if content is not None}
    if zipped:
        write_zip(tmp_path / ARCHIVE, files)
    else:
        write_folder(tmp_path, files)
    with pytest.raises(DataError, match=rule):
        load_tiny_imagenet(tmp_path, download=False)
    assert not (tmp_path / KEPT).exists()


@pytest.mark.parametrize("cut", [0, 10, 2000, -30])
def test_a_truncated_archive_is_named(tmp_path: Path, cut: int) -> None:
    write_zip(tmp_path / ARCHIVE, made_files())
    content = (tmp_path / ARCHIVE).read_bytes()
    (tmp_path / ARCHIVE).write_bytes(content[:cut])
    with pytest.raises(DataError, match="can't be read") as caught:
        load_tiny_imagenet(tmp_path, download=False)
    assert str(tmp_path / ARCHIVE) in str(caught.value)


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    write_zip(tmp_path / ARCHIVE, made_files())
    content = bytearray((tmp_path / ARCHIVE).read_bytes())
    content[content.index(b"\xff\xd8\xff") + 20] ^= 1
    (tmp_path / ARCHIVE).write_bytes(content)
    with pytest.raises(DataError, match=r"can't be read.*CRC"):
        load_tiny_imagenet(tmp_path, download=False)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"train_x": torch.zeros(2, 3, 64, 64), "train_y": torch.zeros(2, dtype=torch.int64)},
        {"train_x": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "train_y": torch.tensor([0, 200])},
        {"train_x": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "train_y": torch.tensor([0])},
        {"train_x": torch.zeros(0, 3, 64, 64, dtype=torch.uint8), "train_y": torch.zeros(0, dtype=torch.int64)},
        {"train_x": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "train_y": torch.zeros(2, dtype=torch.int64)},
    ],
)
def test_a_file_of_decoded_images_that_is_none_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / KEPT)
    with pytest.raises(DataError, match="delete it to have them decoded anew"):
        load_tiny_imagenet(tmp_path, download=False)
    (tmp_path / KEPT).write_bytes(np.random.default_rng(0).bytes(99))
    with pytest.raises(DataError, match=r"can't be read.*decoded anew"):
        load_tiny_imagenet(tmp_path, download=False)
