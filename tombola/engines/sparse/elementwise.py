"""Kernels and layers without arithmetic to speak of: sums, ReLU, flattening, and batches in torch's layout.

What a vector of 16 examples holds is a *place*: a pixel of a channel, or a feature. ``places`` numbers them as torch
flattens them, so that one kernel serves images with or without halo and tiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import (
    fields,
    load,
    load_f32,
    load_i32,
    load_i64,
    stack_room,
    store,
    store_f32,
    transpose,
)
from tombola.engines.sparse.parts import COUNT, Activation, Call, Floats, Parameter, call
from tombola.engines.sparse.vectors import first_lanes, rectify, where_positive

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@kernel
def sum_forward(args, frame, thread, threads):
    """``y = a + b``, or ``y = a`` where there is no ``b``; rectified on demand."""
    planes, rows, length, a, a_plane, a_row, b, b_plane, b_row, y, y_plane, y_row, relu = fields(args, 13)
    planes *= (load_i64(frame + COUNT) + 15) // 16
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        for r in range(rows):
            one, two, to = a + p * a_plane + r * a_row, b + p * b_plane + r * b_row, y + p * y_plane + r * y_row
            for i in range(0, 64 * length, 64):
                value = load(one + i, 16)
                if b != 0:
                    value = value + load(two + i, 16)
                if relu:
                    value = rectify(value)
                store(to + i, value)


@helper
def hand_on(slope, gate, to, gated, accumulate):
    """Write one vector of a gradient, or add it to what is there."""
    if gated:
        slope = where_positive(load(gate, 16), slope)
    if accumulate:
        slope = slope + load(to, 16)
    store(to, slope)


@kernel
def sum_backward(args, frame, thread, threads):
    """The gradient of ``y`` for ``a`` and ``b``, first ``a``, then ``b``; an address of 0 skips one."""
    (
        planes, rows, length, dy, y_plane, y_row,
        a, da, a_plane, a_row, a_gated, a_accumulate, b, db, b_plane, b_row, b_gated, b_accumulate,
    ) = fields(args, 18)  # fmt: skip
    planes *= (load_i64(frame + COUNT) + 15) // 16
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        for r in range(rows):
            source, at_a, at_b = dy + p * y_plane + r * y_row, p * a_plane + r * a_row, p * b_plane + r * b_row
            for i in range(0, 64 * length, 64):
                slope = load(source + i, 16)
                if da != 0:
                    hand_on(slope, a + at_a + i, da + at_a + i, a_gated != 0, a_accumulate != 0)
                if db != 0:
                    hand_on(slope, b + at_b + i, db + at_b + i, b_gated != 0, b_accumulate != 0)


@helper
def group_at(count, group, base, pitch, images):
    """Where a group of 16 examples begins, and bytes from one of its places to the next."""
    if images:
        return base + group * pitch, 64
    tile = group // 4
    return base + tile * pitch + 64 * (group % 4), 4 * min(64, (count - 64 * tile + 15) // 16 * 16)


@kernel
def copy_places(args, frame, thread, threads):
    """Copy every place of one activation to the same place of another; gated and added on demand."""
    (
        number, source, source_places, source_pitch, source_images,
        to, to_places, to_pitch, to_images, gate, accumulate,
    ) = fields(args, 11)  # fmt: skip
    count = load_i64(frame + COUNT)
    total = (count + 15) // 16 * number
    first, last = total * thread // threads, total * (thread + 1) // threads
    while first < last:
        group = first // number
        end = min(last, (group + 1) * number)
        here, here_unit = group_at(count, group, source, source_pitch, source_images)
        there, there_unit = group_at(count, group, to, to_pitch, to_images)
        for f in range(first - group * number, end - group * number):
            offset = there_unit * load_i32(to_places + 4 * f)
            value = load(here + here_unit * load_i32(source_places + 4 * f), 16)
            hand_on(value, gate + (there - to) + offset, there + offset, gate != 0, accumulate != 0)
        first = end


@kernel
def from_rows(args, frame, thread, threads):
    """Fill an activation from rows, one per example; 0 in the padding and, where there is a gate, where it is shut."""
    rows, number, to, places, pitch, images, gate = fields(args, 7)
    count, room = load_i64(frame + COUNT), stack_room(256)
    width = min(16, number)
    blocks = (number + 15) // 16
    total = (count + 15) // 16 * blocks
    for unit in range(total * thread // threads, total * (thread + 1) // threads):
        group = unit // blocks
        # The last block begins early enough to be a whole one: a few places are written twice, alike.
        first = min(16 * (unit - group * blocks), number - width)
        lanes = min(16, count - 16 * group)
        for i in range(16):
            row = rows + 4 * ((16 * group + min(i, lanes - 1)) * number + first)
            if width == 16:
                store(room + 64 * i, load(row, 16))
            else:
                for j in range(width):
                    store_f32(room + 64 * i + 4 * j, load_f32(row + 4 * j))
        transpose(room)
        there, step = group_at(count, group, to, pitch, images)
        for j in range(width):
            offset = step * load_i32(places + 4 * (first + j))
            value = first_lanes(load(room + 64 * j, 16), lanes)
            hand_on(value, gate + (there - to) + offset, there + offset, gate != 0, False)


@kernel
def to_rows(args, frame, thread, threads):
    """Write an activation to rows, one per example."""
    rows, number, source, places, pitch, images = fields(args, 6)
    count, room = load_i64(frame + COUNT), stack_room(256)
    width = min(16, number)
    blocks = (number + 15) // 16
    total = (count + 15) // 16 * blocks
    for unit in range(total * thread // threads, total * (thread + 1) // threads):
        group = unit // blocks
        first = min(16 * (unit - group * blocks), number - width)
        here, step = group_at(count, group, source, pitch, images)
        for j in range(width):
            store(room + 64 * j, load(here + step * load_i32(places + 4 * (first + j)), 16))
        transpose(room)
        for i in range(min(16, count - 16 * group)):
            row = rows + 4 * ((16 * group + i) * number + first)
            if width == 16:
                store(row, load(room + 64 * i, 16))
            else:
                for j in range(width):
                    store_f32(row + 4 * j, load_f32(room + 64 * i + 4 * j))


def places(activation: Activation) -> NDArray[np.int32]:
    """For each element of an example, in torch's order, its vector of 16 within the group of examples."""
    if not activation.images:
        return np.arange(activation.channels, dtype=np.int32)
    c, h, w = np.indices((activation.channels, activation.height, activation.width)).reshape(3, -1)
    row, plane, _ = activation.pitch
    return ((c * plane + h * row + activation.interior) // 16 + w).astype(np.int32)


def read_rows(rows: Floats | int, x: Activation, *, gradient: bool = False) -> Call:
    """The call that fills ``x`` with a float32 batch in torch's layout: (N, features) or (N, C, H, W), contiguous.

    ``rows`` is the batch or its address. With ``gradient`` it fills the gradient, with 0 wherever a ReLU is shut.
    """
    array = x.gradient if gradient else x.value
    gate = x.value if gradient and x.rectified else 0
    return call(from_rows, rows, elements(x), array, places(x), _pitch(x), x.images, gate)


def write_rows(rows: Floats | int, x: Activation, *, gradient: bool = False) -> Call:
    """The call that writes ``x``, or its gradient, to a float32 batch in torch's layout, which ``read_rows`` reads."""
    return call(to_rows, rows, elements(x), x.gradient if gradient else x.value, places(x), _pitch(x), x.images)


def elements(activation: Activation) -> int:
    """Numbers per example."""
    return activation.channels * activation.height * activation.width


def _pitch(activation: Activation) -> int:
    """Bytes from one group of images, or one tile of examples, to the next."""
    return 4 * activation.pitch[2] if activation.images else 256 * activation.channels


class Sum:
    """``y = a + b``, rectified on demand; all of the same layout and size, halos may differ, ``a`` may be ``b``."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, a: Activation, b: Activation, y: Activation, *, relu: bool = False) -> None:
        for other in (b, y):
            _same(a, other)
        self.a, self.b, self.y, self.relu = a, b, y, relu
        self._shape = _shape(a, b, y)

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        flat = self._shape[3]
        sources = (*_plane(self.a, self.a.value, flat), *_plane(self.b, self.b.value, flat))
        return [call(sum_forward, *self._shape[:3], *sources, *_plane(self.y, self.y.value, flat), self.relu)]

    def backward(self, a_gradient: bool, a_accumulate: bool, b_gradient: bool, b_accumulate: bool) -> list[Call]:
        """The gradients that are wanted; where ``a`` is ``b``, let ``b_accumulate`` be True."""
        if not (a_gradient or b_gradient):
            return []
        flat = self._shape[3]
        a = _receiver(self.a, flat, a_gradient, a_accumulate)
        b = _receiver(self.b, flat, b_gradient, b_accumulate)
        return [call(sum_backward, *self._shape[:3], *_plane(self.y, self.y.gradient, flat), *a, *b)]


class Rectify:
    """``y = max(x, 0)``, where no layer before it could do so at once."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, x: Activation, y: Activation) -> None:
        _same(x, y)
        self.x, self.y = x, y
        self._shape = _shape(x, y)

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        flat = self._shape[3]
        x, y = _plane(self.x, self.x.value, flat), _plane(self.y, self.y.value, flat)
        return [call(sum_forward, *self._shape[:3], *x, 0, 0, 0, *y, True)]

    def backward(self, input_gradient: bool, accumulate: bool) -> list[Call]:
        """The gradient of the output, which is 0 already where the output is."""
        if not input_gradient:
            return []
        flat = self._shape[3]
        x = _receiver(self.x, flat, True, accumulate)
        return [call(sum_backward, *self._shape[:3], *_plane(self.y, self.y.gradient, flat), *x, *[0] * 6)]


class Flatten:
    """Images as features, in torch's order: channel, row, column."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, x: Activation, y: Activation) -> None:
        if y.images or elements(x) != y.channels:
            raise ValueError(f"to flatten {x} takes a tiled activation of {elements(x)} features, not {y}")
        self.x, self.y = x, y

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        return [self._copy(self.x, self.x.value, self.y, self.y.value, 0, False)]

    def backward(self, input_gradient: bool, accumulate: bool) -> list[Call]:
        """The gradient of the features, back in the layout of images."""
        if not input_gradient:
            return []
        gate = self.x.value if self.x.rectified else 0
        return [self._copy(self.y, self.y.gradient, self.x, self.x.gradient, gate, accumulate)]

    @staticmethod
    def _copy(
        source: Activation, values: Floats, to: Activation, room: Floats, gate: Floats | int, accumulate: bool
    ) -> Call:
        ends = [(array, places(a), _pitch(a), a.images) for a, array in ((source, values), (to, room))]
        return call(copy_places, elements(source), *ends[0], *ends[1], gate, accumulate)


def _same(a: Activation, b: Activation) -> None:
    if (a.images, a.channels, a.height, a.width) != (b.images, b.channels, b.height, b.width):
        raise ValueError(f"activations must be of the same layout and size, not {a} and {b}")


def _shape(*activations: Activation) -> tuple[int, int, int, bool]:
    """Planes per group of 16 examples, rows of a plane, vectors of a row, and whether planes are taken whole.

    Where all halos are alike, a plane with its halo is one long row: the halo's zeros stay zeros.
    """
    a = activations[0]
    if not a.images:
        return 1, 1, a.channels, True
    if len({b.halo for b in activations}) == 1:
        return a.channels, 1, a.pitch[1] // 16, True
    return a.channels, a.height, a.width, False


def _plane(activation: Activation, array: Floats, whole: bool) -> tuple[Floats, int, int]:
    """Where the first row lies, and bytes from one plane and row to the next."""
    if not activation.images:
        return array, 64 * activation.channels, 0
    row, plane, _ = activation.pitch
    return array[0 if whole else activation.interior :], 4 * plane, 4 * row


def _receiver(
    activation: Activation, whole: bool, wanted: bool, accumulate: bool
) -> tuple[Floats | int, Floats | int, int, int, bool, bool]:
    """What ``sum_backward`` needs to know about one input."""
    value, plane, row = _plane(activation, activation.value, whole)
    gradient = _plane(activation, activation.gradient, whole)[0] if wanted else 0
    return value, gradient, plane, row, activation.rectified, accumulate
