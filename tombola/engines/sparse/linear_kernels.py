"""Kernels of sparse linear layers, on tiled activations.

Within a tile the 64 examples of one feature lie side by side, so that one kept weight is one multiply-add over a run of
256 bytes. The kept weights of a layer lie in *segments*: the entries of one row, or of one row within one block of
columns where rows are long enough that a block of the input should stay in the first-level cache. Segments run block by
block, row by row, and so do the sums: a result doesn't depend on how rows are shared among threads.
"""

from __future__ import annotations

from typing import Any

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import broadcast, fields, load, load_f32, load_i32, load_i64, store, store_f32, zeros
from tombola.engines.sparse.parts import COUNT
from tombola.engines.sparse.vectors import dot16, fma, fold, rectify, total, totals, totals4, where_positive

# mypy sees numba's functions as untyped; the kernels' own types are all int64 addresses and numbers.
# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@helper
def tiles(frame):
    """How many tiles the batch of this step fills."""
    return (load_i64(frame + COUNT) + 63) // 64


@helper
def tile_lanes(frame, tile):
    """How wide a tile is: 64, or what is left in the last one, rounded up to 16."""
    return min(64, (load_i64(frame + COUNT) - 64 * tile + 15) // 16 * 16)


@helper
def share(pointer, first, last, thread, threads):
    """The segments of one thread among ``first`` to ``last``, split so that all threads have alike many entries.

    Where sums go on from block to block they must be split alike in all blocks: by the entries of whole rows.
    """
    if threads == 1:
        return first, last
    low, high = load_i32(pointer + 4 * first), load_i32(pointer + 4 * last)
    begin, end = low + (high - low) * thread // threads, low + (high - low) * (thread + 1) // threads
    start = first
    while start < last and load_i32(pointer + 4 * start) < begin:
        start += 1
    stop = start
    while stop < last and load_i32(pointer + 4 * stop) < end:
        stop += 1
    return (first if thread == 0 else start), (last if thread == threads - 1 else stop)


def _forward(lanes: int) -> Any:
    @helper
    def segment_sums(first, last, pointer, index, value, bias, x, y, continued, relu):
        for s in range(first, last):
            if continued:
                acc = load(y, lanes)
            elif bias != 0:
                acc = broadcast(load_f32(bias), lanes)
            else:
                acc = zeros(lanes)
            for k in range(load_i32(pointer + 4 * s), load_i32(pointer + 4 * s + 4)):
                acc = fma(load_f32(value + 4 * k), load(x + load_i32(index + 4 * k) * lanes, lanes), acc)
            store(y, rectify(acc) if relu else acc)
            y += 4 * lanes
            if bias != 0:
                bias += 4

    return segment_sums


_forward_16, _forward_32, _forward_48, _forward_64 = (_forward(lanes) for lanes in (16, 32, 48, 64))


@kernel
def linear_forward(args, frame, thread, threads):
    """y = W x + b, rectified where asked. ``index`` holds 4 times the column of each kept weight.

    ``whole`` says where each row would begin if there were one block.
    """
    inputs, rows, blocks, whole, pointer, index, value, bias, x, y, relu = fields(args, 11)
    row, end = share(whole, 0, rows, thread, threads)
    for tile in range(tiles(frame)):
        lanes = tile_lanes(frame, tile)
        for block in range(blocks):
            first, last = block * rows + row, block * rows + end
            to = y + 256 * tile * rows + 4 * lanes * row
            source = x + 256 * tile * inputs
            b = bias + 4 * row if bias != 0 else 0
            rectified = relu != 0 and block == blocks - 1
            if lanes == 64:
                _forward_64(first, last, pointer, index, value, b, source, to, block > 0, rectified)
            elif lanes == 48:
                _forward_48(first, last, pointer, index, value, b, source, to, block > 0, rectified)
            elif lanes == 32:
                _forward_32(first, last, pointer, index, value, b, source, to, block > 0, rectified)
            else:
                _forward_16(first, last, pointer, index, value, b, source, to, block > 0, rectified)


def _input_gradient(lanes: int) -> Any:
    @helper
    def segment_sums(first, last, pointer, index, place, value, dy, x, dx, continued, gated):
        for s in range(first, last):
            acc = zeros(lanes)
            for k in range(load_i32(pointer + 4 * s), load_i32(pointer + 4 * s + 4)):
                weight = load_f32(value + load_i32(place + 4 * k))
                acc = fma(weight, load(dy + load_i32(index + 4 * k) * lanes, lanes), acc)
            if gated:
                acc = where_positive(load(x, lanes), acc)
            store(dx, acc + load(dx, lanes) if continued else acc)
            dx += 4 * lanes
            x += 4 * lanes

    return segment_sums


_input_16, _input_32, _input_48, _input_64 = (_input_gradient(lanes) for lanes in (16, 32, 48, 64))


@kernel
def linear_input_gradient(args, frame, thread, threads):
    """dx = W^T dy, 0 where the rectified x is 0 or less; added to dx where ``accumulate``.

    Segments are columns here, as in ``whole``: ``index`` holds 4 times the row of each kept weight, ``place`` 4 times
    its position among the values, which lie in the forward order.
    """
    inputs, rows, blocks, whole, pointer, index, place, value, dy, x, dx, gated, accumulate = fields(args, 13)
    column, end = share(whole, 0, inputs, thread, threads)
    for tile in range(tiles(frame)):
        lanes = tile_lanes(frame, tile)
        for block in range(blocks):
            first, last = block * inputs + column, block * inputs + end
            at = 256 * tile * inputs + 4 * lanes * column
            source, go_on = dy + 256 * tile * rows, accumulate != 0 or block > 0
            if lanes == 64:
                _input_64(first, last, pointer, index, place, value, source, x + at, dx + at, go_on, gated != 0)
            elif lanes == 48:
                _input_48(first, last, pointer, index, place, value, source, x + at, dx + at, go_on, gated != 0)
            elif lanes == 32:
                _input_32(first, last, pointer, index, place, value, source, x + at, dx + at, go_on, gated != 0)
            else:
                _input_16(first, last, pointer, index, place, value, source, x + at, dx + at, go_on, gated != 0)


def _weight_gradient(lanes: int) -> Any:
    @helper
    def product(dy, x, index, k):
        return dot16(dy, load(x + load_i32(index + 4 * k) * lanes, lanes))

    @helper
    def segment_products(first, last, pointer, index, gradient, x, dy, add):
        for s in range(first, last):
            k, end = load_i32(pointer + 4 * s), load_i32(pointer + 4 * s + 4)
            if k < end:
                d = load(dy, lanes)
                while k + 16 <= end:
                    sums = totals(
                        (
                            product(d, x, index, k),
                            product(d, x, index, k + 1),
                            product(d, x, index, k + 2),
                            product(d, x, index, k + 3),
                            product(d, x, index, k + 4),
                            product(d, x, index, k + 5),
                            product(d, x, index, k + 6),
                            product(d, x, index, k + 7),
                            product(d, x, index, k + 8),
                            product(d, x, index, k + 9),
                            product(d, x, index, k + 10),
                            product(d, x, index, k + 11),
                            product(d, x, index, k + 12),
                            product(d, x, index, k + 13),
                            product(d, x, index, k + 14),
                            product(d, x, index, k + 15),
                        )
                    )
                    store(gradient + 4 * k, sums + load(gradient + 4 * k, 16) if add else sums)
                    k += 16
                while k + 4 <= end:
                    four = totals4(
                        product(d, x, index, k),
                        product(d, x, index, k + 1),
                        product(d, x, index, k + 2),
                        product(d, x, index, k + 3),
                    )
                    store(gradient + 4 * k, four + load(gradient + 4 * k, 4) if add else four)
                    k += 4
                while k < end:
                    one = total(product(d, x, index, k))
                    store_f32(gradient + 4 * k, one + load_f32(gradient + 4 * k) if add else one)
                    k += 1
            dy += 4 * lanes

    return segment_products


_weight_16, _weight_32, _weight_48, _weight_64 = (_weight_gradient(lanes) for lanes in (16, 32, 48, 64))


@kernel
def linear_weight_gradient(args, frame, thread, threads):
    """The gradient of each kept weight: the product of its row of dy and its column's row of x, summed over the batch.

    An entry's place in its segment decides in which order its 16 partial sums are added: the bits are the same on every
    run and for every number of threads.
    """
    inputs, rows, blocks, pointer, index, gradient, x, dy = fields(args, 8)
    for tile in range(tiles(frame)):
        lanes = tile_lanes(frame, tile)
        for block in range(blocks):
            first, last = share(pointer, block * rows, block * rows + rows, thread, threads)
            d = dy + 256 * tile * rows + 4 * lanes * (first - block * rows)
            source = x + 256 * tile * inputs
            if lanes == 64:
                _weight_64(first, last, pointer, index, gradient, source, d, tile > 0)
            elif lanes == 48:
                _weight_48(first, last, pointer, index, gradient, source, d, tile > 0)
            elif lanes == 32:
                _weight_32(first, last, pointer, index, gradient, source, d, tile > 0)
            else:
                _weight_16(first, last, pointer, index, gradient, source, d, tile > 0)


@helper
def row_sum(frame, dy, rows, row):
    """One row of dy, summed over the batch into 16 partial sums."""
    acc = zeros(16)
    for tile in range(tiles(frame)):
        lanes = tile_lanes(frame, tile)
        at = dy + 256 * tile * rows + 4 * lanes * row
        if lanes == 64:
            acc = acc + fold(load(at, 64))
        else:
            for lane in range(0, lanes, 16):
                acc = acc + load(at + 4 * lane, 16)
    return acc


@kernel
def bias_gradient(args, frame, thread, threads):
    """The gradient of each bias: its row of dy, summed over the batch."""
    rows, gradient, dy = fields(args, 3)
    row, end = rows * thread // threads // 16 * 16, rows * (thread + 1) // threads // 16 * 16
    if thread == threads - 1:
        end = rows
    while row + 16 <= end:
        sums = totals(
            (
                row_sum(frame, dy, rows, row),
                row_sum(frame, dy, rows, row + 1),
                row_sum(frame, dy, rows, row + 2),
                row_sum(frame, dy, rows, row + 3),
                row_sum(frame, dy, rows, row + 4),
                row_sum(frame, dy, rows, row + 5),
                row_sum(frame, dy, rows, row + 6),
                row_sum(frame, dy, rows, row + 7),
                row_sum(frame, dy, rows, row + 8),
                row_sum(frame, dy, rows, row + 9),
                row_sum(frame, dy, rows, row + 10),
                row_sum(frame, dy, rows, row + 11),
                row_sum(frame, dy, rows, row + 12),
                row_sum(frame, dy, rows, row + 13),
                row_sum(frame, dy, rows, row + 14),
                row_sum(frame, dy, rows, row + 15),
            )
        )
        store(gradient + 4 * row, sums)
        row += 16
    while row < end:
        store_f32(gradient + 4 * row, total(row_sum(frame, dy, rows, row)))
        row += 1
