"""Folders of images, one a class, as ImageNet comes: decoded on the fly, with random resized crops for training."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tombola.errors import DataError, InputError
from tombola.extras import IMAGES
from tombola.tasks.data.images import open_image, pixels
from tombola.tasks.data.root import HOW_TO_SET

if TYPE_CHECKING:
    from PIL.Image import Image

_CODES = 2**32
_ENDINGS = (".jpeg", ".jpg", ".png")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Labelled image files, decoded whenever a batch is taken, by as many threads as torch is set to use.

    A batch is normalised float32 of shape (N, 3, side, side). As in ``Augmented``, an index names an example and a
    variant: of n examples, ``example + n * code``. Code 0 is for evaluation: the middle of the image, cut out after its
    shorter edge was resized to 8/7 of ``side``, 256 for 224. Any other code below 2^32 stands for a crop of 8 to 100 %
    of the area and a ratio of 3:4 to 4:3, resized to ``side``, flipped or not (Szegedy et al. 2015, as in most training
    code since); what it is follows from the code and the image's size alone. ``batches`` gives the images of code 0.

    ``digest`` covers names, classes and sizes of the files, not their content. Raises ``DataError`` for a file that is
    no image, when it is taken.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    side: int = 224
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.files or len(self.files) != len(self.labels):
            raise InputError(
                f"there must be 1 file or more and a label for each, but got {len(self.files)} and {len(self.labels)}"
            )

    def __len__(self) -> int:
        """How many examples there are, whatever their variants."""
        return len(self.files)

    @cached_property
    def y(self) -> Tensor:
        """The classes, int64 of shape (N,), on ``device``."""
        return torch.tensor(self.labels, device=self.device)

    def vary(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Examples (1-D int64, each below n) with a crop and flip for each, drawn independently."""
        drawn = torch.randint(1, _CODES, order.shape, generator=generator)
        return order + len(self) * drawn.to(order.device)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of a varied or plain index (1-D int64)."""
        wanted = [divmod(i, len(self)) for i in index.tolist()]
        with ThreadPoolExecutor(max(1, min(len(wanted), torch.get_num_threads()))) as pool:
            images = list(pool.map(lambda pair: self._image(pair[1], pair[0]), wanted))
        x = torch.from_numpy(np.stack(images)).to(self.device).float().div_(255)
        mean, std = (torch.tensor(v, device=self.device).reshape(1, 3, 1, 1) for v in (_MEAN, _STD))
        return x.sub_(mean).div_(std), self.y[index.to(self.device) % len(self)]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order, as they are evaluated, in batches of ``size``."""
        if size < 1:
            raise InputError(f"a batch must hold 1 example or more, but got {size}")
        for part in torch.split(torch.arange(len(self)), size):
            yield self.take(part)

    def select(self, index: Tensor) -> ImageFolder:
        """These examples only, in the order of the index."""
        chosen = index.tolist()
        files, labels = tuple(self.files[i] for i in chosen), tuple(self.labels[i] for i in chosen)
        return replace(self, files=files, labels=labels)

    def to(self, device: str) -> ImageFolder:
        """The same files, with batches on ``device``."""
        return replace(self, device=device)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, sizes in bytes and classes of the files, and of ``side``."""
        digest = hashlib.sha256(f"{self.side}".encode())
        for name, label in zip(self.files, self.labels, strict=True):
            try:
                size = (self.root / name).stat().st_size
            except OSError as error:
                raise DataError(f"{self.root / name} can't be read: {error.strerror}") from error
            digest.update(f"/{name}:{label}:{size}".encode())
        return digest.hexdigest()

    def _image(self, example: int, code: int) -> npt.NDArray[np.uint8]:
        path = self.root / self.files[example]
        image = open_image(path, str(path))
        return pixels(_varied(image, code, self.side) if code else _middle(image, self.side))


def load_imagenet(root: Path) -> tuple[ImageFolder, ImageFolder]:
    """ImageNet's training part and, as the test part, its validation part: ``root/imagenet/{train,val}/CLASS/*.JPEG``.

    Classes are numbered in the order of their folders' names. Never downloaded: ``DataError`` says where to put it, and
    where Pillow is not installed, how to install it.
    """
    IMAGES.require("this data set's reader of images")
    folder = root / "imagenet"
    names = {part: _classes(folder / part, root) for part in ("train", "val")}
    if names["train"] != names["val"]:
        differing = sorted(set(names["train"]) ^ set(names["val"]))
        raise DataError(
            f"train and val in {folder} must have the same classes, but differ in {', '.join(differing[:3])}"
        )
    train, val = (_labelled(folder / part, names[part]) for part in ("train", "val"))
    return train, val


def _classes(folder: Path, root: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if not names:
        raise DataError(
            f"{folder} must hold a folder of images for each class, like n01440764, but there are none. ImageNet can't "
            f"be downloaded without an account: get it from https://image-net.org, and put the training images to "
            f"{root / 'imagenet' / 'train'} and the validation images to {root / 'imagenet' / 'val'}, in folders by "
            f"class. The data root is set by {HOW_TO_SET}."
        )
    return names


def _labelled(folder: Path, names: Sequence[str]) -> ImageFolder:
    found = [
        (f"{name}/{path.name}", label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _ENDINGS
    ]
    if not found:
        raise DataError(f"the folders in {folder} must hold images, *.JPEG or *.png, but don't")
    return ImageFolder(folder, tuple(name for name, _ in found), tuple(label for _, label in found))


def _middle(image: Image, side: int) -> Image:
    """The middle, with the shorter edge resized to 8/7 of ``side``: 256 for 224."""
    part = min(image.size) * 7 / 8
    left, top = (image.width - part) / 2, (image.height - part) / 2
    return _resized(image, (left, top, left + part, top + part), side)


def _varied(image: Image, code: int, side: int) -> Image:
    """The crop and flip that a code stands for."""
    from PIL import ImageOps

    draw = random.Random(code).random
    flip = draw() < 0.5
    left, top, width, height = _crop(image.width, image.height, draw)
    cropped = _resized(image, (left, top, left + width, top + height), side)
    return ImageOps.mirror(cropped) if flip else cropped


def _crop(width: int, height: int, draw: Callable[[], float]) -> tuple[int, int, int, int]:
    """A crop at random: left, top, width and height. The middle, if ten draws of area and ratio all reach outside."""
    for _ in range(10):
        area = width * height * (0.08 + 0.92 * draw())
        ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * draw())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draw() * (width - w + 1)), int(draw() * (height - h + 1)), w, h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def _resized(image: Image, box: tuple[float, float, float, float], side: int) -> Image:
    from PIL.Image import Resampling

    return image.resize((side, side), Resampling.BILINEAR, box=box)
