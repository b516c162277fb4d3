"""Kernels of batch normalisation, on images and on tiled activations.

Channels are worked on in *bundles* of neighbours: first the statistics of a bundle, then its output, block by block, so
that what was read for the first is still in the second-level cache for the second, and memory is read in long runs. A
*block* is 16 images or a tile of 64 examples; sums run in float32 lanes within a block, float64 from block to block.
"""

from __future__ import annotations

import math

import numpy as np

from tombola.engines.sparse.conv_kernels import TILE_VALUES, count_tiles
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
from tombola.engines.sparse.parts import COUNT
from tombola.engines.sparse.vectors import convert_f32, first_lanes, fma, fold, rectify, total, where_positive

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

STATE_SLOTS = 6
"""Numbers that a layer keeps of each channel, float64: mean, 1 / deviation, and four for a kernel's own use."""
_STATE = 8 * STATE_SLOTS


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
def normalise(x, x_row, y, y_row, more, more_row, rows, length, wide, lanes, step, mean, scale, shift, relu):
    """``y = (x - mean) * scale + shift``, plus ``more`` unless that is 0, rectified on demand; 0 in the padding."""
    for r in range(rows):
        source, to, on_top = x + r * x_row, y + r * y_row, more + r * more_row
        for i in range(0, wide, 4):
            value = fma(scale, load(source + 64 * i, 64) - mean, broadcast(shift, 64))
            if more != 0:
                value = value + load(on_top + 64 * i, 64)
            if relu:
                value = rectify(value)
            store(to + 64 * i, value)
        for i in range(wide, length):
            value = fma(scale, load(source + 64 * i, 16) - mean, broadcast(shift, 16))
            if more != 0:
                value = value + load(on_top + 64 * i, 16)
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
def of_tiles(spread, channels, c, tiles):
    """Mean and biased variance of a channel from what a convolution says of each of its tiles.

    That is their sum, and the sum of squares about their own mean: nothing cancels.
    """
    at, pitch, share = spread + 8 * c, 8 * channels, 1.0 / TILE_VALUES
    sums, squares = 0.0, 0.0
    for t in range(tiles):
        sums += np.float64(load_f32(at + t * pitch))
    mean = sums * share / tiles
    for t in range(tiles):
        off = np.float64(load_f32(at + t * pitch)) * share - mean
        squares += np.float64(load_f32(at + t * pitch + 4)) * share + off * off
    return mean, squares / tiles


@helper
def take_in(running, part, new):
    """Move a running statistic towards that of a batch."""
    store_f32(running, convert_f32((1 - part) * np.float64(load_f32(running)) + part * new))


