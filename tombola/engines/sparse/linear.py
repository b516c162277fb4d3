"""The sparse linear layer: its kept weights in the order of the kernels, and the calls that use them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.linear_kernels import (
    bias_gradient,
    linear_forward,
    linear_input_gradient,
    linear_weight_gradient,
)
from tombola.engines.sparse.parts import Activation, Call, Parameter, aligned, call, segments

_BLOCK = 98
"""Input rows of 256 bytes that leave room for the rest in 32 KB of first-level cache."""
_ENTRIES = 16
"""Kept weights of a row that a block must hold on average to be worth the extra round trip of its partial sums."""


class Linear:
    """``y = W x + b`` on tiled activations, for the kept entries of W (``mask``: outputs x inputs)."""

    def __init__(
        self, name: str, mask: NDArray[np.bool_], x: Activation, y: Activation, *, bias: bool, relu: bool
    ) -> None:
        self.x, self.y, self.relu = x, y, relu
        rows, columns = mask.nonzero()
        self._whole, self._whole_t = segments(rows, mask.shape[0]), segments(columns, mask.shape[1])
        self._pointer, forward, self._blocks = _blocked(rows, columns, *mask.shape)
        self.output, self.input = rows, columns = rows[forward], columns[forward]
        self._index = (4 * columns).astype(np.int32)
        self._pointer_t, backward, self._blocks_t = _blocked(columns, rows, *mask.shape[::-1])
        self._index_t, self._place = (4 * rows[backward]).astype(np.int32), (4 * backward).astype(np.int32)
        order = rows.astype(np.int64) * mask.shape[1] + columns
        self.weight = Parameter(f"{name}.weight", aligned(len(order)), aligned(len(order)), order)
        self.bias = Parameter(f"{name}.bias", aligned(len(mask)), aligned(len(mask))) if bias else None

    @property
    def told(self) -> str:
        """What the layer is, for people."""
        size, kept = self.x.channels * self.y.channels, len(self.weight.value)
        return f"{self.y.channels}x{self.x.channels}, {kept:,} kept ({100 * kept / max(1, size):.3g} %), sparse"

    @property
    def parameters(self) -> list[Parameter]:
        """The kept weights, and the bias where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def forward(self, training: bool) -> list[Call]:
        """One call, the same in training and evaluation."""
        return [
            call(
                linear_forward,
                self.x.channels,
                self.y.channels,
                self._blocks,
                self._whole,
                self._pointer,
                self._index,
                self.weight.value,
                0 if self.bias is None else self.bias.value,
                self.x.value,
                self.y.value,
                self.relu,
            )
        ]

    def backward(self, input_gradient: bool, accumulate: bool) -> list[Call]:
        """Gradients of input (where wanted), weights and bias, given the gradient of the output."""
        calls = []
        if input_gradient:
            calls.append(
                call(
                    linear_input_gradient,
                    self.x.channels,
                    self.y.channels,
                    self._blocks_t,
                    self._whole_t,
                    self._pointer_t,
                    self._index_t,
                    self._place,
                    self.weight.value,
                    self.y.gradient,
                    self.x.value,
                    self.x.gradient,
                    self.x.rectified,
                    accumulate,
                )
            )
        calls.append(
            call(
                linear_weight_gradient,
                self.x.channels,
                self.y.channels,
                self._blocks,
                self._pointer,
                self._index,
                self.weight.gradient,
                self.x.value,
                self.y.gradient,
            )
        )
        if self.bias is not None:
            calls.append(call(bias_gradient, self.y.channels, self.bias.gradient, self.y.gradient))
        return calls


def _blocked(
    rows: NDArray[np.int64], columns: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Entries by blocks of columns, then rows, then columns: where segments begin, the order, the number of blocks."""
    size = max(_BLOCK, -(-_ENTRIES * height * width // max(1, len(rows))))
    blocks = max(1, round(width / size))
    block = columns * blocks // max(1, width)
    order = np.lexsort((columns, rows, block))
    return segments((block * height + rows)[order], blocks * height), order, blocks
