"""Tiny-ImageNet-200: 64x64 JPEG images of 200 classes, decoded once into arrays that are kept beside the archive."""

from __future__ import annotations

import re
import secrets
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tombola.atomic import TEMPORARY
from tombola.errors import DataError
from tombola.extras import IMAGES
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.download import Progress
from tombola.tasks.data.images import open_image, pixels
from tombola.tasks.data.sources import TINY_IMAGENET, obtain

_NAME = "tiny-imagenet-200"
_SIDE = 64
_MOST_CLASSES = 200
_MOST_IMAGES = 120_000
_MOST_BYTES = 2**20
"""Of one file in the archive; the originals' images take a few thousand, its lists less than half of this."""
_WNID = r"n\d{8}"
_TENSORS = ("train_x", "train_y", "test_x", "test_y")


def load_tiny_imagenet(root: Path, *, download: bool = True, progress: Progress | None = None) -> tuple[Arrays, Arrays]:
    """Tiny-ImageNet's training part and, as the test part, its labelled validation part (100,000 and 10,000).

    uint8 of shape (N, 3, 64, 64), classes in the order of ``wnids.txt``. Images are read from the folder
    ``root/tiny-imagenet-200`` where there is one, else from ``root/tiny-imagenet-200.zip``, which is downloaded if need
    be and never unpacked. What was decoded is kept in ``root/tiny-imagenet-200.safetensors`` (1.4 GB) and taken from
    there in future; delete that file to have the images decoded anew. The official test part has no labels and is left
    alone.

    Raises ``DataError`` where something is missing or damaged, ``InputError`` where Pillow is not installed.
    """
    kept = root / f"{_NAME}.safetensors"
    if not kept.is_file():
        tensors = _decoded(_files(root, download, progress))
        _keep(kept, tensors)
    else:
        tensors = _kept(kept)
    return tuple(  # type: ignore[return-value]
        Arrays(tensors[f"{part}_x"], tensors[f"{part}_y"], mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821))
        for part in ("train", "test")
    )


class _Files(Protocol):
    """The data set's files by their names within it."""

    @property
    def place(self) -> Path: ...

    def names(self) -> Sequence[str]: ...

    def read(self, name: str) -> bytes: ...


def _files(root: Path, download: bool, progress: Progress | None) -> _Files:
    IMAGES.require("this data set's reader of images")
    folder, archive = root / _NAME, root / TINY_IMAGENET.files[0].name
    if (folder / "wnids.txt").is_file():
        return _Folder(folder)
    if not archive.is_file():
        obtain(TINY_IMAGENET, root, TINY_IMAGENET.files, download=download, progress=progress)
    return _Zip(archive)


@dataclass(frozen=True)
class _Folder:
    place: Path

    def names(self) -> Sequence[str]:
        train = self.place / "train"
        return [p.relative_to(self.place).as_posix() for p in sorted(train.glob("*/images/*.JPEG"))]

    def read(self, name: str) -> bytes:
        path = self.place / name
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(f"{path} must not exceed {_MOST_BYTES:,} bytes, but does")
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror or error}") from error


class _Zip:
    """An archive whose members are read in memory: nothing is unpacked, so no path in it leads anywhere."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            self._zip = zipfile.ZipFile(place)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._damaged(error) from error
        self._members = {m.filename.removeprefix(f"{_NAME}/"): m for m in self._zip.infolist() if not m.is_dir()}

    def names(self) -> Sequence[str]:
        return sorted(self._members)

    def read(self, name: str) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise DataError(f"{self.place} must hold {_NAME}/{name}, but doesn't")
        if member.file_size > _MOST_BYTES:
            raise DataError(f"{name} in {self.place} must not exceed {_MOST_BYTES:,} bytes, but does")
        try:
            return self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.place} can't be read: {error}; if it is damaged, delete it")


def _decoded(files: _Files) -> dict[str, Tensor]:
    classes = _lines(files, "wnids.txt")
    if not 1 <= len(set(classes)) == len(classes) <= _MOST_CLASSES or not all(re.fullmatch(_WNID, c) for c in classes):
        raise DataError(
            f"wnids.txt in {files.place} must name 1 to {_MOST_CLASSES} classes like n01443537, each once on a line"
        )
    number = {name: position for position, name in enumerate(classes)}
    image = re.compile(rf"train/({_WNID})/images/\1_\d+\.JPEG")
    found = ((name, image.fullmatch(name)) for name in files.names())
    train = [(name, number[match[1]]) for name, match in found if match and match[1] in number]
    test = []
    for line in _lines(files, "val/val_annotations.txt"):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if not re.fullmatch(r"val_\d+\.JPEG", name) or label not in number:
            raise DataError(f"val_annotations.txt in {files.place} must give an image and a class, but says {line!r}")
        test.append((f"val/images/{name}", number[label]))
    for part, images in (("training", train), ("validation", test)):
        if not 1 <= len(images) <= _MOST_IMAGES:
            raise DataError(f"{files.place} must hold 1 to {_MOST_IMAGES:,} {part} images, but holds {len(images):,}")
    (train_x, train_y), (test_x, test_y) = _images(files, train), _images(files, test)
    return dict(zip(_TENSORS, (train_x, train_y, test_x, test_y), strict=True))


def _lines(files: _Files, name: str) -> list[str]:
    try:
        return files.read(name).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} in {files.place} must be plain text, but: {error}") from error


def _images(files: _Files, labelled: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    x = np.empty((len(labelled), 3, _SIDE, _SIDE), np.uint8)
    for place, (name, _) in enumerate(labelled):
        image = open_image(files.read(name), f"{name} in {files.place}")
        if image.size != (_SIDE, _SIDE):
            size = f"{image.width}x{image.height}"
            raise DataError(f"{name} in {files.place} must be an image of {_SIDE}x{_SIDE}, but is one of {size}")
        x[place] = pixels(image)
    return torch.from_numpy(x), torch.tensor([label for _, label in labelled])


def _keep(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write the decoded set whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        try:
            save_file(tensors, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} can't be written: {error}") from error


def _kept(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} can't be read: {error}; delete it to have the images decoded anew") from error
    for part in ("train", "test"):
        x, y = (tensors.get(f"{part}_{kind}", torch.empty(0)) for kind in "xy")
        right = x.dtype == torch.uint8 and x.shape == (len(y), 3, _SIDE, _SIDE) and len(y)
        if not right or y.dtype != torch.int64 or not 0 <= int(y.min()) <= int(y.max()) < _MOST_CLASSES:
            raise DataError(f"{path} doesn't hold the decoded images; delete it to have them decoded anew")
    return tensors