@kernel
def batchnorm_forward(args, frame, thread, threads):
    """The output, by the statistics of the batch (which the running ones take in) or by the running ones."""
    channels, rows, length, x, x_block, x_channel, x_row, y, y_block, y_channel, y_row = fields(args, 11)
    more, more_block, more_channel, more_row, relu, weight, bias = fields(args + 88, 7)
    running_mean, running_variance, batches, state, constants, of_batch = fields(args + 144, 6)
    bundle, spread, starts, sets = fields(args + 192, 4)
    count = load_i64(frame + COUNT)
    blocks = (count + 63) // 64 if length == 0 else (count + 15) // 16
    last = channels * (thread + 1) // threads
    for low in range(channels * thread // threads, last, bundle):
        high = min(low + bundle, last)
        for c in range(low, high):
            if of_batch:
                if spread != 0 and count % 16 == 0:
                    mean, variance = of_tiles(spread, channels, c, count_tiles(frame, sets, starts)[3])
                else:
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
            scale = deviation * np.float64(load_f32(weight + 4 * c)) if weight != 0 else deviation
            offset = np.float64(load_f32(bias + 4 * c)) if bias != 0 else 0.0
            here = state + _STATE * c
            store_f64(here, mean)
            store_f64(here + 8, deviation)
            store_f64(here + 16, scale)
            store_f64(here + 24, offset - (mean - np.float64(convert_f32(mean))) * scale)
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            wide = vectors - vectors % 4 if lanes == holds else 0
            for c in range(low, high):
                here, tile = state + _STATE * c, 4 * holds * c
                source = x + b * x_block + (tile if length == 0 else c * x_channel)
                to = y + b * y_block + (tile if length == 0 else c * y_channel)
                on_top = more + b * more_block + (tile if length == 0 else c * more_channel) if more != 0 else 0
                normalise(
                    source, x_row, to, y_row, on_top, more_row, rows, vectors, wide, lanes, step,
                    convert_f32(load_f64(here)), convert_f32(load_f64(here + 16)), convert_f32(load_f64(here + 24)),
                    relu != 0,
                )  # fmt: skip


@helper
def products(x, x_row, dy, dy_row, rows, length, mean, x_next, dy_next):
    """Sums of ``dy`` and of ``dy * (x - mean)`` over a block; ``dy`` is 0 in the padding.

    Asks for what comes next on the way: it lies too far apart for the machine to foresee it.
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
        weight, weight_gradient, bias_gradient, state, dx, of_batch, gated, accumulate, bundle,
    ) = fields(args, 20)  # fmt: skip
    count = load_i64(frame + COUNT)
    blocks = (count + 63) // 64 if length == 0 else (count + 15) // 16
    number = np.float64(count * rows * max(1, length))
    last = channels * (thread + 1) // threads
    for low in range(channels * thread // threads, last, bundle):
        high = min(low + bundle, last)
        x_ahead = x_block if bundle == 1 else x_channel
        dy_ahead = dy_block if bundle == 1 else dy_channel
        for c in range(low, high):
            store_f64(state + _STATE * c + 32, 0.0)
            store_f64(state + _STATE * c + 40, 0.0)
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            for c in range(low, high):
                here, tile = state + _STATE * c, 4 * holds * c
                source = x + b * x_block + (tile if length == 0 else c * x_channel)
                slope = dy + b * dy_block + (tile if length == 0 else c * dy_channel)
                centre = convert_f32(load_f64(here))
                one, two = products(source, x_row, slope, dy_row, rows, vectors, centre, x_ahead, dy_ahead)
                store_f64(here + 32, load_f64(here + 32) + one)
                store_f64(here + 40, load_f64(here + 40) + two)
        for c in range(low, high):
            here = state + _STATE * c
            mean, deviation = load_f64(here), load_f64(here + 8)
            off = mean - np.float64(convert_f32(mean))
            sums = load_f64(here + 32)
            dots = load_f64(here + 40) - off * sums
            if weight != 0:
                store_f32(weight_gradient + 4 * c, convert_f32(dots * deviation))
                store_f32(bias_gradient + 4 * c, convert_f32(sums))
            by_dy = deviation * np.float64(load_f32(weight + 4 * c)) if weight != 0 else deviation
            by_x = -by_dy * deviation * deviation * dots / number if of_batch else 0.0
            store_f64(here + 16, by_dy)
            store_f64(here + 24, by_x)
            store_f64(here + 32, -by_dy * sums / number - by_x * off if of_batch else 0.0)
        if dx == 0:
            continue
        for b in range(blocks):
            lanes, holds, vectors, step = extent(count, b, length)
            wide = vectors - vectors % 4 if lanes == holds else 0
            for c in range(low, high):
                here, tile = state + _STATE * c, 4 * holds * c
                source = b * x_block + (tile if length == 0 else c * x_channel)
                slope = dy + b * dy_block + (tile if length == 0 else c * dy_channel)
                slopes(
                    x + source, dx + source, x_row, slope, dy_row, rows, vectors, wide, lanes, step,
                    convert_f32(load_f64(here)), convert_f32(load_f64(here + 16)), convert_f32(load_f64(here + 24)),
                    convert_f32(load_f64(here + 32)), gated != 0, accumulate != 0,
                )  # fmt: skip


@kernel
def batchnorm_count(args, frame, thread, threads):
    """One more batch: a call of its own, for all threads of the next one read the number."""
    (batches,) = fields(args, 1)
    if thread == 0:
        store_i64(batches, load_i64(batches) + 1)
