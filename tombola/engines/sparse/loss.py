"""Softmax cross-entropy: the mean loss of a batch and its gradient, or losses and right answers for evaluation."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.kernel import Kernel, helper, kernel
from tombola.engines.sparse.linear_kernels import tile_lanes
from tombola.engines.sparse.memory import (
    broadcast,
    fields,
    load,
    load_f32,
    load_f64,
    load_i64,
    store,
    store_f32,
    store_f64,
    store_i64,
    zeros,
)
from tombola.engines.sparse.parts import CORRECT, COUNT, LOSS, ORDER, Activation, Call, call
from tombola.engines.sparse.vectors import first_lanes, fma, maximum, power_of_two, round_even, where_positive

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)
# Taylor coefficients of exp, 1 / n!: on |r| <= ln 2 / 2 the term left out is below 6e-8 of the result.
_C6, _C5, _C4, _C3, _C2 = (np.float32(1 / math.factorial(n)) for n in (6, 5, 4, 3, 2))
_LOWEST = np.float32(-87.0)


@helper
def exponential(x):
    """exp of each lane, to about one unit in the last place, for x of at most 0; below -87 it stays at exp(-87)."""
    x = maximum(x, broadcast(_LOWEST, 16))
    n = round_even(x * _LOG2_E)
    r = fma(n, broadcast(_LN2_HIGH, 16), x)
    r = fma(n, broadcast(_LN2_LOW, 16), r)
    p = broadcast(_C6, 16)
    p = fma(p, r, broadcast(_C5, 16))
    p = fma(p, r, broadcast(_C4, 16))
    p = fma(p, r, broadcast(_C3, 16))
    p = fma(p, r, broadcast(_C2, 16))
    p = fma(p, r, broadcast(np.float32(1), 16))
    p = fma(p, r, broadcast(np.float32(1), 16))
    return p * power_of_two(n)


@helper
def column(frame, base, classes, group):
    """Where the logits of a group of 16 examples begin, and how many bytes lie between classes."""
    tile = group // 4
    return base + 256 * tile * classes + 64 * (group % 4), 4 * tile_lanes(frame, tile)


@helper
def normalised(at, step, classes, to, to_step):
    """Write exp(logit - largest) of 16 examples class by class; returns the largest logits and the sums."""
    largest = load(at, 16)
    for c in range(1, classes):
        largest = maximum(largest, load(at + step * c, 16))
    sums = zeros(16)
    for c in range(classes):
        e = exponential(load(at + step * c, 16) - largest)
        sums = sums + e
        store(to + to_step * c, e)
    return largest, sums


@helper
def losses(frame, at, step, labels, group, largest, sums, scratch):
    """The sum of the losses of a group's true examples: log(sum) + largest - logit of the label, in float64."""
    store(scratch, largest)
    store(scratch + 64, sums)
    first, count = 16 * group, load_i64(frame + COUNT)
    product, rest = 1.0, 0.0
    for lane in range(min(16, count - first)):
        label = load_i64(labels + 8 * load_i64(load_i64(frame + ORDER) + 8 * (first + lane)))
        # The logarithm of a product of 16 sums, each at most the number of classes: far from overflow.
        product *= float(load_f32(scratch + 64 + 4 * lane))
        rest += float(load_f32(scratch + 4 * lane)) - float(load_f32(at + step * label + 4 * lane))
    return math.log(product) + rest


@kernel
def cross_entropy(args, frame, thread, threads):
    """Add the batch's summed loss to the frame, and write the gradient of its mean with respect to the logits.

    Where the logits are rectified it is 0 for those that are 0 or less.
    """
    classes, logits, gradient, labels, scratch, gated = fields(args, 6)
    if thread != 0:  # the sum over the batch is one sum
        return
    count = load_i64(frame + COUNT)
    loss = 0.0
    for group in range((count + 15) // 16):
        at, step = column(frame, logits, classes, group)
        to, _ = column(frame, gradient, classes, group)
        largest, sums = normalised(at, step, classes, to, step)
        loss += losses(frame, at, step, labels, group, largest, sums, scratch)
        inside = count - 16 * group
        # 1 / (batch x sum), so that one product gives the probability's share of the mean.
        share = broadcast(np.float32(1) / np.float32(count), 16) / sums
        for c in range(classes):
            store(to + step * c, first_lanes(load(to + step * c, 16) * share, inside))
        one = np.float32(1) / np.float32(count)
        for lane in range(min(16, inside)):
            label = load_i64(labels + 8 * load_i64(load_i64(frame + ORDER) + 8 * (16 * group + lane)))
            store_f32(to + step * label + 4 * lane, load_f32(to + step * label + 4 * lane) - one)
        if gated != 0:
            for c in range(classes):
                store(to + step * c, where_positive(load(at + step * c, 16), load(to + step * c, 16)))
    store_f64(frame + LOSS, load_f64(frame + LOSS) + loss)


@kernel
def judge(args, frame, thread, threads):
    """Add the batch's summed loss and its number of right answers (the first of equal logits counts) to the frame."""
    classes, logits, spare, labels, scratch = fields(args, 5)
    if thread != 0:
        return
    count = load_i64(frame + COUNT)
    loss, right = 0.0, 0
    for group in range((count + 15) // 16):
        at, step = column(frame, logits, classes, group)
        to, _ = column(frame, spare, classes, group)
        largest, sums = normalised(at, step, classes, to, step)
        loss += losses(frame, at, step, labels, group, largest, sums, scratch)
        for lane in range(min(16, count - 16 * group)):
            label = load_i64(labels + 8 * load_i64(load_i64(frame + ORDER) + 8 * (16 * group + lane)))
            answer = load_f32(at + step * label + 4 * lane)
            c = 0
            while c < classes:
                other = load_f32(at + step * c + 4 * lane)
                # A NaN counts as the largest, and the first of several, as in torch.
                if other > answer or (c < label and (other == answer or other != other)):
                    break
                if other != other and answer == answer:
                    break
                c += 1
            right += c == classes
    store_f64(frame + LOSS, load_f64(frame + LOSS) + loss)
    store_i64(frame + CORRECT, load_i64(frame + CORRECT) + right)


class CrossEntropy:
    """Mean softmax cross-entropy of logits (tiled) against ``labels``, int64 per example of the data set."""

    def __init__(self, logits: Activation, labels: NDArray[np.int64]) -> None:
        self.logits, self.labels = logits, labels
        self._scratch = np.zeros(32, np.float32)

    def training(self) -> Call:
        """Loss and gradient of the logits."""
        return self._call(cross_entropy, self.logits.gradient, self.logits.rectified)

    def evaluation(self) -> Call:
        """Loss and right answers."""
        return self._call(judge, np.empty_like(self.logits.value))

    def _call(self, kernel: Kernel, room: NDArray[np.float32], *more: int) -> Call:
        return call(kernel, self.logits.channels, self.logits.value, room, self.labels, self._scratch, *more)
