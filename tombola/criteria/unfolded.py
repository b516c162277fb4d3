"""Convolutions of one small image in float64, as products with the kernels as they lie in memory.

Torch's own convolution in float64 multiplies by the transposed kernels to get the gradient of the input, and goes over
them once for every pixel or so. With fewer pixels than channels, as at the end of a VGG, that is most of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST_PIXELS = 64
"""Of the output: with more, torch's own way is as fast."""


class Unfolded(TorchFunctionMode):
    """While it is entered, convolutions that gain by it are carried out as matrix products, equal to rounding."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out a function of torch."""
        given = dict(kwargs or {})
        if func is torch.conv2d and not given and len(args) == 7:
            found = _product(*args)
            if found is not None:
                return found
        return func(*args, **given)


def _product(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """The convolution, called as ``torch.nn.Conv2d`` calls it; None where it is torch's own that should do it."""
    pairs = [stride, padding, dilation]
    if groups != 1 or x.dim() != 4 or len(x) != 1 or x.dtype != torch.float64 or x.device.type != "cpu":
        return None
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return None
    sides = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    if min(sides) < 1 or sides[0] * sides[1] > _MOST_PIXELS:
        return None
    columns = F.unfold(x, tuple(weight.shape[2:]), dilation, padding, stride)[0].t().contiguous()
    return F.linear(columns, weight.flatten(1), bias).t().contiguous().view(1, len(weight), *sides)
