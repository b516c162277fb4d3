"""Small nets of every kind for the tests of scores that take gradients: smooth, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Residual(nn.Module):
    """Two convolutions beside a 1x1 shortcut, each followed by an optional normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, act: Callable[[], nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.act = act()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv2(self.act(self.conv1(x))) + self.shortcut(x)
        return found


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3))


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 6, 2, groups=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(6, 3, bias=False),
    )


def residual() -> nn.Module:
    return nn.Sequential(Residual(3, 4, stride=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


NETS: dict[str, Callable[[], nn.Module]] = {f.__name__: f for f in (linear, conv, residual, batch_norm)}


def made(name: str, seed: int = 0) -> nn.Module:
    """A net with random values everywhere, batch statistics included."""
    torch.manual_seed(seed)
    net = NETS[name]().double()
    with torch.no_grad():
        for buffer_name, tensor in net.named_buffers():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "var" in buffer_name else tensor.normal_(0, 0.3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return net


def batches_of(sizes: Sequence[int], seed: int = 1) -> list[Batch]:
    """Batches of 3 x 4 x 4 inputs and three classes, of these sizes."""
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 4, 4, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)) for n in sizes
    ]


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def mean_loss(model: nn.Module, batches: Sequence[Batch], temperature: float = 1.0) -> Tensor:
    """The mean over all examples, each batch gone through by itself."""
    parts = [F.cross_entropy(model(x) / temperature, y, reduction="sum") for x, y in batches]
    return torch.stack(parts).sum() / sum(len(y) for _, y in batches)


def in_mode(net: nn.Module, mode: str) -> nn.Module:
    """A copy in this mode, its dropout at 0."""
    own = copy.deepcopy(net).train(mode == "train")
    for module in own.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return own


def images(*shape: int) -> list[Tensor]:
    """One batch that tells no more than a shape."""
    return [torch.empty(2, *shape)]
