"""Kernels of sparse two-dimensional convolutions.

All of them work on *tiles*: ``2 * PAIRS`` pixels of groups of 16 images, whose sums stay in registers while the kept
weights of a channel go by, each of them one multiply-add per pixel with the pixel read straight from memory. A tile is
a row of a table: the offsets in bytes of ``PAIRS`` pixels of the source and of the result, how far the partner of each
lies from it in both, and which of the pixels are live. So the pixels may lie anywhere, at any stride. All channels of a
result go over a tile before the next one, so that what they read of the source stays in the second-level cache.

A kept weight is an offset in bytes too, from a pixel of the result to the one that it multiplies. The entries lie in
*segments*, block by block of the source's channels and within it channel by channel of the result. A block is as many
channels as the first-level cache holds of a tile's surroundings.

In what follows x is a kernel's source and y its result, except in the gradient of the weights: there y is the gradient
of the output, and x what the convolution read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding
from numba import config

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import fields, load, load_f32, load_i32, load_i64, store, store_f32, zeros
from tombola.engines.sparse.parts import COUNT
from tombola.engines.sparse.pixels import (
    add_each,
    dot_at,
    each,
    fence,
    fma_at,
    gate_each,
    load_at,
    load_some_at,
    prefetch_at,
    squares_about,
    store_at,
    stream_at,
    sum_of,
)
from tombola.engines.sparse.vectors import fold, total, totals4

WIDE = config.CPU_NAME in (None, "host") and bool(binding.get_host_cpu_features().get("avx512f"))
PAIRS = 8 if WIDE else 2
"""Pairs of pixels in a tile: what fits into 32 registers of 16 floats, or into 16 of 8."""
TILE_SLOTS = 2 * PAIRS + 3
"""Numbers in a row of the table: offsets in the source, in the result, two steps, the live pixels as bits."""
TILE_VALUES = 2 * PAIRS * 16
"""Numbers of a channel in a tile of which every pixel is live."""
SUMS_BYTES = 2 * PAIRS * 64
"""What the sums of a tile and channel take, to be put aside between blocks."""
LIVE = (1 << 2 * PAIRS) - 1
"""The bits of a tile of which every pixel is live."""
_TILE_BYTES, _HALF = 8 * TILE_SLOTS, 64 * PAIRS
_LINES = tuple(range(0, _HALF, 64))


@helper
def count_tiles(frame: int, sets: int, starts: int) -> Any:
    """Whole sets of groups of images, tiles of each, groups left over, and tiles in all."""
    groups = (load_i64(frame + COUNT) + 15) // 16
    whole, left = groups // sets, groups % sets
    full = load_i32(starts + 4 * sets) - load_i32(starts + 4 * sets - 4)
    rest = load_i32(starts + 4 * left) - load_i32(starts + 4 * left - 4) if left > 0 else 0
    return whole, full, left, whole * full + rest


@helper
def tile_of(item: int, whole: int, full: int, left: int, sets: int, tiles: int, starts: int) -> Any:
    """The set of an item and the address of its tile."""
    group = min(item // full, whole)
    first = load_i32(starts + 4 * (sets if group < whole else left) - 4)
    return group, tiles + (first + item - group * full) * _TILE_BYTES


@helper
def completed(places: Any, offset: int, sums: Any, relu: int, gate: int, add: int, moved: int) -> Any:
    """The sums of pixels with what comes on top of them."""
    if relu != 0:
        sums = gate_each(sums, sums)
    if add != 0:
        sums = add_each(load_at(places, offset + moved), sums)
    if gate != 0:
        sums = gate_each(load_at(places, offset + gate), sums)
    return sums


@helper
def tell_spread(place: int, a0: Any, a1: Any) -> None:
    """Write the sum of a tile's numbers, and the sum of the squares of their distances from their mean."""
    sums = total(sum_of(a0) + sum_of(a1))
    mean = sums * np.float32(1 / TILE_VALUES)
    store_f32(place, sums)
    store_f32(place + 4, total(squares_about(a0, mean) + squares_about(a1, mean)))


