"""How the weights of the built-in nets are drawn."""

from __future__ import annotations

from torch import nn


def gaussian_glorot_(model: nn.Module) -> nn.Module:
    """Draw every linear and convolutional weight from N(0, 2 / (fan_in + fan_out)) and set biases to zero, in place."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def he_normal_(model: nn.Module) -> nn.Module:
    """Draw every linear and convolutional weight from N(0, 2 / fan_in) and set biases to zero, in place.

    He et al. (2015), section 2.2, equation 10, for nets of rectifiers.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
