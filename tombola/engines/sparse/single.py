"""Kernels for a single example, where there is no batch to make vectors of: convolutions run along rows of pixels.

Images lie plane by plane, a row after the other. The zeros between two rows, where a convolution wants any, are the end
of one row and the beginning of the next. So a whole plane is one long row, and a convolution with a stride of 1 is a
sum of shifted copies of it: what it puts between the rows is put right afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.convolution import Convolution
from tombola.engines.sparse.elementwise import Flatten
from tombola.engines.sparse.kernel import Kernel, helper, kernel
from tombola.engines.sparse.linear import Linear
from tombola.engines.sparse.memory import broadcast, fields, load, load_f32, load_i32, store, store_f32
from tombola.engines.sparse.parts import Activation, Call, Floats, call
from tombola.engines.sparse.pooling import MaxPool
from tombola.engines.sparse.program import Program
from tombola.engines.sparse.vectors import fma, rectify

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@kernel
def one_vector(args, frame, thread, threads):
    """y = W x + b for a single example, rectified where asked; rows come by length, ``to`` says where each belongs."""
    rows, pointer, index, value, to, bias, x, y, relu = fields(args, 9)
    k = 0
    for row in range(rows):
        end = load_i32(pointer + 4 * row + 4)
        place = load_i32(to + 4 * row)
        a = load_f32(bias + place) if bias != 0 else np.float32(0)
        b = c = d = np.float32(0)
        while k + 4 <= end:
            a += load_f32(value + 4 * k) * load_f32(x + load_i32(index + 4 * k))
            b += load_f32(value + 4 * k + 4) * load_f32(x + load_i32(index + 4 * k + 4))
            c += load_f32(value + 4 * k + 8) * load_f32(x + load_i32(index + 4 * k + 8))
            d += load_f32(value + 4 * k + 12) * load_f32(x + load_i32(index + 4 * k + 12))
            k += 4
        while k < end:
            a += load_f32(value + 4 * k) * load_f32(x + load_i32(index + 4 * k))
            k += 1
        total = (a + b) + (c + d)
        store_f32(y + place, np.float32(0) if relu != 0 and total <= np.float32(0) else total)


def _tile(lanes: int) -> Any:
    @helper
    def sums(first, last, offset, value, bias, x, y, relu):
        acc = broadcast(bias, lanes)
        for k in range(first, last):
            acc = fma(load_f32(value + 4 * k), load(x + load_i32(offset + 4 * k), lanes), acc)
        store(y, rectify(acc) if relu else acc)

    return sums


_tile_16, _tile_32, _tile_64, _tile_128 = (_tile(lanes) for lanes in (16, 32, 64, 128))


@kernel
def one_image(args, frame, thread, threads):
    """A convolution of a single image, each plane one long row, cut into ``tiles``: where each begins, and its lanes.

    ``gap`` floats after each of the ``rows`` but the last are set to 0, where the next layer reads them.
    """
    channels, pointer, offset, value, bias, x, y, plane, relu, tiles, table, rows, pitch, gap = fields(args, 14)
    for c in range(channels):
        first, last = load_i32(pointer + 4 * c), load_i32(pointer + 4 * c + 4)
        b = load_f32(bias + 4 * c) if bias != 0 else np.float32(0)
        to = y + c * plane
        for t in range(tiles):
            at, lanes = load_i32(table + 8 * t), load_i32(table + 8 * t + 4)
            if lanes == 128:
                _tile_128(first, last, offset, value, b, x + at, to + at, relu != 0)
            elif lanes == 64:
                _tile_64(first, last, offset, value, b, x + at, to + at, relu != 0)
            elif lanes == 32:
                _tile_32(first, last, offset, value, b, x + at, to + at, relu != 0)
            else:
                _tile_16(first, last, offset, value, b, x + at, to + at, relu != 0)
        if gap != 0:
            for r in range(1, rows):
                for i in range(gap):
                    store_f32(to + r * pitch - 4 * gap + 4 * i, np.float32(0))


@kernel
def one_max_pool(args, frame, thread, threads):
    """The largest number of each window of a single image; NaN where it holds one. A plane's windows are a table."""
    channels, windows, begins, among, to, x, y, x_plane, y_plane = fields(args, 9)
    for _ in range(channels):
        for n in range(windows):
            first, last = load_i32(begins + 4 * n), load_i32(begins + 4 * n + 4)
            best = load_f32(x + load_i32(among + 4 * first))
            for k in range(first + 1, last):
                other = load_f32(x + load_i32(among + 4 * k))
                if other > best or other != other:
                    best = other
            store_f32(y + load_i32(to + 4 * n), best)
        x += x_plane
        y += y_plane


