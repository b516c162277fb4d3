"""VGG with batch normalisation for small images, as the pruning papers train it on CIFAR and Tiny-ImageNet."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tombola.errors import InputError
from tombola.tasks.models.initialisation import he_normal_
from tombola.tasks.models.scaling import scaled

_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""By depth, the convolutions of each stage: Simonyan & Zisserman (2015), table 1, columns A, B, D, E."""


def vgg(depth: int, factor: float = 1.0, *, width: int = 64, classes: int = 10, colours: int = 3) -> nn.Module:
    """VGG-11, -13, -16 or -19 for images of 16x16 or more (Simonyan & Zisserman 2015, table 1), colour or grey.

    Five stages of 3x3 convolutions with 1, 2, 4, 8 and 8 times ``width`` channels, each convolution followed by batch
    normalisation and ReLU; 2x2 max pooling between stages, the mean over the image after the last, and one linear
    layer in place of the original's three. 9,222,848, 9,407,168, 14,715,584 and 20,024,000 prunable weights at width
    64 with 10 classes. Weights are drawn as He et al. (2015), biases are zero. ``factor`` scales all hidden widths.

    Raises ``InputError`` for another depth.
    """
    if depth not in _CONVOLUTIONS:
        raise InputError(f"the depth of a VGG must be 11, 13, 16 or 19, but got {depth!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, number = colours, 0
    for stage, (convolutions, multiple) in enumerate(zip(_CONVOLUTIONS[depth], (1, 2, 4, 8, 8), strict=True)):
        outputs = scaled(multiple * width, factor)
        for _ in range(convolutions):
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"norm{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(outputs), nn.ReLU()
            inputs = outputs
        number += 1  # poolings count too
        layers[f"pool{number}"] = nn.MaxPool2d(2) if stage < 4 else nn.AdaptiveAvgPool2d(1)
    layers["flatten"], layers["fc"] = nn.Flatten(), nn.Linear(inputs, classes)
    return he_normal_(nn.Sequential(layers))
