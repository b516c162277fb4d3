"""MNIST and Fashion-MNIST: idx files, as they are or gzipped, in torchvision's folders."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tombola.errors import DataError
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import FASHION_MNIST, MNIST, Source, obtain

_CLASSES = 10
_MOST_PER_BYTE = 1032  # what DEFLATE can make of one compressed byte at most


def load_mnist(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """MNIST's training and test part (60,000 and 10,000), uint8 of shape (N, 1, 28, 28); downloaded if need be.

    Files in ``root/MNIST/raw``, gzipped or not, are read as they stand. ``DataError`` where one is missing or damaged.
    """
    return _load(MNIST, root, download, progress, mean=0.1307, std=0.3081)


def load_fashion_mnist(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """Fashion-MNIST, as ``load_mnist``, from ``root/FashionMNIST/raw``."""
    return _load(FASHION_MNIST, root, download, progress, mean=0.2860, std=0.3530)


def _load(
    source: Source, root: Path, download: bool, progress: Progress | None, *, mean: float, std: float
) -> tuple[Arrays, Arrays]:
    folder = root / source.folder
    missing = [f for f in source.files if not _file(folder, f.name).is_file()]
    if missing:
        obtain(source, root, missing, download=download, progress=progress)
    train_x, train_y, test_x, test_y = (_file(folder, f.name) for f in source.files)
    return _labelled(train_x, train_y, mean, std), _labelled(test_x, test_y, mean, std)


def _file(folder: Path, name: str) -> Path:
    """The unpacked file if it is there, else the gzipped one."""
    unpacked = folder / name.removesuffix(".gz")
    return unpacked if unpacked.is_file() else folder / name


def _labelled(images: Path, labels: Path, mean: float, std: float) -> Arrays:
    x, y = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if x.shape[1:] != (28, 28):
        raise DataError(f"{images} must hold images of 28x28, but its header says {x.shape[1]}x{x.shape[2]}")
    if len(x) != len(y):
        raise DataError(f"there must be one label per image, but {images} has {len(x):,} and {labels} {len(y):,}")
    if (highest := int(y.max())) >= _CLASSES:
        raise DataError(f"labels in {labels} must be 0 to {_CLASSES - 1}, but one is {highest}")
    return Arrays(torch.from_numpy(x)[:, None], torch.from_numpy(y).long(), mean=(mean,), std=(std,))


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of bytes in an idx file, gzipped if its name ends in ``.gz``.

    The magic number, the shape and the length must agree; ``DataError`` names the file and what is wrong with it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _shape(path, stream.read(4 * (1 + dimensions)), dimensions)
            expected = math.prod(shape)
            data = bytearray(stream.read(expected + 1))  # one more: it reaches the end, and so gzip's own checksum
    except FileNotFoundError:
        raise DataError(f"{path} doesn't exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}; delete it or replace it by a good copy") from error
    if len(data) != expected:
        found = f"only {len(data):,}" if len(data) < expected else "more"
        raise DataError(f"{path} must hold {expected:,} bytes after its header, but has {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """The shape that a header states, rejected if the file is too small to hold it: nothing is allocated before."""
    if header[:4] != bytes((0, 0, 8, dimensions)):  # two zeros, the code of uint8, the number of dimensions
        raise DataError(
            f"{path} must begin with the magic number of an idx file of {dimensions} dimension(s) of bytes, "
            f"{bytes((0, 0, 8, dimensions)).hex()}, but begins with {header[:4].hex() or 'nothing'}"
        )
    if len(header) < 4 * (1 + dimensions):
        raise DataError(f"{path} ends within its header")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4))
    promised = math.prod(shape)
    if promised == 0:
        raise DataError(f"{path} must hold something, but its header says {'x'.join(map(str, shape))}")
    most = path.stat().st_size * (_MOST_PER_BYTE if path.suffix == ".gz" else 1)
    if promised > most:
        raise DataError(
            f"{path} is truncated, or its header is wrong: it promises {promised:,} bytes, more than can be in it"
        )
    return shape
