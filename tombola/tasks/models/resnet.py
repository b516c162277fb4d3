"""Residual nets: the thin ones for CIFAR, and the wide ones for small images and for ImageNet.

``factor`` scales all hidden widths.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from tombola.errors import InputError
from tombola.tasks.models.initialisation import he_normal_
from tombola.tasks.models.scaling import scaled


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of what the convolutions make of ``x``, plus the shortcut."""
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return cast(Tensor, self.relu2(y + self.shortcut(x)))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution around a shortcut; the first two have a quarter of the outputs.

    The 3x3 convolution takes the stride, as in Goyal et al. (2017) and most code since.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = max(1, outputs // 4)
        self.conv1, self.norm1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(inner), nn.ReLU()
        self.conv3, self.norm3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of what the convolutions make of ``x``, plus the shortcut."""
        y = self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))))
        return cast(Tensor, self.relu3(self.norm3(self.conv3(y)) + self.shortcut(x)))


def resnet(depth: int, factor: float = 1.0, *, width: int = 16, classes: int = 10) -> nn.Module:
    """ResNet-20, -32, -44, -56 or -110 for 32x32 colour images (He et al. 2016, section 4.2).

    A 3x3 convolution, three stages of (depth - 2) / 6 blocks with 1, 2 and 4 times ``width`` channels, the mean over
    the image and a linear layer. Shortcuts are 1x1 convolutions where the shape changes (option B). 270,896, 464,432,
    657,968, 851,504 and 1,722,416 prunable weights at width 16 with 10 classes; ResNet-32 at the double width of Wang
    et al. (2020) has 1,855,584. Weights are drawn as He et al. (2015), biases are zero.

    Raises ``InputError`` for another depth.
    """
    if depth not in (20, 32, 44, 56, 110):
        raise InputError(f"the depth of a ResNet for CIFAR must be 20, 32, 44, 56 or 110, but got {depth!r}")
    blocks = (depth - 2) // 6
    widths = [scaled(width * 2**stage, factor) for stage in range(3)]
    return _assembled(_small_stem(widths[0]), Block, widths, [blocks] * 3, classes)


def resnet18(factor: float = 1.0, *, width: int = 64, classes: int = 10) -> nn.Module:
    """ResNet-18 for small colour images: He et al. (2016), table 1, with a 3x3 convolution in place of the stem.

    Neither that convolution nor a pooling shrinks the image before the four stages of two blocks with 1, 2, 4 and 8
    times ``width`` channels. 11,164,352 prunable weights at width 64 with 10 classes.
    """
    widths = [scaled(width * 2**stage, factor) for stage in range(4)]
    return _assembled(_small_stem(widths[0]), Block, widths, [2] * 4, classes)


def digits_resnet(factor: float = 1.0, *, width: int = 16, classes: int = 10) -> nn.Module:
    """A small ResNet for grey 8x8 images: a 3x3 convolution and two blocks, the second with twice the channels on 4x4.

    19,408 prunable weights at width 16 with 10 classes.
    """
    widths = [scaled(width, factor), scaled(2 * width, factor)]
    return _assembled(_small_stem(widths[0], colours=1), Block, widths, [1, 1], classes)


def imagenet_resnet(depth: int, factor: float = 1.0, *, width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-18 or -50 for colour images of about 224x224 (He et al. 2016, table 1).

    11,678,912 and 25,502,912 prunable weights at width 64 with 1,000 classes. ``InputError`` for another depth.
    """
    if depth not in (18, 50):
        raise InputError(f"the depth of a ResNet for ImageNet must be 18 or 50, but got {depth!r}")
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    first = scaled(width, factor)
    stem["conv"], stem["norm"] = nn.Conv2d(3, first, 7, 2, padding=3, bias=False), nn.BatchNorm2d(first)
    stem["relu"], stem["shrink"] = nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    if depth == 18:
        return _assembled(stem, Block, [scaled(width * 2**stage, factor) for stage in range(4)], [2] * 4, classes)
    widths = [scaled(4 * width * 2**stage, factor) for stage in range(4)]
    return _assembled(stem, Bottleneck, widths, [3, 4, 6, 3], classes)


def _small_stem(width: int, colours: int = 3) -> OrderedDict[str, nn.Module]:
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    stem["conv"], stem["norm"] = nn.Conv2d(colours, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    stem["relu"] = nn.ReLU()
    return stem


def _assembled(
    layers: OrderedDict[str, nn.Module],
    block: type[Block] | type[Bottleneck],
    widths: list[int],
    blocks: list[int],
    classes: int,
) -> nn.Module:
    """A stem, stages of blocks, each but the first halving the image, the mean over what is left and a linear layer."""
    stem = layers["conv"].out_channels
    outputs = [width for width, count in zip(widths, blocks, strict=True) for _ in range(count)]
    firsts = {sum(blocks[:stage]) for stage in range(1, len(blocks))}
    for number, (before, after) in enumerate(pairwise([cast(int, stem), *outputs])):
        layers[f"block{number + 1}"] = block(before, after, stride=2 if number in firsts else 1)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = nn.Linear(widths[-1], classes)
    return he_normal_(nn.Sequential(layers))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
