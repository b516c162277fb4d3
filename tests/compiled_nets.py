"""Nets to compile, in whole or in part sparse, and what they are compared by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tombola as tb
from tombola.engines.sparse.modules import SparseModule, compile

CLASSES = 3


class Residual(nn.Module):
    """Two branches, batch normalisation, strides, and a mean over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.short = nn.Conv2d(6, 8, 1, stride=2)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        out: Tensor = self.fc(F.relu(y + self.short(x)).mean((2, 3)))
        return out


class Attention(nn.Module):
    """Tokens: all but the last layer are torch's, one of them under the mask, and one parameter is read directly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale = nn.Linear(4, 8), nn.Parameter(torch.full((8,), 0.7))
        self.attention, self.unused = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(2, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.scale
        out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].sum(1))
        return out


class Twice(nn.Module):
    """One module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(12, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.shared(F.relu(self.shared(x))))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 21), nn.ReLU(), nn.Linear(21, CLASSES))


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, CLASSES))


def mixed() -> nn.Module:
    """Three stretches with operations between them that the sparse engine lacks."""
    first = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16))
    second = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    return nn.Sequential(first, nn.GELU(), second, nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, CLASSES))


def convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 7, 3))
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(28, CLASSES))


def ends_in_images() -> nn.Module:
    """A stretch that gives images to an operation of torch."""
    return nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Softplus(), nn.Flatten(), nn.Linear(5 * 36, CLASSES))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (mlp, (12,), 1),
    "normed": (normed, (12,), 1),
    "mixed": (mixed, (12,), 3),
    "convolutional": (convolutional, (2, 8, 8), 1),
    "residual": (Residual, (2, 8, 8), 1),
    "ends in images": (ends_in_images, (2, 8, 8), 2),
    "attention": (Attention, (5, 4), 1),
}
"""Each with the shape of an example, and how many sparse segments it must become."""


def mask_of(model: nn.Module, density: float = 0.4) -> tb.Mask:
    g = torch.Generator().manual_seed(1)
    return tb.Mask({n: torch.rand(p.shape, generator=g) < density for n, p in tb.prunable(model).items()})


def pair(name: str, density: float = 0.4) -> tuple[SparseModule, nn.Module, tb.Mask]:
    """A compiled net, and the model that it stands for, its pruned weights at 0."""
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    model = make()
    mask = mask_of(model, density)
    fast = compile(model, mask, torch.zeros(2, *shape))
    mask.apply_(model)
    return fast, model, mask


def batch(name: str, examples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(examples, *NETS[name][1], generator=g), torch.randint(CLASSES, (examples,), generator=g)


def gradients(model: nn.Module, mask: tb.Mask) -> dict[str, Tensor]:
    """Gradients by name, in the model's shapes and under the mask."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if isinstance(model, SparseModule):
        return {n: model._packed[n].expand(g) if n in model._packed else g for n, g in found.items()}
    return {n: g * mask[n] if n in mask else g for n, g in found.items()}


def close(a: Any, b: Any, tolerance: float = 2e-5) -> None:
    """Two tensors, or dicts of them, alike but for the order of sums."""
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        return
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=tolerance, atol=tolerance, msg=functools.partial("{}: {}".format, name)
        )


def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
