"""Batch normalisation, on images and on tiled activations.

One thread does whole channels, one after the other: the statistics of a channel, then its output, while what was read
for the first is still in the second-level cache for the second. The sums run over *blocks*, 16 images or a tile of 64
examples: float32 lanes within a block, float64 from block to block.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import (
    broadcast,
    fields,
    load,
    load_f32,
    load_f64,
    load_i64,
    prefetch,
    store,
    store_f32,
    store_f64,
    store_i64,
    zeros,
)
from tombola.engines.sparse.parts import COUNT, Activation, Call, Floats, Parameter, aligned, call
from tombola.engines.sparse.vectors import convert_f32, first_lanes, fma, fold, rectify, total, where_positive

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@helper
def extent(count, block, length):
    """Of a block: true examples, examples it holds, vectors in a row, examples from one vector of a row to the next.

    ``length``, the vectors in a row of a channel, is 0 for tiled activations, whose blocks are one row of examples.
    """
    if length == 0:
        holds = min(64, (count - 64 * block + 15) // 16 * 16)
        return min(64, count - 64 * block), holds, holds // 16, 16
    return min(16, count - 16 * block), 16, length, 0


@helper
def moments(x, rows, row, length, wide, lanes, step, shift):
    """Sums of ``x - shift`` and of its square over the true examples of a block; ``wide`` vectors need no mask."""
    sums, squares, sums_64, squares_64 = zeros(16), zeros(16), zeros(64), zeros(64)
    for r in range(rows):
        at = x + r * row
        for i in range(0, wide, 4):
            value = load(at + 64 * i, 64) - shift
            sums_64 = sums_64 + value
            squares_64 = fma(value, value, squares_64)
        for i in range(wide, length):
            value = first_lanes(load(at + 64 * i, 16) - shift, lanes - i * step)
            sums = sums + value
            squares = fma(value, value, squares)
    return np.float64(total(fold(sums_64) + sums)), np.float64(total(fold(squares_64) + squares))


@helper
def normalise(x, x_row, y, y_row, rows, length, wide, lanes, step, mean, scale, shift, relu):
    """``y = (x - mean) * scale + shift``, rectified on demand, and 0 in the padding."""
    for r in range(rows):
        source, to = x + r * x_row, y + r * y_row
        for i in range(0, wide, 4):
            value = fma(scale, load(source + 64 * i, 64) - mean, broadcast(shift, 64))
            if relu:
                value = rectify(value)
            store(to + 64 * i, value)
        for i in range(wide, length):
            value = fma(scale, load(source + 64 * i, 16) - mean, broadcast(shift, 16))
            if relu:
                value = rectify(value)
            store(to + 64 * i, first_lanes(value, lanes - i * step))


@helper
def statistics(count, blocks, rows, length, x, x_block, x_channel, x_row, c):
    """Mean and biased variance of a channel.

    Squares are summed about the mean of the first block. However outlying that block, its mean is off by no more than
    the square root of the number of blocks, in standard deviations: little cancels.
    """
    shift, sums, squares = np.float32(0), 0.0, 0.0
    for pilot in range(2):
        sums, squares = 0.0, 0.0
        for b in range(1 if pilot == 0 else blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            at = x + b * x_block + c * (4 * holds if length == 0 else x_channel)
            wide = vectors - vectors % 4 if lanes == holds else 0
            one, two = moments(at, rows, x_row, vectors, wide, lanes, step, shift)
            sums, squares = sums + one, squares + two
        if pilot == 0:
            shift = convert_f32(sums / (min(count, 64 if length == 0 else 16) * rows * max(1, length)))
    number = np.float64(count * rows * max(1, length))
    off = sums / number
    variance = squares / number - off * off
    return np.float64(shift) + off, 0.0 if variance < 0 else variance


@helper
def take_in(running, part, new):
    """Move a running statistic towards that of a batch."""
    store_f32(running, convert_f32((1 - part) * np.float64(load_f32(running)) + part * new))


@kernel
def batchnorm_forward(args, frame, thread, threads):
    """The output, by the statistics of the batch (which the running ones take in) or by the running ones."""
    (
        channels, rows, length, x, x_block, x_channel, x_row, y, y_block, y_channel, y_row,
        weight, bias, running_mean, running_variance, batches, saved, constants, of_batch, relu,
    ) = fields(args, 20)  # fmt: skip
    count = load_i64(frame + COUNT)
    blocks = (count + 63) // 64 if length == 0 else (count + 15) // 16
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        if of_batch:
            mean, variance = statistics(count, blocks, rows, length, x, x_block, x_channel, x_row, c)
            if running_mean != 0:
                part = load_f64(constants + 8)
                if part < 0:
                    part = 1.0 / load_i64(batches)
                number = count * rows * max(1, length)
                take_in(running_mean + 4 * c, part, mean)
                take_in(running_variance + 4 * c, part, variance * number / (number - 1))
        else:
            mean = np.float64(load_f32(running_mean + 4 * c))
            variance = np.float64(load_f32(running_variance + 4 * c))
        deviation = 1.0 / math.sqrt(variance + load_f64(constants))
        store_f64(saved + 16 * c, mean)
        store_f64(saved + 16 * c + 8, deviation)
        scale = deviation * np.float64(load_f32(weight + 4 * c)) if weight != 0 else deviation
        offset = np.float64(load_f32(bias + 4 * c)) if bias != 0 else 0.0
        centre = convert_f32(mean)
        offset -= (mean - np.float64(centre)) * scale
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            tile = 4 * holds * c
            source = x + b * x_block + (tile if length == 0 else c * x_channel)
            to = y + b * y_block + (tile if length == 0 else c * y_channel)
            wide = vectors - vectors % 4 if lanes == holds else 0
            normalise(
                source, x_row, to, y_row, rows, vectors, wide, lanes, step,
                centre, convert_f32(scale), convert_f32(offset), relu != 0,
            )  # fmt: skip


@helper
def products(x, x_row, dy, dy_row, rows, length, mean, x_next, dy_next):
    """Sums of ``dy`` and of ``dy * (x - mean)`` over a block; ``dy`` is 0 in the padding.

    Asks for the next block on the way: blocks lie too far apart for the machine to foresee it.
    """
    sums, dots, sums_64, dots_64 = zeros(16), zeros(16), zeros(64), zeros(64)
    wide = length - length % 4
    for r in range(rows):
        source, slope = x + r * x_row, dy + r * dy_row
        for i in range(0, wide, 4):
            for k in range(4):
                prefetch(source + x_next + 64 * i + 64 * k)
                prefetch(slope + dy_next + 64 * i + 64 * k)
            value = load(slope + 64 * i, 64)
            sums_64 = sums_64 + value
            dots_64 = fma(value, load(source + 64 * i, 64) - mean, dots_64)
        for i in range(wide, length):
            value = load(slope + 64 * i, 16)
            sums = sums + value
            dots = fma(value, load(source + 64 * i, 16) - mean, dots)
    return np.float64(total(fold(sums_64) + sums)), np.float64(total(fold(dots_64) + dots))


@helper
def slopes(x, dx, x_row, dy, dy_row, rows, length, wide, lanes, step, mean, a, b, c, gated, accumulate):
    """``dx = a dy + b (x - mean) + c``, 0 in the padding and, where gated, wherever ``x`` is 0 or less."""
    for r in range(rows):
        source, to, slope = x + r * x_row, dx + r * x_row, dy + r * dy_row
        for i in range(0, wide, 4):
            value = load(source + 64 * i, 64)
            result = fma(a, load(slope + 64 * i, 64), fma(b, value - mean, broadcast(c, 64)))
            if gated:
                result = where_positive(value, result)
            if accumulate:
                result = result + load(to + 64 * i, 64)
            store(to + 64 * i, result)
        for i in range(wide, length):
            value = load(source + 64 * i, 16)
            result = fma(a, load(slope + 64 * i, 16), fma(b, value - mean, broadcast(c, 16)))
            result = first_lanes(result, lanes - i * step)
            if gated:
                result = where_positive(value, result)
            if accumulate:
                result = result + load(to + 64 * i, 16)
            store(to + 64 * i, result)


@kernel
def batchnorm_backward(args, frame, thread, threads):
    """Gradients of weight, bias and input; through the statistics where they were those of the batch."""
    (
        channels, rows, length, x, x_block, x_channel, x_row, dy, dy_block, dy_channel, dy_row,
        weight, weight_gradient, bias_gradient, saved, dx, of_batch, gated, accumulate,
    ) = fields(args, 19)  # fmt: skip
    count = load_i64(frame + COUNT)
    blocks = (count + 63) // 64 if length == 0 else (count + 15) // 16
    number = np.float64(count * rows * max(1, length))
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        mean, deviation = load_f64(saved + 16 * c), load_f64(saved + 16 * c + 8)
        centre = convert_f32(mean)
        off = mean - np.float64(centre)
        sums, dots = 0.0, 0.0
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            tile = 4 * holds * c
            source = x + b * x_block + (tile if length == 0 else c * x_channel)
            slope = dy + b * dy_block + (tile if length == 0 else c * dy_channel)
            one, two = products(source, x_row, slope, dy_row, rows, vectors, centre, x_block, dy_block)
            sums, dots = sums + one, dots + two
        dots -= off * sums
        if weight != 0:
            store_f32(weight_gradient + 4 * c, convert_f32(dots * deviation))
            store_f32(bias_gradient + 4 * c, convert_f32(sums))
        if dx == 0:
            continue
        by_dy = deviation * np.float64(load_f32(weight + 4 * c)) if weight != 0 else deviation
        by_x = -by_dy * deviation * deviation * dots / number if of_batch else 0.0
        constant = -by_dy * sums / number - by_x * off if of_batch else 0.0
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            tile = 4 * holds * c
            source = b * x_block + (tile if length == 0 else c * x_channel)
            slope = dy + b * dy_block + (tile if length == 0 else c * dy_channel)
            wide = vectors - vectors % 4 if lanes == holds else 0
            slopes(
                x + source, dx + source, x_row, slope, dy_row, rows, vectors, wide, lanes, step,
                centre, convert_f32(by_dy), convert_f32(by_x), convert_f32(constant), gated != 0, accumulate != 0,
            )  # fmt: skip


@kernel
def batchnorm_count(args, frame, thread, threads):
    """One more batch: a call of its own, for all threads of the next one read the number."""
    (batches,) = fields(args, 1)
    if thread == 0:
        store_i64(batches, load_i64(batches) + 1)


class BatchNorm:
    """Normalise each channel, then scale and shift it: ``torch.nn.BatchNorm1d`` and ``BatchNorm2d`` on activations.

    Args:
        name: prefix of the names of parameters and buffers.
        x: input, images or tiled.
        y: output of the same layout and size; halos may differ.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics; None for the plain average of all batches.
        affine: has ``weight`` and ``bias``; otherwise 1 and 0.
        track: keeps running statistics, and evaluates by them; otherwise every batch is normalised by its own.
        relu: rectify the output.

    Running statistics and the number of batches live in ``buffers``, under the names torch gives them; ``forward``
    updates them in training. Statistics of a batch take in its true examples only. A batch with a single value per
    channel has no unbiased variance: the caller refuses it before training.
    """

    def __init__(
        self,
        name: str,
        x: Activation,
        y: Activation,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track: bool = True,
        relu: bool = False,
    ) -> None:
        if (x.images, x.channels, x.height, x.width) != (y.images, y.channels, y.height, y.width):
            raise ValueError(f"{name}: input and output must be of the same layout and size, not {x} and {y}")
        self.x, self.y, self.relu, self.track = x, y, relu, track
        self.parameters: list[Parameter] = []
        if affine:
            self.parameters = [Parameter(f"{name}.{p}", aligned(x.channels), aligned(x.channels)) for p in _AFFINE]
            self.parameters[0].value[:] = 1
        self.buffers: dict[str, NDArray[Any]] = {}
        self._running: tuple[Floats | int, Floats | int, NDArray[np.int64] | int] = 0, 0, 0
        if track:
            self._running = aligned(x.channels), aligned(x.channels) + np.float32(1), np.zeros((), np.int64)
            names = ("running_mean", "running_var", "num_batches_tracked")
            self.buffers = {f"{name}.{n}": np.asarray(b) for n, b in zip(names, self._running, strict=True)}
        # A negative momentum stands for the plain average. Between forward and backward: mean and 1 / deviation.
        self._constants = np.array([eps, -1.0 if momentum is None else momentum])
        self._saved = np.zeros((x.channels, 2))

    def forward(self, training: bool) -> list[Call]:
        """The output; in training by the statistics of the batch, which the running ones then take in."""
        weight, bias = (p.value for p in self.parameters) if self.parameters else (0, 0)
        update = training and self.track
        layer = call(
            batchnorm_forward,
            *self._shape(),
            *_place(self.x, self.x.value),
            *_place(self.y, self.y.value),
            weight,
            bias,
            *self._running,
            self._saved,
            self._constants,
            training or not self.track,
            self.relu,
        )
        return [call(batchnorm_count, self._running[2]), layer] if update else [layer]

    def backward(self, input_gradient: bool, accumulate: bool, *, training: bool = True) -> list[Call]:
        """Gradients of input (where wanted), weight and bias, after a ``forward`` with the same ``training``."""
        if not (input_gradient or self.parameters):
            return []
        weight = self.parameters[0].value if self.parameters else 0
        gradients = tuple(p.gradient for p in self.parameters) if self.parameters else (0, 0)
        return [
            call(
                batchnorm_backward,
                *self._shape(),
                *_place(self.x, self.x.value),
                *_place(self.y, self.y.gradient),
                weight,
                *gradients,
                self._saved,
                self.x.gradient[self.x.interior :] if input_gradient else 0,
                training or not self.track,
                self.x.rectified,
                accumulate,
            )
        ]

    def _shape(self) -> tuple[int, int, int]:
        x = self.x
        if not x.images:
            return x.channels, 1, 0
        if x.halo == self.y.halo == 0:
            return x.channels, 1, x.height * x.width
        return x.channels, x.height, x.width


_AFFINE = ("weight", "bias")


def _place(activation: Activation, array: Floats) -> tuple[Floats, int, int, int]:
    """Where the first pixel lies, and bytes from one block, channel and row to the next."""
    if not activation.images:
        return array, 256 * activation.channels, 0, 0
    row, plane, group = activation.pitch
    return array[activation.interior :], 4 * group, 4 * plane, 4 * row
