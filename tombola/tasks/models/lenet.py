"""The fully connected and small convolutional nets of Frankle & Carbin (2019), figure 2.

All weights are drawn Gaussian Glorot, biases are zero. Layers are named ``fc1``, ``conv1``, ... in order. ``factor``
scales all hidden widths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from tombola.errors import InputError
from tombola.tasks.models.initialisation import gaussian_glorot_
from tombola.tasks.models.scaling import scaled


def mlp(*widths: int) -> nn.Module:
    """A fully connected ReLU net, ``mlp(784, 300, 100, 10)``; images are flattened."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    _add_linear(layers, widths)
    return gaussian_glorot_(nn.Sequential(layers))


def lenet300(factor: float = 1.0) -> nn.Module:
    """LeNet-300-100 for 28x28 images: 266,200 weights (LeCun et al. 1998)."""
    return mlp(784, scaled(300, factor), scaled(100, factor), 10)


def lenet5(factor: float = 1.0) -> nn.Module:
    """LeNet-5 as the pruning papers use it, for 28x28 images: 20 and 50 5x5 filters, 500 units, 430,500 weights."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    first, second, units = (scaled(width, factor) for width in (20, 50, 500))
    layers["conv1"], layers["relu1"], layers["pool1"] = nn.Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2)
    layers["conv2"], layers["relu2"], layers["pool2"] = nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    _add_linear(layers, (16 * second, units, 10))
    return gaussian_glorot_(nn.Sequential(layers))


def conv_net(depth: int, factor: float = 1.0) -> nn.Module:
    """Conv-2, Conv-4 or Conv-6 for 32x32 colour images: pairs of 3x3 convolutions of 64, 128, 256 channels, each pair
    followed by 2x2 max pooling, then 256-256-10 fully connected. 4,300,992, 2,425,024 and 2,261,184 weights.

    Raises ``InputError`` for another depth.
    """
    if depth not in (2, 4, 6):
        raise InputError(f"the depth of a convolutional net must be 2, 4 or 6, but got {depth!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, side = 3, 32
    for pair in range(depth // 2):
        for _ in range(2):
            number = sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) + 1
            outputs = scaled(64 * 2**pair, factor)
            layers[f"conv{number}"] = nn.Conv2d(channels, outputs, 3, padding=1)
            layers[f"conv_relu{number}"] = nn.ReLU()
            channels = outputs
        layers[f"pool{pair + 1}"], side = nn.MaxPool2d(2), side // 2
    layers["flatten"] = nn.Flatten()
    units = scaled(256, factor)
    _add_linear(layers, (channels * side * side, units, units, 10))
    return gaussian_glorot_(nn.Sequential(layers))


def _add_linear(layers: OrderedDict[str, nn.Module], widths: Sequence[int]) -> None:
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        if number > 1:
            layers[f"fc_relu{number - 1}"] = nn.ReLU()
        layers[f"fc{number}"] = nn.Linear(inputs, outputs)
