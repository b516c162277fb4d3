"""Random nets of all that the sparse engine can express, random tasks for them, and where rounding may tip them."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import tombola as tb
from tombola.tasks.task import Task


class Residual(nn.Module):
    """Two branches and their sum, once rectified by itself, once together with another layer."""

    def __init__(self, draw: random.Random, channels: int, images: bool) -> None:
        super().__init__()
        self.ending = draw.choice(["+", "torch.add", "iadd"])
        self.relu: nn.Module = draw.choice([nn.ReLU(), nn.ReLU(inplace=True)])
        self.first, self.norm = layer(draw, channels, channels, images, same=True), norm(draw, channels, images)
        self.second = layer(draw, channels, channels, images, same=True)
        self.skip = nn.Identity() if draw.random() < 0.6 else layer(draw, channels, channels, images, same=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.norm(self.first(x))))
        x = self.skip(x)
        if self.ending == "iadd":
            y += x
        else:
            y = torch.add(x, y) if self.ending == "torch.add" else x + y
        out: Tensor = self.relu(y)
        return out


def layer(draw: random.Random, inputs: int, outputs: int, images: bool, same: bool = False) -> nn.Module:
    bias = draw.random() < 0.6
    if not images:
        return nn.Linear(inputs, outputs, bias=bias)
    pick: Any = draw.choice
    kernel, dilation = pick([1, 2, 3, (3, 1)]), pick([1, 1, 2])
    groups = inputs if inputs == outputs and draw.random() < 0.3 else 1
    if same:
        return nn.Conv2d(inputs, outputs, 3, padding=pick([1, "same"]), groups=groups, bias=bias)
    if draw.random() < 0.3:  # torch warns of an even kernel that is padded to the same size
        kernel = pick([1, 3, (3, 1)])
        return nn.Conv2d(inputs, outputs, kernel, padding="same", dilation=dilation, groups=groups, bias=bias)
    stride, padding = pick([(1, 0), (1, 1), (1, 2), (2, 1), ((1, 2), (0, 1))])
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)


def norm(draw: random.Random, channels: int, images: bool) -> nn.Module:
    kind = nn.BatchNorm2d if images else nn.BatchNorm1d
    if draw.random() < 0.4:
        return nn.Identity()
    return kind(channels, affine=draw.random() < 0.7, track_running_stats=draw.random() < 0.8)


class Mean(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "keep":
            return torch.flatten(x.mean([2, 3], keepdim=True), 1)
        return x.mean((-1, -2)) if self.kind == "method" else torch.mean(x, dim=(2, 3))


def pool(draw: random.Random) -> nn.Module:
    return draw.choice(
        [
            nn.MaxPool2d(2, padding=1),
            nn.MaxPool2d(3, 1, 1),
            nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Identity(),
        ]
    )


def sparse_net(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A net with random values everywhere, in float32, and the shape of one example."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    shape = (
        (draw.randint(1, 3), draw.randint(9, 12), draw.randint(9, 12))
        if draw.random() < 0.6
        else (draw.randint(1, 70),)
    )
    images, channels = len(shape) == 3, shape[0]
    layers: list[nn.Module] = []
    pick: Any = draw.choice
    if not images and draw.random() < 0.5:
        layers.append(nn.Flatten())
    for _ in range(draw.randint(1, 2 if images else 3)):
        outputs = pick([channels, draw.randint(1, 5 if images else 40)])
        layers += [layer(draw, channels, outputs, images), norm(draw, outputs, images)]
        layers += pick([[nn.ReLU()], [nn.Identity(), nn.ReLU()], [nn.ReLU(), nn.Dropout(0.0)], []])
        channels = outputs
    if draw.random() < 0.5:
        layers.append(Residual(draw, channels, images))
    if images:
        layers += [pool(draw), pick([nn.Flatten(), Mean("method"), Mean("keep"), Mean("torch"), nn.Flatten()])]
    width = draw.randint(2, 12)
    layers += [nn.LazyLinear(width), *pick([[nn.ReLU()], [], []])]
    net = nn.Sequential(*layers, nn.Linear(width, 3, bias=draw.random() < 0.7))
    with torch.no_grad():
        net.eval()(torch.zeros(2, *shape))
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.normal_(std=0.5) if "var" not in name else tensor.uniform_(0.5, 2.0)
    return net.train(), shape


def sparse_task(net: nn.Module, shape: tuple[int, ...], seed: int, examples: int, recipe: dict[str, Any]) -> Task:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(examples, *shape, generator=g), torch.randint(3, (examples,), generator=g)
    return Task(model=lambda: net, train=(x, y), name="random", recipe=tb.Recipe(steps="20it", **recipe))


class Kinks(TorchFunctionMode):
    """Notes how near a computation comes to a kink of a ReLU or a maximum, where rounding decides on the gradient."""

    margin = float("inf")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if "relu" in name:
            self._note(args[0].detach().abs())
        elif "max_pool2d" in name:
            kernel, options = args[1], kwargs or {}
            top = F.unfold(args[0].detach(), kernel, 1, options["padding"], options["stride"])
            top = top.reshape(len(top), args[0].shape[1], kernel**2, -1).topk(2, dim=2).values
            self._note(top[:, :, 0] - top[:, :, 1])
        return func(*args, **(kwargs or {}))

    def _note(self, distances: Tensor) -> None:
        """Distances of exactly 0 are so in all arithmetic: dead units, and zeros side by side."""
        near = distances[distances > 0]
        self.margin = min(self.margin, near.min().item() if len(near) else self.margin)
