"""How the weights of the built-in nets are drawn."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

_DRAWN: WeakKeyDictionary[nn.Module, Callable[[nn.Module], nn.Module]] = WeakKeyDictionary()


def gaussian_glorot_(model: nn.Module) -> nn.Module:
    """Draw every linear and convolutional weight from N(0, 2 / (fan_in + fan_out)) and set biases to zero, in place."""
    _DRAWN[model] = gaussian_glorot_
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
    _DRAWN[model] = he_normal_
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def draw_as_(layer: nn.Module, model: nn.Module) -> nn.Module:
    """Draw a layer's weights in place by the rule that a net's were drawn by.

    A net that neither function of this module has drawn leaves the layer as PyTorch draws it.
    """
    return _DRAWN[model](layer) if model in _DRAWN else layer
