"""CIFAR-10 and CIFAR-100 in their binary versions: records of a label and a 32x32 image, colour by colour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from tombola.errors import DataError
from tombola.seeds import stream
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import CIFAR10, CIFAR100, Source, obtain
from tombola.tasks.data.unpacking import extract_tar

_PIXELS = 3 * 32 * 32

Half = Literal["a", "b"]
HALVES: tuple[Half, ...] = ("a", "b")


@dataclass(frozen=True)
class _Layout:
    """Where the records are and what they look like: ``labels`` bytes, of which the last counts, then the pixels."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: int
    classes: int
    most: int
    """Records in the largest file of the original."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pickles: str
    """The folder of torchvision's version, which is never read."""


_TEN = _Layout(
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    labels=1,
    classes=10,
    most=10_000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    pickles="cifar-10-batches-py",
)
_HUNDRED = _Layout(
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    labels=2,
    classes=100,
    most=50_000,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    pickles="cifar-100-python",
)


def load_cifar10(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """CIFAR-10's training and test part (50,000 and 10,000), uint8 of shape (N, 3, 32, 32); downloaded if need be.

    Files in ``root/cifar-10-batches-bin`` are read as they stand; missing ones are taken from
    ``root/cifar-10-binary.tar.gz``. ``DataError`` where something is missing or damaged. Pickles, such as those of
    torchvision's python version, are never read.
    """
    return _load(CIFAR10, _TEN, root, download, progress)


def load_cifar10_half(
    root: Path, *, half: Half, download: bool = True, progress: Progress | None = None
) -> tuple[Arrays, Arrays]:
    """One of two halves of CIFAR-10's training images, 25,000 of them, with the whole test part, as ``load_cifar10``.

    The halves share no image, and each has as many of every class (of an odd number, ``a`` has one more). They are the
    same ones always: each class is divided at random by a stream of its own, whatever the seed of a run.
    """
    train, test = load_cifar10(root, download=download, progress=progress)
    chosen = []
    for label in sorted(set(train.y.tolist())):
        own = (train.y == label).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=stream(0, "cifar10", "halves", label))]
        first = (len(own) + 1) // 2
        chosen.append(own[:first] if half == "a" else own[first:])
    return train.select(torch.cat(chosen).sort().values), test


def load_cifar100(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """CIFAR-100 with its 100 fine labels, as ``load_cifar10``, from ``root/cifar-100-binary`` or ``.tar.gz``."""
    return _load(CIFAR100, _HUNDRED, root, download, progress)


def _load(
    source: Source, layout: _Layout, root: Path, download: bool, progress: Progress | None
) -> tuple[Arrays, Arrays]:
    folder, archive = root / layout.folder, root / source.files[0].name
    missing = [name for name in (*layout.train, *layout.test) if not (folder / name).is_file()]
    if missing:
        if not archive.is_file():
            note = _note(root, layout, missing)
            obtain(source, root, source.files, download=download, progress=progress, note=note)
        extract_tar(archive, missing, folder, limit=layout.most * (layout.labels + _PIXELS))
    return _read(folder, layout, layout.train), _read(folder, layout, layout.test)


def _note(root: Path, layout: _Layout, missing: list[str]) -> str:
    note = f"Not in {root / layout.folder}: {', '.join(missing)}. They are taken from the archive once it is in place."
    pickles = root / layout.pickles
    if pickles.is_dir():
        note += f" {pickles} holds pickles, which can run code and are never read: the binary version is needed."
    return note


def _read(folder: Path, layout: _Layout, names: tuple[str, ...]) -> Arrays:
    records = np.concatenate([_records(folder / name, layout) for name in names])
    x = torch.from_numpy(np.ascontiguousarray(records[:, layout.labels :]).reshape(-1, 3, 32, 32))
    y = torch.from_numpy(records[:, layout.labels - 1].astype(np.int64))
    return Arrays(x, y, mean=layout.mean, std=layout.std)


def _records(path: Path, layout: _Layout) -> npt.NDArray[np.uint8]:
    """The records of a file, (N, labels and pixels): N follows from its size."""
    length = layout.labels + _PIXELS
    try:
        size = path.stat().st_size
        if size == 0 or size % length or size > length * layout.most:
            raise DataError(
                f"{path} must hold 1 to {layout.most:,} records of {length:,} bytes, but is {size:,} bytes long"
            )
        records = np.fromfile(path, np.uint8).reshape(-1, length)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if (highest := int(records[:, layout.labels - 1].max())) >= layout.classes:
        raise DataError(f"labels in {path} must be 0 to {layout.classes - 1}, but one is {highest}")
    return records