@kernel
def one_copy(args, frame, thread, threads):
    """Numbers from some places to others."""
    numbers, source, to, x, y = fields(args, 5)
    for n in range(numbers):
        store_f32(y + load_i32(to + 4 * n), load_f32(x + load_i32(source + 4 * n)))


INTO: dict[Kernel, int] = {one_vector: 6, one_image: 5, one_max_pool: 5, one_copy: 3}
"""Which argument of a first call is the address that it reads from."""
OUT_OF = 7
"""Which argument of the last call, that of a linear layer, is the address that it writes to."""

Ints = NDArray[np.int64]


@dataclass
class _Value:
    """One intermediate result: an array, and where in it each number lies, in torch's order."""

    array: Floats
    places: Ints
    row: int = 0
    """Floats from one row of pixels to the next."""


class _Unfit(Exception):  # noqa: N818  # never seen outside
    """A net that has no calls for a single example."""


def single_calls(program: Program) -> list[Call]:
    """The calls for a single example of a chain of linear layers, convolutions with a stride of 1 and max pooling that
    ends with a linear layer; none for other nets."""
    ends = [program.input, *(step.output for step in program.steps)]
    if not program.steps or any(step.inputs != (x,) for step, x in zip(program.steps, ends, strict=False)):
        return []
    layers = [step.layer for step in program.steps]
    x = program.input
    count = x.channels * x.height * x.width
    columns = np.arange(count) if program.columns is None else program.columns
    value = _Value(np.empty(0, np.float32), columns, x.width)
    calls: list[Call] = []
    try:
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            calls += _layer(layer, value, *_paddings(following))
    except _Unfit:
        return []
    return calls if isinstance(layers[-1], Linear) else []


def _paddings(layer: Any) -> tuple[int, int]:
    """How many rows and columns of zeros a layer wants around its input."""
    return (layer.rows.padding, layer.columns.padding) if isinstance(layer, Convolution) else (0, 0)


def _layer(layer: Any, value: _Value, rows: int, columns: int) -> list[Call]:
    """The calls of one layer, whose result, with so many zeros around it, takes the place of the value."""
    if isinstance(layer, Flatten):
        return []
    if isinstance(layer, Linear):
        return [_linear(layer, value)]
    if isinstance(layer, MaxPool):
        return [_max_pool(layer, value, rows, columns)]
    if isinstance(layer, Convolution) and (layer.rows.stride, layer.columns.stride) == (1, 1):
        before = [] if value.array.size else _padded(layer, value)
        return [*before, _convolution(layer, value, rows, columns)]
    raise _Unfit


def _images(y: Activation, row: int, rows: int, columns: int) -> _Value:
    """Room for images with zeros around them, each row ``row`` floats after the one before."""
    plane = (y.height + 2 * rows) * row + columns
    channel, line, column = np.indices((y.channels, y.height, y.width)).reshape(3, -1)
    places = channel * plane + (line + rows) * row + column + columns
    return _Value(np.zeros(y.channels * plane, np.float32), places, row)


def _bytes(places: Ints) -> NDArray[np.int32]:
    if places.size and int(places.max()) >= 1 << 29:
        raise _Unfit
    return (4 * places).astype(np.int32)


