"""Training images that are cropped and flipped at random; the choice travels inside the index of a batch.

So an epoch's order says everything about its batches: whoever holds it, an engine, a recorded CUDA graph or compiled
code, makes the same images from it, and nothing is drawn while a batch is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from tombola.errors import InputError
from tombola.tasks.data.arrays import Arrays


@dataclass(frozen=True, eq=False)
class Augmented:
    """A labelled set of images with random crops after zero padding, and flips (He et al. 2016, section 4.2).

    An index names an example and a variant: of n examples, ``example + n * code``. Code 0 is the image as it is; each
    of the ``codes`` = (2 pad + 1)^2 (x 2 with ``flip``) codes stands for one crop, flipped or not. Plain indices are
    varied ones of code 0, and ``batches`` gives the plain images.

    Parameters
    ----------
    plain
        The images, uint8 of shape (N, C, height, width).
    pad
        How many pixels are added on each side before cropping to the original size. They are 0 in the units of the
        uint8 image, that is black before normalisation.
    flip
        Whether half the images are flipped left to right.

    Raises ``InputError`` where the set holds no such images, and for a padding below 0.
    """

    plain: Arrays
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        x = self.plain.x
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise InputError(
                f"only images can be augmented, uint8 of shape (N, C, height, width), but got {x.dtype} of shape "
                f"{tuple(x.shape)}"
            )
        if self.pad < 0:
            raise InputError(f"images can be padded by 0 pixels or more before cropping, but got {self.pad}")

    def __len__(self) -> int:
        """How many examples there are, whatever their variants."""
        return len(self.plain)

    @property
    def y(self) -> Tensor:
        """The classes, int64 of shape (N,)."""
        return self.plain.y

    @property
    def codes(self) -> int:
        """How many variants an image has."""
        return (2 * self.pad + 1) ** 2 * (2 if self.flip else 1)

    def vary(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """Examples (1-D int64, each below n) with a variant for each, drawn uniformly and independently.

        ``generator`` lives on the CPU, so that the draws are the same on every device.
        """
        drawn = torch.randint(self.codes, order.shape, generator=generator)
        return order + len(self) * drawn.to(order.device)

    def rows(self, index: Tensor) -> Tensor:
        """The images of a varied index before normalisation, uint8 of shape (len(index), C, height, width)."""
        index = index.to(self.plain.x.device)
        example, code = index % len(self), index.div(len(self), rounding_mode="floor")
        side = 2 * self.pad + 1
        variant = (code + side * self.pad + self.pad) % self.codes  # code 0: the crop from the middle, not flipped
        place = variant % (side * side)
        down, right = place.div(side, rounding_mode="floor"), place % side
        images = F.pad(self.plain.x.index_select(0, example), (self.pad,) * 4)
        height, width = self.plain.x.shape[2:]
        crops = images.unfold(2, height, 1).unfold(3, width, 1)  # a view: (batch, C, side, side, height, width)
        cropped = crops[torch.arange(len(index), device=index.device), :, down, right]
        if not self.flip:
            return cropped
        return torch.where((variant >= side * side)[:, None, None, None], cropped.flip(3), cropped)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of a varied or plain index (1-D int64 on any device): normalised images, and classes.

        Nothing waits for the device, so that the step that takes the batch can be recorded as a CUDA graph.
        """
        index = index.to(self.plain.x.device)
        return self.plain.normalised(self.rows(index)), self.plain.y.index_select(0, index % len(self))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in order and as they are, in batches of ``size``."""
        return self.plain.batches(size)

    def select(self, index: Tensor) -> Augmented:
        """These examples only, augmented in the same way; the tensors are copied."""
        return Augmented(self.plain.select(index), self.pad, self.flip)

    def to(self, device: str | torch.device) -> Augmented:
        """The same set with its tensors on ``device``."""
        return Augmented(self.plain.to(device), self.pad, self.flip)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the images, their normalisation and the augmentation."""
        return hashlib.sha256(f"{self.plain.digest}/pad {self.pad}/flip {self.flip}".encode()).hexdigest()
