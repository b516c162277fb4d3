"""CIFAR-10 in its binary version: records of one label byte and 3,072 bytes of a 32x32 image, colour by colour."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tombola.errors import DataError
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.download import Progress
from tombola.tasks.data.sources import CIFAR10, obtain

_FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = ("test_batch.bin",)
_CLASSES = 10
_RECORD = 1 + 3 * 32 * 32
_MOST_RECORDS = 10_000  # in one file of the original
_PICKLES = "cifar-10-batches-py"


def load_cifar10(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """CIFAR-10's training and test part (50,000 and 10,000), uint8 of shape (N, 3, 32, 32); downloaded if need be.

    Files in ``root/cifar-10-batches-bin`` are read as they stand; missing ones are taken from
    ``root/cifar-10-binary.tar.gz``. ``DataError`` where something is missing or damaged. Pickles, such as those of
    torchvision's python version, are never read.
    """
    folder, archive = root / _FOLDER, root / CIFAR10.files[0].name
    missing = [name for name in (*_TRAIN, *_TEST) if not (folder / name).is_file()]
    if missing:
        if not archive.is_file():
            obtain(CIFAR10, root, CIFAR10.files, download=download, progress=progress, note=_note(root, missing))
        _extract(archive, missing, folder)
    return _read(folder, _TRAIN), _read(folder, _TEST)


def _note(root: Path, missing: list[str]) -> str:
    note = f"Not in {root / _FOLDER}: {', '.join(missing)}. They are taken from the archive once it is in place."
    if (root / _PICKLES).is_dir():
        note += (
            f" {root / _PICKLES} holds pickles, which can run code and are never read: the binary version is needed."
        )
    return note


def _extract(archive: Path, names: list[str], folder: Path) -> None:
    """Take these files out of the archive, into a folder of their own first, so that ``folder`` gets whole files only.

    Only regular members of exactly these names are read, and written under our own names: no path, link or mode in
    the archive is followed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{_FOLDER}-", dir=folder.parent) as temporary:
            _unpack(archive, names, Path(temporary))
            folder.mkdir(exist_ok=True)
            for name in names:
                os.replace(Path(temporary) / name, folder / name)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} can't be unpacked to {folder}: {error}; if it is damaged, delete it") from error


def _unpack(archive: Path, names: list[str], target: Path) -> None:
    """Write the members of these names to ``target``, in one pass: going back in a gzipped file is slow."""
    wanted = {f"{_FOLDER}/{name}": name for name in names}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = wanted.get(member.name.removeprefix("./"))
            stream = tar.extractfile(member) if name and member.isreg() else None
            if name is None or stream is None:
                continue
            if member.size > _RECORD * _MOST_RECORDS:
                raise DataError(
                    f"{member.name} in {archive} must not exceed {_RECORD * _MOST_RECORDS:,} bytes, but does"
                )
            with stream, (target / name).open("wb") as out:
                shutil.copyfileobj(stream, out)
    lacking = [name for name in names if not (target / name).exists()]
    if lacking:
        raise DataError(f"{archive} must hold {_FOLDER}/{lacking[0]} as a regular file, but doesn't")


def _read(folder: Path, names: tuple[str, ...]) -> Arrays:
    records = np.concatenate([_records(folder / name) for name in names])
    x = torch.from_numpy(np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32))
    y = torch.from_numpy(records[:, 0].astype(np.int64))
    return Arrays(x, y, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))


def _records(path: Path) -> npt.NDArray[np.uint8]:
    """The records of a file, (N, 3073): N follows from its size."""
    try:
        size = path.stat().st_size
        if size == 0 or size % _RECORD or size > _RECORD * _MOST_RECORDS:
            raise DataError(
                f"{path} must hold 1 to {_MOST_RECORDS:,} records of {_RECORD:,} bytes, but is {size:,} bytes long"
            )
        records = np.fromfile(path, np.uint8).reshape(-1, _RECORD)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if (highest := int(records[:, 0].max())) >= _CLASSES:
        raise DataError(f"labels in {path} must be 0 to {_CLASSES - 1}, but one is {highest}")
    return records
