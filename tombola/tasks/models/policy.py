"""Nets that act: a body with two heads, one for the policy and one for the value.

The output has a column for each action, the logit of choosing it, and a last one for the value of what is seen. Weights
are drawn as PyTorch draws them. ``factor`` scales all hidden widths.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from tombola.tasks.models.scaling import scaled


class Policy(nn.Module):
    """A body that gives ``features`` numbers, and the heads ``policy`` and ``value``: (N, actions + 1).

    Input of whole numbers, such as frames, is divided by ``most``, the greatest of them.
    """

    def __init__(self, body: nn.Module, features: int, actions: int, most: float = 1.0) -> None:
        super().__init__()
        self.body, self.most = body, most
        self.policy = nn.Linear(features, actions)
        self.value = nn.Linear(features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the actions and the value, (N, actions + 1), of what is seen, (N, ...)."""
        features = self.body(x if self.most == 1 else x / self.most)
        return torch.cat([self.policy(features), self.value(features)], dim=1)


def mlp_policy(seen: int, width: int, actions: int, factor: float = 1.0) -> nn.Module:
    """Three hidden layers of ``width`` rectifiers (Yu et al. 2020) on ``seen`` numbers."""
    own = scaled(width, factor)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise((seen, own, own, own)), start=1):
        layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(inputs, outputs), nn.ReLU()
    return Policy(nn.Sequential(layers), own, actions)


def conv_policy(actions: int, factor: float = 1.0) -> nn.Module:
    """Four convolutions of 64 channels, of 5x5, 5x5, 3x3 and 3x3, each halved by max pooling, and two layers of 512 on
    the 1,920 numbers that are left of 105x80 pixels (Yu et al. 2020), for four grey frames of 0 to 255."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, wide, units = 4, scaled(64, factor), scaled(512, factor)
    for number, size in enumerate((5, 5, 3, 3), start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, wide, size, padding=size // 2)
        layers[f"conv_relu{number}"], layers[f"pool{number}"] = nn.ReLU(), nn.MaxPool2d(2)
        channels = wide
    layers["flatten"] = nn.Flatten()
    for number, (inputs, outputs) in enumerate(pairwise((30 * wide, units, units)), start=1):
        layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(inputs, outputs), nn.ReLU()
    return Policy(nn.Sequential(layers), units, actions, most=255.0)
