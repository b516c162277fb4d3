"""Pooling of images, by maximum and by average.

One thread does whole planes, a channel of 16 images. Going back, the windows of a plane hand their share on one after
the other, row by row, so that windows may overlap and the sums keep their order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tombola.engines.sparse.kernel import helper, kernel
from tombola.engines.sparse.memory import broadcast, fields, load, load_i64, store, zeros
from tombola.engines.sparse.parts import COUNT, Activation, Call, Floats, Parameter, call
from tombola.engines.sparse.vectors import maximum, where_positive, where_same

# mypy: disable-error-code="no-untyped-def,no-untyped-call"


@helper
def window(place, kernel_size, stride, padding, size):
    """First and last (exclusive) input place of a window, and its length with the padding that it covers."""
    first = place * stride - padding
    last = min(first + kernel_size, size + padding)
    return max(first, 0), min(last, size), last - first


@helper
def clear(at, row, rows, length):
    """Zeros in all rows of a plane, within the halo."""
    for r in range(rows):
        for i in range(0, 64 * length, 64):
            store(at + r * row + i, zeros(16))


@kernel
def max_forward(args, frame, thread, threads):
    """The largest of each window; NaN where it holds one."""
    (
        channels, height, width, x, x_plane, x_row, y_height, y_width, y, y_plane, y_row,
        kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w,
    ) = fields(args, 17)  # fmt: skip
    planes = (load_i64(frame + COUNT) + 15) // 16 * channels
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        for h in range(y_height):
            top, bottom, _ = window(h, kernel_h, stride_h, padding_h, height)
            for w in range(y_width):
                left, right, _ = window(w, kernel_w, stride_w, padding_w, width)
                best = broadcast(np.float32(-np.inf), 16)
                for i in range(top, bottom):
                    row = x + p * x_plane + i * x_row
                    for j in range(left, right):
                        best = maximum(best, load(row + 64 * j, 16))
                store(y + p * y_plane + h * y_row + 64 * w, best)


@kernel
def max_backward(args, frame, thread, threads):
    """The gradient of a window goes to the first place that holds its maximum."""
    (
        channels, height, width, x, x_plane, x_row, y_height, y_width, y, y_plane, y_row,
        kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dx, dy, gated, accumulate,
    ) = fields(args, 21)  # fmt: skip
    planes = (load_i64(frame + COUNT) + 15) // 16 * channels
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        if not accumulate:
            clear(dx + p * x_plane, x_row, height, width)
        for h in range(y_height):
            top, bottom, _ = window(h, kernel_h, stride_h, padding_h, height)
            for w in range(y_width):
                left, right, _ = window(w, kernel_w, stride_w, padding_w, width)
                at = p * y_plane + h * y_row + 64 * w
                best, left_over = load(y + at, 16), load(dy + at, 16)
                if gated:
                    left_over = where_positive(best, left_over)
                for i in range(top, bottom):
                    row = p * x_plane + i * x_row
                    for j in range(left, right):
                        value, to = load(x + row + 64 * j, 16), dx + row + 64 * j
                        store(to, load(to, 16) + where_same(value, best, left_over, zeros(16)))
                        left_over = where_same(value, best, zeros(16), left_over)


@kernel
def max_backward_halves(args, frame, thread, threads):
    """The same for windows of 2 x 2 that cover the images exactly: every gradient is written once, and none is read."""
    (
        channels, _, _, x, x_plane, x_row, y_height, y_width, y, y_plane, y_row,
        _, _, _, _, _, _, dx, dy, gated, _,
    ) = fields(args, 21)  # fmt: skip
    planes = (load_i64(frame + COUNT) + 15) // 16 * channels
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        for h in range(y_height):
            at, upper = p * y_plane + h * y_row, p * x_plane + 2 * h * x_row
            for _ in range(y_width):
                best, left_over = load(y + at, 16), load(dy + at, 16)
                if gated:
                    left_over = where_positive(best, left_over)
                for i in (0, 64, x_row, x_row + 64):
                    value = load(x + upper + i, 16)
                    store(dx + upper + i, where_same(value, best, left_over, zeros(16)))
                    left_over = where_same(value, best, zeros(16), left_over)
                at += 64
                upper += 128


@kernel
def average_forward(args, frame, thread, threads):
    """The mean of each window."""
    (
        channels, height, width, x, x_plane, x_row, y_height, y_width, y, y_plane, y_row,
        kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, with_padding,
    ) = fields(args, 18)  # fmt: skip
    planes = (load_i64(frame + COUNT) + 15) // 16 * channels
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        for h in range(y_height):
            top, bottom, tall = window(h, kernel_h, stride_h, padding_h, height)
            for w in range(y_width):
                left, right, broad = window(w, kernel_w, stride_w, padding_w, width)
                number = tall * broad if with_padding else (bottom - top) * (right - left)
                sums = zeros(16)
                for i in range(top, bottom):
                    row = x + p * x_plane + i * x_row
                    for j in range(left, right):
                        sums = sums + load(row + 64 * j, 16)
                store(y + p * y_plane + h * y_row + 64 * w, sums * np.float32(1 / number))


@kernel
def average_backward(args, frame, thread, threads):
    """Every place of a window gets the same share of its gradient."""
    (
        channels, height, width, x, x_plane, x_row, y_height, y_width, _, y_plane, y_row,
        kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, with_padding, dx, dy, gated, accumulate,
    ) = fields(args, 22)  # fmt: skip
    planes = (load_i64(frame + COUNT) + 15) // 16 * channels
    for p in range(planes * thread // threads, planes * (thread + 1) // threads):
        if not accumulate:
            clear(dx + p * x_plane, x_row, height, width)
        for h in range(y_height):
            top, bottom, tall = window(h, kernel_h, stride_h, padding_h, height)
            for w in range(y_width):
                left, right, broad = window(w, kernel_w, stride_w, padding_w, width)
                number = tall * broad if with_padding else (bottom - top) * (right - left)
                share = load(dy + p * y_plane + h * y_row + 64 * w, 16) * np.float32(1 / number)
                for i in range(top, bottom):
                    row = p * x_plane + i * x_row
                    for j in range(left, right):
                        part = where_positive(load(x + row + 64 * j, 16), share) if gated else share
                        store(dx + row + 64 * j, load(dx + row + 64 * j, 16) + part)


def pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Windows along an axis, as torch counts them: with ``ceil_mode`` also one that begins inside and ends outside."""
    steps = size + 2 * padding - kernel
    if not ceil_mode:
        return steps // stride + 1
    # A window that would begin in the padding on the far side is left out.
    return min(-(-steps // stride), (size + padding - 1) // stride) + 1


Pair = tuple[int, int]


class _Pool:
    """What both poolings share: sizes, each (rows, columns) in pixels, and where the planes lie."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(
        self, x: Activation, y: Activation, kernel: Pair, stride: Pair, padding: Pair = (0, 0), ceil_mode: bool = False
    ) -> None:
        sizes = [pooled(*a, ceil_mode) for a in zip((x.height, x.width), kernel, stride, padding, strict=True)]
        if not (x.images and y.images) or [x.channels, *sizes] != [y.channels, y.height, y.width]:
            raise ValueError(f"pooling {x} gives images of {x.channels} channels and {sizes} pixels, not {y}")
        self.x, self.y = x, y
        self._windows = (*kernel, *stride, *padding)

    def _places(self) -> tuple[Any, ...]:
        x, y = self.x, self.y
        own = (x.channels, x.height, x.width, *_plane(x, x.value))
        return *own, y.height, y.width, *_plane(y, y.value), *self._windows

    def _gradients(self, accumulate: bool) -> tuple[Any, ...]:
        x, y = self.x, self.y
        return _plane(x, x.gradient)[0], _plane(y, y.gradient)[0], x.rectified, accumulate


class MaxPool(_Pool):
    """``torch.nn.MaxPool2d`` without dilation: padding never wins, the first of equal maxima gets the gradient.

    Args:
        x: input, images.
        y: output, images of the size that ``pooled`` tells.
        kernel: rows and columns of a window.
        stride: rows and columns from one window to the next; windows may overlap or leave gaps.
        padding: rows and columns added on every side.
        ceil_mode: as in ``pooled``.

    NaN stays NaN; of several in a window the first gets the gradient, where torch takes the last.
    """

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        return [call(max_forward, *self._places())]

    def backward(self, input_gradient: bool, accumulate: bool) -> list[Call]:
        """The gradient of the input, found from input and output."""
        if not input_gradient:
            return []
        halved = (self.x.height, self.x.width) == (2 * self.y.height, 2 * self.y.width)
        halves = halved and self._windows == (2, 2, 2, 2, 0, 0) and not accumulate
        return [call(max_backward_halves if halves else max_backward, *self._places(), *self._gradients(accumulate))]


class AveragePool(_Pool):
    """``torch.nn.AvgPool2d``; a kernel as large as the image gives the global average.

    Takes the arguments of ``MaxPool`` and ``count_include_pad``: whether the padding counts among the numbers averaged.
    """

    def __init__(
        self,
        x: Activation,
        y: Activation,
        kernel: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(x, y, kernel, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        return [call(average_forward, *self._places(), self.count_include_pad)]

    def backward(self, input_gradient: bool, accumulate: bool) -> list[Call]:
        """The gradient of the input."""
        if not input_gradient:
            return []
        return [call(average_backward, *self._places(), self.count_include_pad, *self._gradients(accumulate))]


def _plane(activation: Activation, array: Floats) -> tuple[Floats, int, int]:
    """Where the first pixel lies, and bytes from one plane and row to the next."""
    row, plane, _ = activation.pitch
    return array[activation.interior :], 4 * plane, 4 * row
