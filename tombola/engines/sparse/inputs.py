"""What a net takes, where nobody has said: found from its first layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tombola.engines.tracing import Traced
from tombola.errors import InputError

_SIDES = (28, 32, 64, 96, 224)
"""Heights and widths of the usual image data sets, tried in this order."""


def usual_example(model: nn.Module) -> Tensor:
    """One input of zeros that a net runs on.

    Vectors for a net that begins with a linear layer, square images of a usual size for one that begins with a 2-d
    convolution.

    Raises ``InputError``, asking for an example, where the net begins otherwise or runs on none of these, and where it
    runs on images of every size.
    """
    first = next((m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))), None)
    if isinstance(first, nn.Linear):
        tried = [torch.zeros(2, first.in_features)]
    elif isinstance(first, nn.Conv2d):
        tried = [torch.zeros(2, first.in_channels, side, side) for side in _SIDES]
    else:
        tried = []
    net = copy.deepcopy(model).eval()
    fitting = [example for example in tried if _runs(net, example)]
    if len(fitting) != 1:
        why = "runs on images of several sizes" if fitting else "doesn't run on any usual input"
        raise InputError(f"the net {why}: give an example, one batch of its inputs, as compile(model, mask, example)")
    return fitting[0][:1]


def flattens_first(traced: Traced) -> bool:
    """Whether a net that was traced on vectors begins by flattening: images of as many numbers are the same to it."""
    (source, *others) = [node for node in traced.module.graph.nodes if node.op == "placeholder"]
    modules = dict(traced.module.named_modules())
    return (
        not others
        and len(traced.shapes[source]) == 2
        and all(
            user.target is torch.flatten or isinstance(modules.get(str(user.target)), nn.Flatten)
            for user in source.users
        )
    )


@torch.no_grad()
def _runs(net: nn.Module, example: Tensor) -> bool:
    try:
        net(example)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return True
