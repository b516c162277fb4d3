"""What one operation means for channels (dimension 1): which it makes constant, which it needs, which it delivers.

Channels are bool tensors, constants float64 tensors with NaN where a channel is no constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor, fx


class Rule:
    """How one operation treats the channels of its sources. This one is opaque: all depends on all."""

    def __init__(self, sources: Sequence[fx.Node], widths: Mapping[fx.Node, int], width: int) -> None:
        self.sources = tuple(sources)
        self.widths = [widths.get(source, 0) for source in sources]
        self.width = width

    def known(self, inputs: list[Tensor]) -> Tensor:
        """The constant that each channel is for certain, NaN where there is none; the same of each source is given."""
        return torch.full((self.width,), nan, dtype=torch.float64)

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The channels of each source that the needed ones are made of; None: whatever there is will do."""
        return [torch.ones(width, dtype=torch.bool) for width in self.widths]

    def delivers(self, needed: Tensor, required: list[Tensor | None]) -> Tensor:
        """The channels that come out when the sources give what is required of them."""
        return torch.ones(self.width, dtype=torch.bool)


class SizeOf(Rule):
    """A length of a dimension other than 1: no matter which channels there are."""

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """Nothing in particular."""
        return [None for _ in self.sources]


class Channelwise(Rule):
    """Channel by channel: activations, poolings, sums of values; the sources have the channels of the result."""

    def __init__(
        self, sources: Sequence[fx.Node], widths: Mapping[fx.Node, int], width: int, of: Callable[..., Tensor]
    ) -> None:
        super().__init__(sources, widths, width)
        self.of = of

    @torch.no_grad()
    def known(self, inputs: list[Tensor]) -> Tensor:
        """The operation's result where every source is known."""
        value = self.of(*(source.clone() for source in inputs))
        return torch.where(torch.stack(inputs).isnan().any(dim=0), nan, value)

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The same channels."""
        return [needed for _ in self.sources]

    def delivers(self, needed: Tensor, required: list[Tensor | None]) -> Tensor:
        """What was asked for."""
        return needed


class Weighted(Channelwise):
    """A linear layer or a convolution without groups: rows are outputs, columns inputs."""

    def __init__(
        self, sources: Sequence[fx.Node], widths: Mapping[fx.Node, int], module: Any, kept: Tensor, frozen: bool
    ) -> None:
        super().__init__(sources, widths, len(kept), unchanged)
        self.module, self.learns = module, not frozen
        self.kept = kept.flatten(2).any(dim=2) if kept.dim() > 2 else kept
        self.padded = is_padded(module)

    @property
    def sums(self) -> Tensor:
        """The weights summed over the kernel, (rows, columns): what a constant channel is multiplied by."""
        weight = as_double(self.module.weight)
        return weight.flatten(2).sum(dim=2) if weight.dim() > 2 else weight

    def folds(self, known: Tensor) -> Tensor:
        """The input channels that add a constant to the outputs; next to padding only zeros do."""
        return known.eq(0) | (known.isfinite() & (not self.padded))

    def known(self, inputs: list[Tensor]) -> Tensor:
        """A row is known where all its kept inputs are, and its bias doesn't learn."""
        bias = self.module.bias
        unknown = (self.kept & ~self.folds(inputs[0])).any(dim=1) | (bias is not None and self.learns)
        value = self.sums @ inputs[0].nan_to_num(0.0)
        return torch.where(unknown, nan, value if bias is None else value + as_double(bias))

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The columns that a needed row keeps, but for constants."""
        return [self.kept[needed].any(dim=0) & ~self.folds(known[0])]


class Depthwise(Weighted):
    """A convolution with one group a channel."""

    def known(self, inputs: list[Tensor]) -> Tensor:
        """A channel is known where its input is, or all its weights are pruned, and its bias doesn't learn."""
        kept, bias = self.kept[:, 0], self.module.bias
        unknown = (kept & ~self.folds(inputs[0])) | (bias is not None and self.learns)
        value = self.sums[:, 0] * inputs[0].nan_to_num(0.0)
        return torch.where(unknown, nan, value if bias is None else value + as_double(bias))

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The same channels, of use or not."""
        return [needed]


class Normalised(Channelwise):
    """Batch normalisation. What learns or moves with the data isn't known: in training only the ``silent`` channels,
    whose scale and shift are pruned. These are 0 for ever, and aren't computed: whoever takes them is given zeros. In a
    frozen net they cost nothing once they are folded into the layer before."""

    def __init__(
        self, sources: Sequence[fx.Node], widths: Mapping[fx.Node, int], module: Any, silent: Tensor, frozen: bool
    ) -> None:
        super().__init__(sources, widths, int(module.num_features), self._normalise)
        self.module, self.silent, self.frozen = module, silent, frozen

    def known(self, inputs: list[Tensor]) -> Tensor:
        """0 where a channel is silent; in a frozen net also what a constant is normalised to."""
        return torch.where(self.silent, 0.0, super().known(inputs))

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The same channels, but for the silent ones."""
        return [needed if self.frozen else needed & ~self.silent]

    def delivers(self, needed: Tensor, required: list[Tensor | None]) -> Tensor:
        """What it takes."""
        assert required[0] is not None
        return required[0]

    def _normalise(self, value: Tensor) -> Tensor:
        if not self.frozen or self.module.running_mean is None:
            return torch.full_like(value, nan)
        scale, shift = batch_norm_affine(self.module)
        return value * scale + shift


class Flattened(Rule):
    """A channel becomes its pixels, as ``size`` features."""

    def __init__(self, sources: Sequence[fx.Node], widths: Mapping[fx.Node, int], size: int) -> None:
        super().__init__(sources, widths, widths[sources[0]] * size)
        self.size = size

    def known(self, inputs: list[Tensor]) -> Tensor:
        """The channel's constant for each feature."""
        return inputs[0].repeat_interleave(self.size)

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """The channels any of whose features is asked for."""
        return [needed.reshape(-1, self.size).any(dim=1)]

    def delivers(self, needed: Tensor, required: list[Tensor | None]) -> Tensor:
        """All features of those channels."""
        assert required[0] is not None
        return required[0].repeat_interleave(self.size)


class Joined(Rule):
    """``torch.cat`` along dimension 1."""

    def known(self, inputs: list[Tensor]) -> Tensor:
        """The sources' constants, one after the other."""
        return torch.cat(inputs)

    def requires(self, needed: Tensor, known: list[Tensor]) -> list[Tensor | None]:
        """Each source's part."""
        return list(torch.split(needed, self.widths))

    def delivers(self, needed: Tensor, required: list[Tensor | None]) -> Tensor:
        """What the sources give, one after the other."""
        return torch.cat([part for part in required if part is not None])


def batch_norm_affine(module: Any) -> tuple[Tensor, Tensor]:
    """What an evaluating batch normalisation multiplies each channel by, and what it then adds; float64."""
    scale = (as_double(module.running_var) + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * as_double(module.weight)
    shift = -as_double(module.running_mean) * scale
    return scale, shift if module.bias is None else shift + as_double(module.bias)


def is_padded(module: Any) -> bool:
    """Whether a convolution or pooling looks beyond the edges of its input; False for a module that has no edges."""
    padding = getattr(module, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple) else bool(padding)


def unchanged(value: Tensor) -> Tensor:
    """The operation that leaves constants alone."""
    return value


def only_zero(value: Tensor) -> Tensor:
    """The operation that is sure to leave zeros alone."""
    return torch.where(value == 0, value, nan)


def as_double(value: Tensor) -> Tensor:
    """A copy to compute constants with, on the CPU."""
    return value.detach().to("cpu", torch.float64)
