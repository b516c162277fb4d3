"""Gathering a batch: rows of the data set, by index, transposed into activations and normalised on the way.

Two sources, uint8 and float32. A line of the source, ``width`` elements of one example, becomes ``width`` runs of 16
examples, ``step`` bytes apart. In tiled activations an example is one line; in images it is one line per channel and
row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.linear_kernels import tile_lanes
from tombola.engines.sparse.memory import fields, gather_bytes, gather_floats, load_f32, load_i64, prefetch, store
from tombola.engines.sparse.parts import (
    COUNT,
    LANES,
    NEXT_COUNT,
    NEXT_ORDER,
    ORDER,
    Activation,
    Call,
    Floats,
    call,
    padded,
)
from tombola.tasks.memory import InMemory

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@helper
def sixteen(frame, first):
    """The indices of 16 examples of the batch from ``first``; the padding repeats the last one."""
    order, last = load_i64(frame + ORDER), load_i64(frame + COUNT) - 1
    return (
        load_i64(order + 8 * min(first, last)),
        load_i64(order + 8 * min(first + 1, last)),
        load_i64(order + 8 * min(first + 2, last)),
        load_i64(order + 8 * min(first + 3, last)),
        load_i64(order + 8 * min(first + 4, last)),
        load_i64(order + 8 * min(first + 5, last)),
        load_i64(order + 8 * min(first + 6, last)),
        load_i64(order + 8 * min(first + 7, last)),
        load_i64(order + 8 * min(first + 8, last)),
        load_i64(order + 8 * min(first + 9, last)),
        load_i64(order + 8 * min(first + 10, last)),
        load_i64(order + 8 * min(first + 11, last)),
        load_i64(order + 8 * min(first + 12, last)),
        load_i64(order + 8 * min(first + 13, last)),
        load_i64(order + 8 * min(first + 14, last)),
        load_i64(order + 8 * min(first + 15, last)),
    )


def _lines(read: Any, bytes_each: int) -> Any:
    @helper
    def line(source, pitch, indices, width, scale, shift, to, step):
        for w in range(0, width, 16):
            for i, values in enumerate(read(source + bytes_each * w, pitch, indices), w):
                if i < width:
                    store(to + step * i, values * load_f32(scale + 4 * i) + load_f32(shift + 4 * i))

    return line


_byte_line, _float_line = _lines(gather_bytes, 1), _lines(gather_floats, 4)


@helper
def prefetch_next(frame, source, pitch, thread, threads):
    """Ask for the rows of the next batch, which lie anywhere in a set too large for the caches."""
    order, count = load_i64(frame + NEXT_ORDER), load_i64(frame + NEXT_COUNT)
    for i in range(count * thread // threads, count * (thread + 1) // threads):
        row = source + pitch * load_i64(order + 8 * i)
        for at in range(0, pitch, 64):
            prefetch(row + at)


def _tiled(line: Any) -> Any:
    @helper
    def gather(args, frame, thread, threads):
        source, pitch, features, scale, shift, x = fields(args, 6)
        groups = (load_i64(frame + COUNT) + 15) // 16
        for group in range(groups * thread // threads, groups * (thread + 1) // threads):
            tile = group // 4
            to = x + 256 * tile * features + 64 * (group % 4)
            line(source, pitch, sixteen(frame, 16 * group), features, scale, shift, to, 4 * tile_lanes(frame, tile))
        prefetch_next(frame, source, pitch, thread, threads)

    return gather


def _images(line: Any, bytes_each: int) -> Any:
    @helper
    def gather(args, frame, thread, threads):
        source, pitch, channels, height, width, scale, shift, x, row_pitch, plane_pitch, group_pitch = fields(args, 11)
        groups = (load_i64(frame + COUNT) + 15) // 16
        for group in range(groups * thread // threads, groups * (thread + 1) // threads):
            indices = sixteen(frame, 16 * group)
            for c in range(channels):
                for h in range(height):
                    at = (c * height + h) * width
                    to = x + group * group_pitch + c * plane_pitch + h * row_pitch
                    line(source + bytes_each * at, pitch, indices, width, scale + 4 * at, shift + 4 * at, to, 64)
        prefetch_next(frame, source, pitch, thread, threads)

    return gather


_tiled_bytes, _tiled_floats = _tiled(_byte_line), _tiled(_float_line)
_image_bytes, _image_floats = _images(_byte_line, 1), _images(_float_line, 4)


# Each a function of its own: numba keeps no machine code on disk for one that is made with other compiled functions.


@kernel
def gather_tiled_bytes(args, frame, thread, threads):
    """Rows of uint8 into a tiled activation."""
    _tiled_bytes(args, frame, thread, threads)


@kernel
def gather_tiled_floats(args, frame, thread, threads):
    """Rows of float32 into a tiled activation."""
    _tiled_floats(args, frame, thread, threads)


@kernel
def gather_image_bytes(args, frame, thread, threads):
    """Rows of uint8 into images."""
    _image_bytes(args, frame, thread, threads)


@kernel
def gather_image_floats(args, frame, thread, threads):
    """Rows of float32 into images."""
    _image_floats(args, frame, thread, threads)


class Source:
    """The rows of a data set as the kernels read them: only the columns that are used, whole blocks of 16."""

    def __init__(self, data: InMemory, x: Activation, columns: NDArray[np.int64] | None = None) -> None:
        self.x, self.features = x, data.rows.shape[1] if columns is None else len(columns)
        self._columns = columns
        kept = slice(None) if columns is None else columns
        self.scale, self.shift = (np.ascontiguousarray(v[kept]) for v in (data.scale, data.shift))
        line = x.width if x.images else self.features
        if columns is None and line % LANES == 0 and data.rows.flags.c_contiguous:
            self.rows = data.rows
            return
        # The last block of a line reads up to 15 elements past its end: the extra row is for the last line of all.
        self.rows = np.zeros((len(data.rows) + 1, padded(self.features)), dtype=data.rows.dtype)
        self.put(data.rows)

    def put(self, rows: NDArray[Any]) -> None:
        """Take other rows, in the data's columns, in place of the first ones: data that are made as they are needed."""
        read = rows if self._columns is None else np.take(rows, self._columns, axis=1)
        self.rows[: len(rows), : self.features] = read

    def batch(self) -> Call:
        """The call that fills the activation with the batch that the frame names."""
        x, pitch = self.x, int(self.rows.strides[0])
        whole = self.rows.dtype == np.uint8
        if not x.images:
            gather = gather_tiled_bytes if whole else gather_tiled_floats
            return call(gather, self.rows, pitch, self.features, self.scale, self.shift, x.value)
        gather = gather_image_bytes if whole else gather_image_floats
        pitches = [4 * p for p in x.pitch]
        inside: Floats = x.value[x.interior :]
        return call(gather, self.rows, pitch, x.channels, x.height, x.width, self.scale, self.shift, inside, *pitches)
