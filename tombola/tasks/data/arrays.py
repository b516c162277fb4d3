"""Labelled data held in memory: a batch is one indexing operation and one normalisation, no work per example."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tombola.errors import InputError
from tombola.seeds import stream


@dataclass(frozen=True, eq=False)
class Arrays:
    """A labelled set: ``x`` of N examples (uint8 or float32), ``y`` of N classes (int64), and how ``x`` is normalised.

    ``mean`` and ``std`` are either one number each for everything, or one per channel (dimension 1 of ``x``). For
    uint8 they are in units of ``x / 255``, for float32 in units of ``x``. Batches come out as normalised float32.
    The tensors are not copied: treat them as read-only.

    Raises ``InputError`` where the parts don't fit together.
    """

    x: Tensor
    y: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_tensors(self.x, self.y)
        _check_normalisation(self.x, self.mean, self.std)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of these examples (1-D int64 index on any device): normalised ``x``, and ``y``."""
        index = index.to(self.x.device)
        return self.normalised(self.x.index_select(0, index)), self.y.index_select(0, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All examples in order, in batches of ``size``; the last one may be smaller."""
        if size < 1:
            raise InputError(f"a batch must hold 1 example or more, but got {size}")
        for first in range(0, len(self), size):
            yield self.normalised(self.x[first : first + size]), self.y[first : first + size]

    def normalised(self, x: Tensor) -> Tensor:
        """Examples of this set's kind as they go into a batch: a new float32 tensor, normalised."""
        scale, shift = self._affine
        return x.to(torch.float32, copy=True).mul_(scale).add_(shift)

    def select(self, index: Tensor) -> Arrays:
        """A set of these examples only, in the order of the index; the tensors are copied."""
        index = index.to(self.x.device)
        return replace(self, x=self.x.index_select(0, index), y=self.y.index_select(0, index))

    def to(self, device: str | torch.device) -> Arrays:
        """The same set with its tensors on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of content and normalisation: the same for equal sets, on every device."""
        digest = hashlib.sha256(f"{self.mean}/{self.std}".encode())
        for tensor in (self.x, self.y):
            digest.update(f"/{tensor.dtype}{tuple(tensor.shape)}/".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @cached_property
    def _affine(self) -> tuple[float | Tensor, float | Tensor]:
        """What a batch is multiplied by and what is then added; plain numbers for one channel are the faster way."""
        unit = 255.0 if self.x.dtype == torch.uint8 else 1.0
        scale = [1 / (unit * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        if len(scale) == 1:
            return scale[0], shift[0]
        shape = (1, -1, *(1,) * (self.x.dim() - 2))
        as_tensor = [torch.tensor(v, dtype=torch.float32, device=self.x.device).reshape(shape) for v in (scale, shift)]
        return as_tensor[0], as_tensor[1]


def split(n: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide ``n`` examples at random into training and validation indices, by the seed's stream ``split``.

    Both come sorted, so that the stream ``order`` alone decides in what order examples are seen.
    """
    if not 1 <= validation < n:
        raise InputError(f"the validation part must be 1 to {n - 1} of {n} training examples, but got {validation}")
    order = torch.randperm(n, generator=stream(seed, "split"))
    return order[validation:].sort().values, order[:validation].sort().values


def _check_tensors(x: Tensor, y: Tensor) -> None:
    if x.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"x must be uint8 or float32, but is {x.dtype}; convert it, e.g. with x.float()")
    if y.dtype != torch.int64 or y.dim() != 1:
        raise InputError(
            f"y must be one class per example, int64 of shape (N,), but is {y.dtype} of shape {tuple(y.shape)}"
        )
    if x.dim() < 1 or len(x) != len(y):
        raise InputError(f"x and y must be equally long, but have shapes {tuple(x.shape)} and {tuple(y.shape)}")
    if x.numel() == 0:
        raise InputError(f"a set must not be empty, but x has shape {tuple(x.shape)}")
    if x.device != y.device:
        raise InputError(f"x and y must be on one device, but are on {x.device} and {y.device}")
    if x.requires_grad:
        raise InputError("x must be data, not part of a computation graph; use x.detach()")


def _check_normalisation(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    if len(mean) != len(std) or len(mean) not in {1, x.shape[1] if x.dim() > 1 else 1}:
        raise InputError(
            f"mean and std must have 1 number each, or one per channel (dimension 1 of x), but x has shape "
            f"{tuple(x.shape)}, mean {len(mean)} and std {len(std)} numbers"
        )
    if not all(math.isfinite(m) for m in mean):
        raise InputError(f"every mean must be finite, but got {mean}")
    if not all(math.isfinite(s) and s > 0 for s in std):
        raise InputError(f"every std must be finite and more than 0, but got {std}")