def _linear(layer: Linear, value: _Value) -> Call:
    rows, columns, outputs = layer.output, layer.input, layer.y.channels
    counts = np.bincount(rows, minlength=outputs)
    # Rows of one length follow each other: the processor foresees where they end.
    to = np.argsort(counts, kind="stable")
    order = np.lexsort((columns, np.argsort(to)[rows]))
    pointer = np.concatenate([[0], np.cumsum(counts[to])]).astype(np.int32)
    x, y = value.array, np.zeros(outputs, np.float32)
    index, weights = _bytes(value.places[columns[order]]), layer.weight.value[order]
    value.array, value.places = y, np.arange(outputs)
    return call(one_vector, outputs, pointer, index, weights, _bytes(to), _bias(layer), x, y, layer.relu)


def _bias(layer: Linear | Convolution) -> Floats | int:
    return 0 if layer.bias is None else layer.bias.value


def _padded(layer: Convolution, value: _Value) -> list[Call]:
    """A copy of the net's input with zeros around it, where a convolution wants them."""
    if _paddings(layer) == (0, 0):
        return []
    room = _images(layer.x, layer.x.width + layer.columns.padding, *_paddings(layer))
    made = call(one_copy, len(room.places), _bytes(value.places), _bytes(room.places), value.array, room.array)
    value.array, value.places, value.row = room.array, room.places, room.row
    return [made]


def _convolution(layer: Convolution, value: _Value, rows: int, columns: int) -> Call:
    x, y = layer.x, layer.y
    length = (y.height - 1) * value.row + y.width
    planes = value.places[:: x.height * x.width] - layer.rows.padding * value.row - layer.columns.padding
    # What torch pads on the far side alone (padding="same", even kernels) isn't there.
    inside = all(a.output + a.dilation * (a.kernel - 1) <= a.input + 2 * a.padding for a in (layer.rows, layer.columns))
    if length < 16 or not inside or value.row < y.width + columns:
        raise _Unfit
    offset = layer.row * layer.rows.dilation * value.row + layer.column * layer.columns.dilation
    order = np.argsort(layer.output, kind="stable")
    pointer = np.concatenate([[0], np.cumsum(np.bincount(layer.output, minlength=y.channels))]).astype(np.int32)
    made = _images(y, value.row, rows, columns)
    table = _tiles(length)
    gap = value.row - y.width if columns else 0
    args = pointer, _bytes((planes[layer.input] + offset)[order]), layer.weight.value[order], _bias(layer)
    plane = 4 * (len(made.array) // y.channels)
    result = made.array[int(made.places[0]) :]
    done = call(
        one_image, y.channels, *args, value.array, result, plane, layer.relu, len(table), table, y.height,
        4 * value.row, gap,
    )  # fmt: skip
    value.array, value.places = made.array, made.places
    return done


def _tiles(length: int) -> NDArray[np.int32]:
    """A long row cut into tiles: first byte and lanes of each. The last may begin before the end of the one before."""
    tiles, at = [], 0
    while at < length:
        left = length - at
        enough = [lanes for lanes in (16, 32, 64, 128) if left <= lanes <= length]
        lanes = enough[0] if enough else max(lanes for lanes in (16, 32, 64, 128) if lanes <= left)
        tiles.append((4 * min(at, length - lanes), lanes))
        at += lanes
    return np.array(tiles, np.int32)


def _max_pool(layer: MaxPool, value: _Value, rows: int, columns: int) -> Call:
    x, y = layer.x, layer.y
    if not value.array.size:  # the net's own input, which may be only some of the channels
        raise _Unfit
    high, wide, down, right, above, before = layer._windows
    plane = value.places[: x.height * x.width].reshape(x.height, x.width)
    windows = [
        plane[
            max(0, r * down - above) : r * down - above + high, max(0, c * right - before) : c * right - before + wide
        ]
        for r in range(y.height)
        for c in range(y.width)
    ]
    begins = np.cumsum([0, *(window.size for window in windows)]).astype(np.int32)
    made = _images(y, y.width + columns, rows, columns)
    x_plane, y_plane = len(value.array) // x.channels, len(made.array) // y.channels
    among = _bytes(np.concatenate([window.reshape(-1) for window in windows]))
    to = _bytes(made.places[: y.height * y.width])
    ends = value.array, made.array, 4 * x_plane, 4 * y_plane
    value.array, value.places, value.row = made.array, made.places, made.row
    return call(one_max_pool, y.channels, len(windows), begins, among, to, *ends)