@kernel
def convolve(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """Sums over kept weights times pixels: a convolution, or the gradient of one for its input."""
    x, y, tiles, starts, sets, x_pitch, y_pitch, x_plane, y_plane, sources, channels = fields(args, 11)
    blocks, pointer, index, far, value, bias, relu, gate, add, onto, stream, scratch, places, spread = fields(
        args + 88, 14
    )
    whole, full, left, count = count_tiles(frame, sets, starts)
    workers = min(threads, places)  # a thread without a place for its sums has nothing to do
    if thread >= workers:
        return
    moved = onto - y if onto != 0 else 0
    scratch += thread * channels * SUMS_BYTES
    for item in range(count * thread // workers, count * (thread + 1) // workers):
        group, tile = tile_of(item, whole, full, left, sets, tiles, starts)
        xs, ys = fields(tile, PAIRS), fields(tile + 8 * PAIRS, PAIRS)
        x_step, y_step = fields(tile + 16 * PAIRS, 2)
        next_group, next_tile = tile_of(min(item + 1, count - 1), whole, full, left, sets, tiles, starts)
        next_xs, next_ys = fields(next_tile, PAIRS), fields(next_tile + 8 * PAIRS, PAIRS)
        source, into = x + group * x_pitch, y + group * y_pitch
        x_ahead, y_ahead = x + next_group * x_pitch + far, y + next_group * y_pitch
        asked = 0  # channels of the source asked for ahead of the next tile: evenly, while the first block runs
        for b in range(blocks):
            k = load_i32(pointer + 4 * b * channels)
            for c in range(channels):
                end = load_i32(pointer + 4 * (b * channels + c + 1))
                aside = scratch + c * SUMS_BYTES
                if b == 0:
                    while asked * channels < sources * (c + 1):
                        prefetch_at(next_xs, x_ahead + asked * x_plane, 0)
                        prefetch_at(next_xs, x_ahead + asked * x_plane + x_step, 0)
                        asked += 1
                    a0 = each(load_f32(bias + 4 * c), PAIRS)
                    a1 = a0
                elif k == end and b < blocks - 1:
                    continue
                else:
                    a0, a1 = load_at(_LINES, aside), load_at(_LINES, aside + _HALF)
                while k < end:
                    offset, factor = source + load_i32(index + 4 * k), load_f32(value + 4 * k)
                    a0 = fma_at(factor, xs, offset, a0)
                    a1 = fma_at(factor, xs, offset + x_step, a1)
                    k += 1
                if b < blocks - 1:
                    store_at(_LINES, aside, a0)
                    store_at(_LINES, aside + _HALF, a1)
                else:
                    if gate != 0:
                        prefetch_at(next_ys, y_ahead + gate + c * y_plane, 0)
                        prefetch_at(next_ys, y_ahead + gate + c * y_plane + y_step, 0)
                    if moved != 0:
                        prefetch_at(next_ys, y_ahead + moved + c * y_plane, 0)
                        prefetch_at(next_ys, y_ahead + moved + c * y_plane + y_step, 0)
                    if stream == 0:
                        prefetch_at(next_ys, y_ahead + c * y_plane, 1)
                        prefetch_at(next_ys, y_ahead + c * y_plane + y_step, 1)
                    # A place that stands twice in a tile is read twice before it is written twice.
                    here = into + c * y_plane
                    a0 = completed(ys, here, a0, relu, gate, add, moved)
                    a1 = completed(ys, here + y_step, a1, relu, gate, add, moved)
                    if spread != 0:
                        tell_spread(spread + 8 * (item * channels + c), a0, a1)
                    if stream != 0:
                        stream_at(ys, here, a0)
                        stream_at(ys, here + y_step, a1)
                    else:
                        store_at(ys, here, a0)
                        store_at(ys, here + y_step, a1)
    if stream != 0:
        fence()


@helper
def share(before: int, count: int, thread: int, threads: int) -> Any:
    """The channels of one thread, so that all threads have alike many entries; ``before`` counts those before each."""
    entries = load_i32(before + 4 * count)
    first = last = 0
    while first < count and load_i32(before + 4 * first) < entries * thread // threads:
        first += 1
    while last < count and load_i32(before + 4 * last) < entries * (thread + 1) // threads:
        last += 1
    return first, last


@helper
def product(d0: Any, d1: Any, xs: Any, offset: int, step: int) -> Any:
    """The output gradients of a tile times the pixels at an offset, summed over the tile, lane by lane."""
    return dot_at(d1, xs, offset + step, dot_at(d0, xs, offset, zeros(16)))


@kernel
def weight_gradient(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """For every kept weight the sum of output gradients times the pixels that they meet."""
    x, y, tiles, starts, sets, x_pitch, y_pitch, x_plane, y_plane, sources, channels = fields(args, 11)
    blocks, pointer, index, far, gradient, before = fields(args + 88, 6)
    whole, full, left, count = count_tiles(frame, sets, starts)
    first, last = share(before, channels, thread, threads)
    for b in range(blocks):
        row = pointer + 4 * b * channels
        for k in range(load_i32(row + 4 * first), load_i32(row + 4 * last)):
            store_f32(gradient + 4 * k, np.float32(0))
    for item in range(count):
        group, tile = tile_of(item, whole, full, left, sets, tiles, starts)
        xs, ys = fields(tile, PAIRS), fields(tile + 8 * PAIRS, PAIRS)
        x_step, y_step, live = fields(tile + 16 * PAIRS, 3)
        next_group, next_tile = tile_of(min(item + 1, count - 1), whole, full, left, sets, tiles, starts)
        next_xs, next_ys = fields(next_tile, PAIRS), fields(next_tile + 8 * PAIRS, PAIRS)
        source, x_ahead = x + group * x_pitch, x + next_group * x_pitch + far
        asked = sources * first // channels
        for b in range(blocks):
            k = load_i32(pointer + 4 * (b * channels + first))
            for c in range(first, last):
                end = load_i32(pointer + 4 * (b * channels + c + 1))
                into, ahead = y + group * y_pitch + c * y_plane, y + next_group * y_pitch + c * y_plane
                if b == 0:
                    while asked * channels < sources * (c + 1):
                        prefetch_at(next_xs, x_ahead + asked * x_plane, 0)
                        prefetch_at(next_xs, x_ahead + asked * x_plane + x_step, 0)
                        asked += 1
                    prefetch_at(next_ys, ahead, 0)
                    prefetch_at(next_ys, ahead + y_step, 0)
                if k == end:
                    continue
                if live == LIVE:
                    d0, d1 = load_at(ys, into), load_at(ys, into + y_step)
                else:
                    d0, d1 = load_some_at(ys, into, live), load_some_at(ys, into + y_step, live >> PAIRS)
                while k + 4 <= end:
                    s0 = product(d0, d1, xs, source + load_i32(index + 4 * k), x_step)
                    s1 = product(d0, d1, xs, source + load_i32(index + 4 * k + 4), x_step)
                    s2 = product(d0, d1, xs, source + load_i32(index + 4 * k + 8), x_step)
                    s3 = product(d0, d1, xs, source + load_i32(index + 4 * k + 12), x_step)
                    store(gradient + 4 * k, load(gradient + 4 * k, 4) + totals4(s0, s1, s2, s3))
                    k += 4
                while k < end:
                    s = product(d0, d1, xs, source + load_i32(index + 4 * k), x_step)
                    store_f32(gradient + 4 * k, load_f32(gradient + 4 * k) + total(s))
                    k += 1


@kernel
def bias_gradient(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """For every channel the sum of the output gradients."""
    y, pitch, plane, row, height, width, channels, gradient = fields(args, 8)
    groups = (load_i64(frame + COUNT) + 15) // 16
    for c in range(channels * thread // threads, channels * (thread + 1) // threads):
        wide, narrow = zeros(64), zeros(16)
        for group in range(groups):
            for line in range(height):
                place = y + group * pitch + c * plane + line * row
                for _ in range(width // 4):
                    wide = wide + load(place, 64)
                    place += 256
                for _ in range(width % 4):
                    narrow = narrow + load(place, 16)
                    place += 64
        store_f32(gradient + 4 * c, total(fold(wide) + narrow))


@kernel
def permute(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """Copy values into another order."""
    value, order, into, count = fields(args, 4)
    for k in range(count * thread // threads, count * (thread + 1) // threads):
        store_f32(into + 4 * k, load_f32(value + 4 * load_i32(order + 4 * k)))
