"""Folders of images: labels, evaluation's middle, and crops and flips that follow from the index."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tombola.errors import DataError, InputError
from tombola.tasks.data import imagenet
from tombola.tasks.data.imagenet import ImageFolder, load_imagenet

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(root: Path, part: str = "train", per_class: int = 3) -> None:
    for label, name in enumerate(("n01", "n02")):
        folder = root / "imagenet" / part / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            # PNG under JPEG's name, as one image of ImageNet is: and so the pixels are known.
            picture(60 + number, 40, 10 * label + number).save(folder / f"{name}_{number}.JPEG", "PNG")
        (folder / "notes.txt").write_text("not an image")


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    write(tmp_path)
    return ImageFolder(tmp_path / "imagenet" / "train", ("n01/n01_0.JPEG", "n02/n02_1.JPEG"), (0, 1), side=8)


def test_classes_are_the_folders_in_order(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "val", 1)
    train, test = load_imagenet(tmp_path)
    assert train.labels == (0, 0, 0, 1, 1, 1)
    assert train.files[:2] == ("n01/n01_0.JPEG", "n01/n01_1.JPEG")
    assert (test.files, test.labels) == (("n01/n01_0.JPEG", "n02/n02_0.JPEG"), (0, 1))
    (x, y), (last, _) = train.batches(4)
    assert (x.shape, last.shape, y.tolist()) == ((4, 3, 224, 224), (2, 3, 224, 224), [0, 0, 0, 1])
    assert train.y.tolist() == [0, 0, 0, 1, 1, 1]


def test_evaluation_sees_the_middle_of_the_image(folder: ImageFolder) -> None:
    x, y = folder.take(torch.tensor([1, 0]))
    assert (x.dtype, y.tolist()) == (torch.float32, [1, 0])
    # 61x40: the middle 35x35 is from column 13 and row 2.5 on; the middle of an 8x8 thumbnail of that.
    box = (13.0, 2.5, 48.0, 37.5)
    expected = np.asarray(picture(61, 40, 11).resize((8, 8), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    torch.testing.assert_close(x[0] * STD[:, None, None] + MEAN[:, None, None], torch.tensor(expected / 255).float())


def test_a_code_decides_crop_and_flip(folder: ImageFolder) -> None:
    order = torch.tensor([0, 1, 1, 0])
    index = folder.vary(order, torch.Generator().manual_seed(0))
    assert (index % 2).tolist() == order.tolist()
    assert len(set((index // 2).tolist())) == 4
    assert torch.equal(index, folder.vary(order, torch.Generator().manual_seed(0)))
    first, again = folder.take(index)[0], folder.take(index.flip(0))[0].flip(0)
    assert torch.equal(first, again)
    plain = folder.take(order)[0]
    assert all(not torch.equal(a, b) for a, b in zip(first, plain, strict=True))


def test_half_are_flipped_and_all_else_is_the_crop(tmp_path: Path) -> None:
    """Against the rule, image by image; the generator of a code is Python's, whose numbers are the same everywhere."""
    image = picture()
    flips = 0
    for code in range(1, 200):
        draw = random.Random(code).random
        flip = draw() < 0.5
        left, top, width, height = imagenet._crop(60, 40, draw)
        expected = image.resize((8, 8), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        pixels = np.asarray(expected)[:, ::-1] if flip else np.asarray(expected)
        assert np.array_equal(np.asarray(imagenet._varied(image, code, 8)), pixels)
        flips += flip
    assert abs(flips - 100) < 5 * math.sqrt(50)


@pytest.mark.parametrize("size", [(60, 40), (500, 375), (1, 1), (3, 900)])
def test_crops_lie_inside_with_the_stated_areas_and_ratios(size: tuple[int, int]) -> None:
    width, height = size
    areas = []
    for code in range(1, 400):
        left, top, w, h = imagenet._crop(width, height, random.Random(code).random)
        assert left >= 0
        assert top >= 0
        assert 0 < w <= width - left
        assert 0 < h <= height - top
        areas.append(w * h / (width * height))
        if min(size) > 100:
            assert 0.73 < w / h < 1.36
    if min(size) > 100:
        assert 0.07 < min(areas) < 0.12
        assert max(areas) > 0.85


def test_a_ratio_that_never_fits_gives_the_middle() -> None:
    assert imagenet._crop(3, 900, lambda: 0.99) == (0, 448, 3, 4)
    assert imagenet._crop(900, 3, lambda: 0.99) == (448, 0, 4, 3)


def test_select_and_digest(folder: ImageFolder) -> None:
    part = folder.select(torch.tensor([1]))
    assert (part.files, part.labels, part.side) == (("n02/n02_1.JPEG",), (1,), 8)
    assert torch.equal(part.take(torch.tensor([0]))[0], folder.take(torch.tensor([1]))[0])
    before = folder.digest
    again = ImageFolder(folder.root, folder.files, folder.labels, 8)
    assert again.digest == before != part.digest
    assert ImageFolder(folder.root, folder.files, (1, 0), 8).digest != before
    assert ImageFolder(folder.root, folder.files, folder.labels, 9).digest != before
    picture(9, 9).save(folder.root / folder.files[0], "PNG")
    assert ImageFolder(folder.root, folder.files, folder.labels, 8).digest != before


def test_missing_folders_say_where_to_put_the_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image-net\.org") as caught:
        load_imagenet(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "imagenet" / "train") in message
    assert str(tmp_path / "imagenet" / "val") in message
    assert "TOMBOLA_DATA" in message


def test_parts_of_different_classes_and_empty_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "imagenet" / "val" / "n01").mkdir(parents=True)
    with pytest.raises(DataError, match="the same classes, but differ in n02"):
        load_imagenet(tmp_path)
    (tmp_path / "imagenet" / "val" / "n02").mkdir()
    with pytest.raises(DataError, match=r"val must hold images"):
        load_imagenet(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_file_that_is_no_image_is_named(folder: ImageFolder, content: bytes) -> None:
    path = folder.root / folder.files[1]
    path.write_bytes(content)
    with pytest.raises(DataError, match="can't be read as an image") as caught:
        folder.take(torch.tensor([0, 1]))
    assert str(path) in str(caught.value)


def test_an_image_of_absurd_size_is_not_decoded(folder: ImageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.tasks.data.images.MOST_PIXELS", 2399)
    with pytest.raises(DataError, match="2,399 pixels at most, but has 60x40"):
        folder.take(torch.tensor([0]))


def test_a_missing_file_and_missing_pillow_are_named(
    folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.root / folder.files[0]).unlink()
    with pytest.raises(DataError, match="can't be read"):
        folder.take(torch.tensor([0]))
    with pytest.raises(DataError, match="can't be read"):
        _ = folder.digest
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'tombola\[images\]'"):
        load_imagenet(tmp_path)


def test_what_does_not_fit_is_refused(folder: ImageFolder) -> None:
    with pytest.raises(InputError, match="a label for each"):
        ImageFolder(folder.root, folder.files, (0,))
    with pytest.raises(InputError, match="1 example or more, but got 0"):
        next(folder.batches(0))
