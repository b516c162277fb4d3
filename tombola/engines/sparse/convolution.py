"""Sparse two-dimensional convolutions: only the kept weights are stored and worked on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.conv_kernels import SUMS_BYTES, bias_gradient, convolve, permute, weight_gradient
from tombola.engines.sparse.conv_tiles import Ints, Places, Tiles, surroundings, tile_tables
from tombola.engines.sparse.parts import LANES, Activation, Call, Floats, Parameter, aligned, call, padded, segments
from tombola.errors import InputError

Pair = tuple[int, int]

_CACHE_LINES = 384
"""Of 512 cache lines in a first-level cache of 32 KB, those that a block of the source may take."""
_CACHE_SETS = 64
"""Lines, of one pixel of 16 images each, after which a first-level cache of 32 KB begins again."""
_ENTRIES = 20
"""Kept weights that a channel needs in a block, or putting its sums aside costs more than the cache saves."""
_STREAMED = 1 << 22
"""Bytes of a result above which it is written past the caches: it would have left them before anybody reads it."""


@dataclass(frozen=True)
class Axis:
    """One of the two axes of a convolution: sizes of input, output and kernel, and how they meet."""

    input: int
    output: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def phases(self) -> range:
        """The input's positions modulo the stride. Inputs of one phase meet outputs at the same kernel indices."""
        return range(min(self.stride, self.input))

    def positions(self, phase: int) -> int:
        """How many inputs a phase has."""
        return len(range(phase, self.input, self.stride))

    def meets(self, phase: int, k: Ints) -> NDArray[np.bool_]:
        """Whether inputs of a phase meet outputs at kernel index ``k``."""
        return (phase + self.padding - k * self.dilation) % self.stride == 0

    def shift(self, phase: int, k: Ints) -> Ints:
        """Which output the first input of a phase meets at kernel index ``k``; the next input meets the next."""
        return (phase + self.padding - k * self.dilation) // self.stride

    @property
    def halos(self) -> Pair:
        """How far the kernel reaches beyond the input, and reads of the output's gradient beyond the output."""
        last = (self.output - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1)
        low, high, k = 0, self.output - 1, np.arange(self.kernel)
        for phase in self.phases:
            shifts = self.shift(phase, k[self.meets(phase, k)])
            if shifts.size:
                low, high = min(low, int(shifts.min())), max(high, int(shifts.max()) + self.positions(phase) - 1)
        return max(self.padding, last - (self.input - 1)), max(-low, high - (self.output - 1))


