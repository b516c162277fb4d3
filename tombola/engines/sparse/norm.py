"""Batch normalisation, on images and on tiled activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.engines.sparse.convolution import Convolution
from tombola.engines.sparse.norm_kernels import STATE_SLOTS, batchnorm_backward, batchnorm_count, batchnorm_forward
from tombola.engines.sparse.parts import Activation, Call, Floats, Parameter, aligned, call, padded

_BUNDLE = 1 << 19
"""Bytes of a bundle of channels: what half of a second-level cache of 1 MB holds."""


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
        # A negative momentum stands for the plain average.
        self._constants = np.array([eps, -1.0 if momentum is None else momentum])
        self._state = np.zeros((x.channels, STATE_SLOTS))
        self._source: Convolution | None = None

    def follow(self, source: Convolution) -> None:
        """Take the statistics from the convolution that makes the input, which sees every number when it writes it."""
        source.watched, self._source = True, source

    def forward(self, training: bool) -> list[Call]:
        """The output; in training by the statistics of the batch, which the running ones then take in."""
        return self._forward(training, self.y, self.relu, None)

    def forward_onto(self, training: bool, more: Activation, y: Activation, relu: bool) -> list[Call]:
        """``forward`` of an output that is nothing but a summand: ``y``, the sum with ``more``, and no output itself.

        Both must be of the output's layout and size; halos may differ.
        """
        return self._forward(training, y, relu, more)

    def _forward(self, training: bool, y: Activation, relu: bool, more: Activation | None) -> list[Call]:
        weight, bias = (p.value for p in self.parameters) if self.parameters else (0, 0)
        spread = self._source.spread if training and self._source else None
        layer = call(
            batchnorm_forward,
            *self._shape(y, *([more] if more else [])),
            *_place(self.x, self.x.value),
            *_place(y, y.value),
            *(_place(more, more.value) if more else (0, 0, 0, 0)),
            relu,
            weight,
            bias,
            *self._running,
            self._state,
            self._constants,
            training or not self.track,
            self._bundle(1 if spread is None else 2),
            *(spread or (0, 0, 0)),
        )
        return [call(batchnorm_count, self._running[2]), layer] if training and self.track else [layer]

    def backward(self, input_gradient: bool, accumulate: bool, *, training: bool = True) -> list[Call]:
        """Gradients of input (where wanted), weight and bias, after a ``forward`` with the same ``training``."""
        if not (input_gradient or self.parameters):
            return []
        weight = self.parameters[0].value if self.parameters else 0
        gradients = tuple(p.gradient for p in self.parameters) if self.parameters else (0, 0)
        return [
            call(
                batchnorm_backward,
                *self._shape(self.y),
                *_place(self.x, self.x.value),
                *_place(self.y, self.y.gradient),
                weight,
                *gradients,
                self._state,
                self.x.gradient[self.x.interior :] if input_gradient else 0,
                training or not self.track,
                self.x.rectified,
                accumulate,
                self._bundle(2),
            )
        ]

    def _bundle(self, arrays: int) -> int:
        """How many channels are worked on together."""
        x = self.x
        return max(1, min(x.channels, _BUNDLE // (4 * arrays * padded(x.examples) * x.height * x.width)))

    def _shape(self, *others: Activation) -> tuple[int, int, int]:
        x = self.x
        if not x.images:
            return x.channels, 1, 0
        if all(a.halo == 0 for a in (x, *others)):
            return x.channels, 1, x.height * x.width
        return x.channels, x.height, x.width


_AFFINE = ("weight", "bias")


def _place(activation: Activation, array: Floats) -> tuple[Floats, int, int, int]:
    """Where the first pixel lies, and bytes from one block, channel and row to the next."""
    if not activation.images:
        return array, 256 * activation.channels, 0, 0
    row, plane, group = activation.pitch
    return array[activation.interior :], 4 * group, 4 * plane, 4 * row
