"""Made-up data sets of the right size and shape, for what the data root lacks: to measure times, nothing else."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.io import savemat

from tombola.seeds import stream
from tombola.tasks.data.imagenet import ImageFolder
from tombola.tasks.task import Splits

RNG = np.random.default_rng(0)
WORDS = [f"w{number}" for number in range(33_278)]


def _bytes(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def _labels(count: int, classes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return RNG.permutation(np.arange(count) % classes).astype(np.uint8)


def _idx(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        for name, array in (("images-idx3", _bytes(count, 28, 28)), ("labels-idx1", _labels(count, 10))):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())


def _cifar(folder: Path, files: dict[str, int], classes: int, labels: int) -> None:
    folder.mkdir()
    for name, count in files.items():
        records = _bytes(count, labels + 3072)
        records[:, labels - 1] = _labels(count, classes)
        (folder / name).write_bytes(records.tobytes())


def _svhn(root: Path) -> None:
    for name, count in (("train", 73_257), ("test", 26_032)):
        arrays = {"X": _bytes(32, 32, 3, count), "y": 1 + _labels(count, 10)[:, None]}
        savemat(root / f"{name}_32x32.mat", arrays)


def _tiny_imagenet(root: Path) -> None:
    tensors = {}
    for part, count in (("train", 100_000), ("test", 10_000)):
        tensors[f"{part}_x"] = torch.from_numpy(_bytes(count, 3, 64, 64))
        tensors[f"{part}_y"] = torch.from_numpy(_labels(count, 200)).long()
    save_file(tensors, root / "tiny-imagenet-200.safetensors")


def _words(count: int) -> list[str]:
    """Words by Zipf's law."""
    return [WORDS[number % len(WORDS)] for number in RNG.zipf(1.2, count) - 1]


def _wikitext(folder: Path) -> None:
    folder.mkdir()
    for name, count in (("train", 2_051_910), ("valid", 213_886), ("test", 241_211)):
        words = _words(count)
        lines = [" ".join(words[first : first + 56]) for first in range(0, count, 56)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def _multi30k(folder: Path) -> None:
    folder.mkdir()
    for part, count in (("train", 29_000), ("val", 1_014), ("test_2016_flickr", 1_000)):
        for language in ("en", "de"):
            lines = [" ".join(_words(length)) for length in RNG.integers(6, 19, count)]
            (folder / f"{part}.{language}.gz").write_bytes(gzip.compress("\n".join(lines).encode()))


def _sst2(folder: Path) -> None:
    folder.mkdir()
    for name, count in (("train", 6_920), ("dev", 872), ("test", 1_821)):
        lines = [f"{' '.join(_words(n))}\t{i % 2}" for i, n in enumerate(RNG.integers(4, 35, count))]
        (folder / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")


FILES: dict[str, Callable[[Path], None]] = {
    "mnist": lambda root: _idx(root / "MNIST" / "raw"),
    "fashion-mnist": lambda root: _idx(root / "FashionMNIST" / "raw"),
    "cifar10": lambda root: _cifar(
        root / "cifar-10-batches-bin",
        dict.fromkeys([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"], 10_000),
        10,
        1,
    ),
    "cifar100": lambda root: _cifar(root / "cifar-100-binary", {"train.bin": 50_000, "test.bin": 10_000}, 100, 2),
    "svhn": _svhn,
    "tiny-imagenet": _tiny_imagenet,
    "wikitext2": lambda root: _wikitext(root / "wikitext-2"),
    "multi30k": lambda root: _multi30k(root / "multi30k"),
    "sst2": lambda root: _sst2(root / "sst2"),
}
"""By the data set, what writes its files into an empty data root; the product's own loaders read them."""

FOLDERS = {"imagenet": (1_281_167, 50_000, 1000, (500, 375)), "places365": (1_803_460, 36_500, 365, (256, 256))}
"""Data sets of image files: training and test images, classes, and the size of an image, as most have it."""


def folders(name: str, root: Path, validation: int = 10_000) -> Splits:
    """A data set of image files, all of which are one and the same JPEG: decoding it takes time as others do."""
    from PIL import Image

    train, test, classes, (width, height) = FOLDERS[name]
    smooth = torch.rand(1, 3, 12, 16, generator=stream(0, "made up"))
    pixels = torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic").clamp(0, 1)[0]
    Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy()).save(root / f"{name}.jpg", quality=90)

    def part(count: int) -> ImageFolder:
        return ImageFolder(root, (f"{name}.jpg",) * count, tuple(i % classes for i in range(count)))

    return Splits(part(train - validation), part(validation), part(test))