def halos(x: Activation, y: Activation, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Halos that input and output should have, in pixels, for a convolution between images of these sizes.

    These are the least that it needs, or one more where the planes of all channels would begin at the same sets of the
    caches and drive each other out.
    """
    rows = Axis(x.height, y.height, kernel[0], stride[0], padding[0], dilation[0])
    columns = Axis(x.width, y.width, kernel[1], stride[1], padding[1], dilation[1])
    needed = least_halos(rows, columns)
    return _apart(x, needed[0]), _apart(y, needed[1])


def least_halos(rows: Axis, columns: Axis) -> Pair:
    """The least halos of input and output that hold every pixel that is read."""
    return max(rows.halos[0], columns.halos[0]), max(rows.halos[1], columns.halos[1])


def _apart(images: Activation, halo: int) -> int:
    while (images.height + 2 * halo) * (images.width + 2 * halo) % _CACHE_SETS == 0:
        halo += 1
    return halo


@dataclass(frozen=True)
class _Plan:
    """A kernel's work: tiles of pixels of a result, and the entries that each of its channels has for them.

    Entries are sorted by ``segment``, which is block of source channels times channels of the result plus channel.
    """

    source: Activation
    result: Activation
    tiles: Tiles
    segment: Ints
    offset: Ints
    """Floats from a pixel of the result to the one that a weight multiplies."""
    blocks: int

    def args(self, x: Floats, y: Floats) -> list[int | NDArray[np.generic]]:
        """What all kernels begin with; ``x`` and ``y`` are arrays of source and result."""
        sets, channels = self.tiles.sets, self.result.channels
        _, x_plane, x_group = (4 * pitch for pitch in self.source.pitch)
        _, y_plane, y_group = (4 * pitch for pitch in self.result.pitch)
        pointer = segments(self.segment, self.blocks * channels)
        far = int(self.offset.max(initial=0)) * 4 % x_plane
        return [
            *(x, y, self.tiles.table, self.tiles.starts, sets, x_group * sets, y_group * sets, x_plane, y_plane),
            *(self.source.channels, channels, self.blocks, pointer, (4 * self.offset).astype(np.int32), far),
        ]

    def writes(
        self,
        x: Floats,
        y: Floats,
        value: Floats,
        bias: Floats | None,
        relu: bool,
        gate: int,
        add: bool,
        onto: Floats | None = None,
        spread: Floats | int = 0,
    ) -> Call:
        """The call that writes the result; it adds to ``onto`` or the result itself."""
        threads = max(16, os.cpu_count() or 1)
        aside = aligned(threads * self.result.channels * SUMS_BYTES // 4 if self.blocks > 1 else 0)
        stream = y.nbytes > _STREAMED and y.ctypes.data % 64 == 0 and not (add and onto is None)
        begin = aligned(self.result.channels) if bias is None else bias
        return call(
            convolve,
            *self.args(x, y),
            value,
            begin,
            int(relu),
            gate,
            int(add),
            0 if onto is None else onto,
            int(stream),
            aside,
            threads,
            spread,
        )


class Convolution:
    """A convolution of images with a sparse weight, as ``torch.nn.Conv2d`` defines it, and a ReLU where asked for.

    ``mask`` says which entries of the weight are kept: booleans of shape (outputs, inputs / groups, height, width).
    ``padding`` is how many zeros stand before the first row and column; how many follow the last ones is what the size
    of ``y`` needs. Both activations must have at least ``least_halos`` when ``forward`` or ``backward`` is called.
    Where ``watched`` is set, and tiles hold pixels of the output only, ``forward`` in training makes ``spread``: sum
    and squares of each tile, and what tells how many tiles a batch has, for batch normalisation.
    Raises InputError for sizes that don't fit together.
    """

    def __init__(
        self,
        name: str,
        mask: NDArray[np.bool_],
        x: Activation,
        y: Activation,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
        bias: bool = True,
        relu: bool = False,
    ) -> None:
        shape = (y.channels, x.channels // groups)
        if mask.ndim != 4 or mask.shape[:2] != shape or x.channels % groups or y.channels % groups:
            raise InputError(
                f"{name}: a mask of shape {mask.shape} doesn't fit {y.channels} output and {x.channels} input channels "
                f"in groups of {groups}: it must be of shape ({shape[0]}, {shape[1]}, height, width)"
            )
        self._shape = mask.shape
        self.name, self.x, self.y, self.relu, self.connected = name, x, y, relu, groups == 1
        self.rows = Axis(x.height, y.height, mask.shape[2], stride[0], padding[0], dilation[0])
        self.columns = Axis(x.width, y.width, mask.shape[3], stride[1], padding[1], dilation[1])
        o, i, row, column = np.nonzero(mask)
        i = i + o // (y.channels // groups) * mask.shape[1]
        taps = _different(row * dilation[0], column * dilation[1])
        self._block = self._block_size(x, y, taps, (y.height, y.width), stride, o.size)
        # Stable: within a channel's segment in the order of the memory that they meet.
        order = np.argsort(i // self._block * y.channels + o, kind="stable")
        self.output, self.input, self.row, self.column = o[order], i[order], row[order], column[order]
        self.weight = Parameter(f"{name}.weight", aligned(o.size), aligned(o.size), np.flatnonzero(mask)[order])
        self.bias = Parameter(f"{name}.bias", aligned(y.channels), aligned(y.channels)) if bias else None
        self.parameters = [self.weight] + ([self.bias] if self.bias else [])
        self.watched = False
        self.spread: tuple[Floats, NDArray[np.int32], int] | None = None

    @property
    def told(self) -> str:
        """What the layer is, for people."""
        shape, kept = self._shape, len(self.weight.value)
        share = 100 * kept / max(1, prod(shape))
        return f"{'x'.join(map(str, shape))}, {kept:,} kept ({share:.3g} %), sparse"

    def forward(self, training: bool) -> list[Call]:
        """The output from the input; in training of a layer that is ``watched`` also ``spread``."""
        bias = self.bias.value if self.bias else None
        plan = self._plan()
        if training and self.watched and self.spread is None and plan.tiles.full:
            groups, tiles = padded(self.y.examples) // LANES, plan.tiles
            room = aligned(2 * self.y.channels * -(-groups // tiles.sets) * int(np.diff(tiles.starts).max()))
            self.spread = room, tiles.starts, tiles.sets
        spread = self.spread[0] if training and self.spread else 0
        return [plan.writes(self.x.value, self.y.value, self.weight.value, bias, self.relu, 0, False, spread=spread)]

    def backward(self, input_gradient: bool, accumulate: bool, *, onto: Floats | None = None) -> list[Call]:
        """Gradients of weights, biases and, where asked for, the input; ``accumulate`` adds to the last.

        ``onto`` is what it adds to then, in the layout of the input's gradient, if not that itself. No ReLU need have
        been applied to it.
        """
        x, y = self.x, self.y
        args = self._plan().args(x.value, y.gradient)
        calls = [call(weight_gradient, *args, self.weight.gradient, segments(self.output, y.channels))]
        if self.bias:
            row, plane, group = (4 * pitch for pitch in y.pitch)
            size = (y.height, y.width, y.channels)
            calls.append(call(bias_gradient, y.gradient[y.interior :], group, plane, row, *size, self.bias.gradient))
        return calls + (self._input_gradient(accumulate, onto) if input_gradient else [])

    def _input_gradient(self, accumulate: bool, onto: Floats | None) -> list[Call]:
        """One call for each phase of rows and columns, after one that brings the weights into their order."""
        gate = self.x.value.ctypes.data - self.x.gradient.ctypes.data if self.x.rectified else 0
        plans = [self._phase(row, column) for row in self.rows.phases for column in self.columns.phases]
        orders = np.concatenate([order for _, order in plans]).astype(np.int32)
        values = aligned(orders.size)
        calls = [call(permute, self.weight.value, orders, values, orders.size)]
        for plan, order in plans:
            value, values = values[: order.size], values[order.size :]
            if order.size or not accumulate or onto is not None:
                calls.append(plan.writes(self.y.gradient, self.x.gradient, value, None, False, gate, accumulate, onto))
        return calls

    def _plan(self) -> _Plan:
        """The work of the convolution itself."""
        x, y, rows, columns = self.x, self.y, self.rows, self.columns
        self._check()
        row, plane, _ = x.pitch
        first = x.interior - rows.padding * row - columns.padding * LANES
        tiles = tile_tables(
            padded(x.examples) // LANES, y.height, y.width,
            places(x, first, (rows.stride, columns.stride)), places(y, y.interior, (1, 1)),
        )  # fmt: skip
        offset = self.input * plane + self.row * rows.dilation * row + self.column * columns.dilation * LANES
        segment = self.input // self._block * y.channels + self.output
        return _Plan(x, y, tiles, segment, offset, -(-x.channels // self._block))

    def _phase(self, row: int, column: int) -> tuple[_Plan, Ints]:
        """The work of the gradient for inputs of one phase, and which of the weights it takes in which order."""
        x, y, rows, columns = self.x, self.y, self.rows, self.columns
        here = np.flatnonzero(rows.meets(row, self.row) & columns.meets(column, self.column))
        down, right = rows.shift(row, self.row[here]), columns.shift(column, self.column[here])
        size = (rows.positions(row), columns.positions(column))
        block = self._block_size(y, x, _different(down, right), size, (1, 1), here.size)
        segment = self.output[here] // block * x.channels + self.input[here]
        order = np.argsort(segment, kind="stable")
        chosen, stride = here[order], (rows.stride, columns.stride)
        first = x.interior + row * x.pitch[0] + column * LANES
        tiles = tile_tables(padded(x.examples) // LANES, *size, places(y, y.interior, (1, 1)), places(x, first, stride))
        offset = self.output[chosen] * y.pitch[1] + down[order] * y.pitch[0] + right[order] * LANES
        return _Plan(y, x, tiles, segment[order], offset, -(-y.channels // block)), chosen

    def _block_size(
        self, source: Activation, result: Activation, taps: Ints, size: Pair, stride: Pair, kept: int
    ) -> int:
        """How many channels of the source make a block, so that it stays in the first-level cache where that pays."""
        if not (self.connected and kept):
            return source.channels
        lines = surroundings(padded(source.examples) // LANES, *size, stride, taps)
        blocks = min(-(-source.channels * lines // _CACHE_LINES), int(kept / (_ENTRIES * result.channels)))
        return -(-source.channels // max(1, min(blocks, source.channels)))

    def _check(self) -> None:
        """Raise InputError where the halos are too narrow, or an offset wouldn't fit in 32 bits."""
        for images, least, what in zip(
            (self.x, self.y), least_halos(self.rows, self.columns), ("input", "output"), strict=True
        ):
            if images.halo < least:
                raise InputError(f"{self.name}: its {what} has a halo of {images.halo} pixels, but needs {least}")
            if 4 * images.pitch[2] >= 1 << 31:
                raise InputError(f"{self.name}: 16 images of its {what} take 2 GB or more: use smaller images")


def places(images: Activation, first: int, stride: Pair) -> Places:
    """Where every so many-th pixel lies, from one that is ``first`` floats from the start of a plane."""
    row, _, group = images.pitch
    return Places(4 * first, 4 * group, 4 * row * stride[0], 4 * LANES * stride[1])


def _different(rows: Ints, columns: Ints) -> Ints:
    """The different pairs among those of two arrays, as rows of an array."""
    if not rows.size:
        return np.zeros((0, 2), np.int64)
    top, left, width = rows.min(), columns.min(), np.ptp(columns) + 1
    codes = np.flatnonzero(np.bincount((rows - top) * width + columns - left))
    return np.stack([codes // width + top, codes % width + left], 1)
