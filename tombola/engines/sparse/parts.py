"""What a program is put together from: activations, parameters, and calls of kernels on them.

Two invariants hold between calls. *Padding*: batches are padded to a multiple of 16 examples, and the gradient of an
activation is exactly 0 in the padding (its value there is finite but means nothing). *Halo*: the border around an image
is exactly 0 in value and gradient, so that a padded convolution needs no test for edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import Kernel

TILE = 64
"""Examples in a tile of the feature-major layout."""
LANES = 16
"""Examples in a group of the image layout, and what every batch is padded to."""

COUNT, ORDER, LOSS, CORRECT, RATE, CORRECTION_1, CORRECTION_2, NEXT_ORDER, NEXT_COUNT = range(0, 72, 8)
"""Byte offsets in the frame, the record of one step that every kernel may read: examples in the batch (int64), address
of their indices (int64), sum of the losses so far (float64), right answers so far (int64), learning rate (float64),
Adam's bias corrections 1 - beta1 ** t and sqrt(1 - beta2 ** t) (float64), the next batch's indices and their number
(for prefetching)."""
FRAME_SLOTS = 16

Floats = NDArray[np.float32]


def padded(examples: int) -> int:
    """Examples rounded up to whole groups of 16."""
    return -(-examples // LANES) * LANES


def aligned(count: int) -> Floats:
    """Zeros that begin at a cache line."""
    raw = np.zeros(count + 16, dtype=np.float32)
    shift = (-raw.ctypes.data % 64) // 4
    return raw[shift : shift + count]


@dataclass
class Activation:
    """One intermediate result, for up to ``examples`` examples.

    *Tiled* (``images=False``): ``channels`` features; tile ``t`` begins at float ``t * 64 * channels`` and holds
    ``(channels, w)``, where w is 64, or in the last tile the examples left, rounded up to 16.

    *Images*: shape ``(examples / 16, channels, height + 2 halo, width + 2 halo, 16)``.
    """

    examples: int
    channels: int
    height: int = 1
    width: int = 1
    images: bool = False
    halo: int = 0
    rectified: bool = False
    """The value is the output of a ReLU. Whoever writes the gradient writes 0 where the value is 0 or less."""
    value: Floats = field(init=False)
    gradient: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.value, self.gradient = np.empty(0, np.float32), np.empty(0, np.float32)

    @property
    def pitch(self) -> tuple[int, int, int]:
        """Floats from one row, channel and group of 16 images to the next."""
        row = (self.width + 2 * self.halo) * LANES
        plane = row * (self.height + 2 * self.halo)
        return row, plane, plane * self.channels

    @property
    def interior(self) -> int:
        """Floats from the start of a plane to its first pixel inside the halo."""
        return self.halo * (self.pitch[0] + LANES)

    @property
    def size(self) -> int:
        """Floats in all."""
        groups = padded(self.examples) // LANES
        return groups * (self.pitch[2] if self.images else LANES * self.channels)

    def allocate(self, gradient: bool) -> None:
        """Make room for the value, and for the gradient where one is wanted."""
        self.value = aligned(self.size)
        self.gradient = aligned(self.size) if gradient else np.empty(0, np.float32)


@dataclass
class Parameter:
    """Trainable numbers of a layer: of a weight only the kept ones, in the order in which the kernels use them."""

    name: str
    value: Floats
    gradient: Floats
    order: NDArray[np.int64] | None = None
    """For each number its position in the flattened tensor of the model; None for all of them, in order."""


@dataclass(frozen=True)
class Call:
    """One kernel with its arguments; an array stands for its address and is kept alive by the call."""

    kernel: Kernel
    args: tuple[int | NDArray[np.generic], ...]

    def packed(self) -> NDArray[np.int64]:
        """The arguments as the kernel reads them."""
        return np.array([a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in self.args], dtype=np.int64)


def call(kernel: Kernel, *args: int | NDArray[np.generic]) -> Call:
    """A call; arrays must be contiguous."""
    if any(isinstance(a, np.ndarray) and a.size and not a.flags.c_contiguous for a in args):
        raise ValueError(f"{kernel.name}: arguments must be contiguous arrays")
    return Call(kernel, args)


def segments(rows: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """Where the entries of each row begin, for entries sorted by row: ``count + 1`` numbers."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))]).astype(np.int32)


def names(calls: Sequence[Call]) -> list[str]:
    """The kernels of a list of calls, for people."""
    return [c.kernel.name for c in calls]
