"""Random nets and random masks, in float64: what compaction is tried on."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.mask import Mask


class Block(nn.Module):
    """A residual block; its two branches see the same channels in different ways."""

    def __init__(self, draw: random.Random, channels: int) -> None:
        super().__init__()
        bias, self.batch_norm, self.depthwise = draw.random() < 0.5, draw.random() < 0.5, draw.random() < 0.4
        self.ending, self.inplace = draw.choice(["+", "torch.add", "iadd"]), draw.random() < 0.5
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=draw.choice([0, 1]), bias=bias)
        self.shrinks = self.conv1.padding == (0, 0)
        self.bn1 = nn.BatchNorm2d(channels, affine=draw.random() < 0.7) if self.batch_norm else nn.Identity()
        groups = channels if self.depthwise else 1
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=draw.random() < 0.5)
        self.bn2 = nn.BatchNorm2d(channels) if draw.random() < 0.4 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=self.inplace)))
        x = x[:, :, 1:-1, 1:-1].contiguous() if self.shrinks else x
        if self.ending == "iadd":
            y += x
            return F.relu(y)
        return F.relu(torch.add(x, y) if self.ending == "torch.add" else x + y)


class ConvNet(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        channels = draw.randint(2, 5)
        self.first = nn.Conv2d(3, channels, 3, stride=draw.choice([1, 2]), padding=1, bias=draw.random() < 0.5)
        self.act = draw.choice(
            [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.LeakyReLU(0.1), nn.ReLU(inplace=True)]
        )
        self.blocks = nn.Sequential(*(Block(draw, channels) for _ in range(draw.randint(0, 2))))
        self.pool = draw.choice(
            [nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2), nn.AvgPool2d(2, padding=1), nn.AdaptiveAvgPool2d(2)]
        )
        self.joins, self.ending = draw.random() < 0.4, draw.choice(["flatten", "view", "mean", "method"])
        self.side = nn.Conv2d(channels, 2, 1, bias=draw.random() < 0.5) if self.joins else nn.Identity()
        channels += 2 * self.joins
        self.wide = nn.Conv2d(channels, 4, 2, groups=1 if channels % 2 else draw.choice([1, 2]))
        self.drop = nn.Dropout(0.0)
        self.fc1, self.fc2 = nn.LazyLinear(6, bias=draw.random() < 0.7), nn.Linear(6, 3, bias=draw.random() < 0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.first(x)))
        if self.joins:
            x = torch.cat([x, F.relu(self.side(x))], dim=1)
        x = self.wide(self.pool(x))
        if self.ending == "mean":
            x = x.mean((2, 3))
        elif self.ending == "view":
            x = x.view(x.size(0), -1)
        else:
            x = torch.flatten(x, 1) if self.ending == "flatten" else x.reshape(x.shape[0], -1)
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


def mlp(draw: random.Random) -> nn.Module:
    widths = [draw.randint(1, 7) for _ in range(draw.randint(2, 5))]
    layers: list[nn.Module] = [nn.Flatten()] if draw.random() < 0.5 else []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        if number:
            layers.append(draw.choice([nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus()]))
        layers.append(nn.Linear(inputs, outputs, bias=draw.random() < 0.7))
        if draw.random() < 0.3:
            layers.append(nn.BatchNorm1d(outputs, affine=draw.random() < 0.7))
    return nn.Sequential(*layers)


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A net with random values everywhere, biases and batch statistics included, and a batch of six inputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    if draw.random() < 0.4:
        net = mlp(draw)
        x = torch.randn(6, next(m.in_features for m in net if isinstance(m, nn.Linear)))
    else:
        net, x = ConvNet(draw), torch.randn(6, 3, 16, 16)
        with torch.no_grad():
            net.eval()(x)
    net, x = net.double().train(), x.double()
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point():
                tensor.normal_() if "var" not in name else tensor.uniform_(0.5, 2.0)
    return net, x


def random_mask(net: nn.Module, seed: int) -> Mask:
    """Every layer empty, full or random, with rows and columns that are empty or full."""
    draw, tensors = random.Random(seed + 1), {}
    g = torch.Generator().manual_seed(seed)
    for name, whole in Mask.full(net).items():
        kept = torch.rand(whole.shape, generator=g) < draw.choice([0.0, 0.03, 0.1, 0.3, 0.3, 0.6, 1.0])
        for dim in (0, 1):
            emptied = torch.rand(whole.shape[dim], generator=g) < draw.choice([0.0, 0.2, 0.5])
            kept = kept.index_fill(dim, emptied.nonzero().flatten(), False)
        if draw.random() < 0.2:
            kept = kept.index_fill(0, torch.tensor([draw.randrange(whole.shape[0])]), True)
        tensors[name] = kept
    return Mask(tensors)


def masked(net: nn.Module, mask: Mask) -> nn.Module:
    """The net itself, pruned weights at 0."""
    mask.apply_(net)
    return net


def literal(rows: dict[str, list[Any]]) -> Mask:
    """A mask from nested lists of 0 and 1."""
    return Mask({name: torch.tensor(values, dtype=torch.bool) for name, values in rows.items()})
