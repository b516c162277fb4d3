"""SNIP, GraSP and SynFlow as a careful reader of the papers writes them in plain torch, for ``at_init.py``.

Each is an ordinary function of a model, one batch and a density, and gives the masks by parameter name. They do no more
than the papers ask for: no checks, no exact counts, and the model is left as scoring leaves it. Module modes are those
of the authors' code, and so is what the rounds of SynFlow cost: one ranking of every weight each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Masks = dict[str, Tensor]


def snip(model: nn.Module, x: Tensor, y: Tensor, density: float) -> Masks:
    """Lee et al. (2019), equations 3 to 6: ``|w dL/dw|`` by one backward pass."""
    model.eval()
    weights = _weights(model)
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(weights.values()))
    return _highest({n: (w.detach() * g).abs() for (n, w), g in zip(weights.items(), gradients, strict=True)}, density)


def grasp(model: nn.Module, x: Tensor, y: Tensor, density: float) -> Masks:
    """Wang et al. (2020), algorithm 2: ``-w Hg`` with the logits divided by 200, the highest removed."""
    model.train()
    weights = _weights(model)
    own = list(weights.values())
    first = torch.autograd.grad(F.cross_entropy(model(x) / 200, y), own)
    again = torch.autograd.grad(F.cross_entropy(model(x) / 200, y), own, create_graph=True)
    product = sum((g * h).sum() for g, h in zip(first, again, strict=True))
    assert isinstance(product, Tensor)
    second = torch.autograd.grad(product, own)
    return _highest({n: w.detach() * hg for (n, w), hg in zip(weights.items(), second, strict=True)}, density)


def synflow(model: nn.Module, x: Tensor, density: float, rounds: int = 100) -> Masks:
    """Tanaka et al. (2020), algorithm 1, in float64: ``|w dR/dw|`` with an input of ones, 100 times."""
    model.eval().double()
    weights = _weights(model)
    ones = torch.ones((1, *x.shape[1:]), dtype=torch.float64)
    masks = {name: torch.ones_like(weight) for name, weight in weights.items()}
    for number in range(1, rounds + 1):
        signs = _made_positive(model)
        model.zero_grad()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
        model(ones).sum().backward()
        scores = {}
        for name, weight in weights.items():
            assert weight.grad is not None
            scores[name] = (weight.detach() * weight.grad).abs()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.mul_(signs[name])
        kept = _highest(scores, density ** (number / rounds))
        masks = {name: mask.double() for name, mask in kept.items()}
    return {name: mask.bool() for name, mask in masks.items()}


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }


@torch.no_grad()
def _made_positive(model: nn.Module) -> dict[str, Tensor]:
    """The absolute value of all that the net consists of, in place; the signs to undo it with."""
    signs = {}
    for name, value in model.state_dict().items():
        signs[name] = value.sign()
        value.abs_()
    return signs


def _highest(scores: dict[str, Tensor], density: float) -> Masks:
    """A share of all scores, ranked over the whole net."""
    pool = torch.cat([score.flatten() for score in scores.values()])
    kept = round(density * len(pool))
    if kept == len(pool):
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    threshold = pool.kthvalue(len(pool) - kept).values
    return {name: score > threshold for name, score in scores.items()}
