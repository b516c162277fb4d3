"""Nets that the benchmarks train beside the built-in ones: ResNet-20 and VGG-11 for 32x32 colour images."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import cast

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return cast(Tensor, self.relu2(y + self.shortcut(x)))


def resnet20(width: int = 16) -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016): three stages of three blocks, 1, 2 and 4 times ``width`` channels.

    270,896 prunable weights at width 16.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"], layers["norm"] = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    layers["relu"] = nn.ReLU()
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"block{number}"] = Block(inputs, outputs, stride=outputs // inputs)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = nn.Linear(4 * width, 10)
    return he_normal_(nn.Sequential(layers))


def vgg11(width: int = 64) -> nn.Module:
    """VGG-11 with batch normalisation and one linear layer (Simonyan & Zisserman 2015, as used for CIFAR).

    9,222,848 prunable weights at width 64.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    plan: tuple[int | str, ...] = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")
    for number, entry in enumerate(plan, start=1):
        if isinstance(entry, str):
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            continue
        outputs = entry * width
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(outputs), nn.ReLU()
        inputs = outputs
    layers["flatten"], layers["fc"] = nn.Flatten(), nn.Linear(inputs, 10)
    return he_normal_(nn.Sequential(layers))


def he_normal_(model: nn.Module) -> nn.Module:
    """Draw weights as He et al. (2015) for ReLU nets, and set biases to zero, in place."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
