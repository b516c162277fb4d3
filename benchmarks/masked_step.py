"""What a step of masked training costs: the masked engine against loops written by hand.

LeNet-300-100, batch 60, Adam, one thread. Images are synthetic, of MNIST's shape and held in memory, because the time
of a dense step doesn't depend on what they show; every loop takes its batches from them in the same way. Masks come
from magnitude pruning of a net trained for 300 steps.

Loops: Tombola's masked engine (fused Adam, pruned weights held at zero, the loss added up); a plain dense loop with
no mask and nothing but the step; and masks multiplied into the weights in every forward pass, the usual way of pruning
papers' code. The last two with fused Adam and with Adam as torch makes it by default, which papers' code takes. The
default takes the root of the second moments in a way that can be slow for the exact zeros of pruned weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timing import begin, duration, header, images, interleaved, ratio, table
from torch import Tensor, nn

import tombola as tb
from tombola.engines.masked import MaskedSession

COLUMNS = (
    "loop",
    "optimiser",
    "density",
    "us a step",
    "against plain",
    "against masks, fused",
    "against masks, default",
)
DENSITIES = (1.0, 0.512, 0.211, 0.055, 0.012)
FUSED, DEFAULT = "fused Adam", "default Adam"
PLAIN, EAGER, TOMBOLA = "plain, no mask", "masks multiplied in", "Tombola's masked engine"
LR = 1.2e-3
TASK = tb.get_task("mnist-lenet300")
RECIPE = tb.Recipe(batch=60, optimizer="adam", lr=LR, engine="masked")


class Arm(NamedTuple):
    loop: str
    optimizer: str
    density: float | None = None


class MaskedLinear(nn.Module):
    """A linear layer that multiplies its weight by a mask in every forward pass."""

    mask: Tensor

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("mask", mask.float())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


def plain_steps(model: nn.Module, optimizer: torch.optim.Optimizer, data: tb.Arrays, steps: int) -> None:
    """An ordinary training loop."""
    for index in torch.randint(len(data), (steps, RECIPE.batch)):
        x, y = data.take(index)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def adam(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LR, fused=True if kind == FUSED else None)


def plain(kind: str, data: tb.Arrays, steps: int) -> Callable[[], None]:
    model = TASK.build(0)
    return partial(plain_steps, model, adam(model, kind), data, steps)


def eager(kind: str, mask: tb.Mask, data: tb.Arrays, steps: int) -> Callable[[], None]:
    model = TASK.build(0)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(model, name, MaskedLinear(layer, mask[f"{name}.weight"]))
    return partial(plain_steps, model, adam(model, kind), data, steps)


def tombola(mask: tb.Mask, data: tb.Arrays, steps: int) -> Callable[[], float]:
    return partial(MaskedSession(TASK.build(0), mask, TASK, data, RECIPE, 0).stretch, steps)


def magnitude_masks(data: tb.Arrays) -> dict[float, tb.Mask]:
    """Masks of a net trained a little, with the layers' shares of Frankle & Carbin (2019)."""
    model = TASK.build(0)
    plain_steps(model, adam(model, FUSED), data, 300)
    scores = tb.score(model, "magnitude")
    shares = tb.Layerwise(0.2, TASK.relative_rates)
    return {density: tb.prune(scores, density, shares) for density in DENSITIES}


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps = (3, 20) if quick else (11, 150)
    title = header("A training step of LeNet-300-100, batch 60, Adam, synthetic images of MNIST's shape", repeats)
    data = images(55_000, seed=1)
    masks = magnitude_masks(data)
    arms: dict[Arm, Callable[[], object]] = {Arm(PLAIN, kind): plain(kind, data, steps) for kind in (FUSED, DEFAULT)}
    for density, mask in masks.items():
        for kind in (FUSED, DEFAULT):
            arms[Arm(EAGER, kind, density)] = eager(kind, mask, data, steps)
        arms[Arm(TOMBOLA, FUSED, density)] = tombola(mask, data, steps)
    times = interleaved(arms, repeats)
    rows = []
    for arm, taken in sorted(times.items(), key=lambda item: (item[0].loop, item[0].optimizer), reverse=True):
        bases = [Arm(PLAIN, FUSED)]
        if arm.loop == TOMBOLA:
            bases += [Arm(EAGER, FUSED, arm.density), Arm(EAGER, DEFAULT, arm.density)]
        ratios = [ratio(taken, times[base]) for base in bases]
        density_shown = "dense" if arm.density is None else f"{arm.density:.1%}"
        rows.append(
            (arm.loop, arm.optimizer, density_shown, duration(taken, steps * 1e-6), *ratios, *["-"] * (3 - len(ratios)))
        )
    print(title)
    print(table(COLUMNS, rows))


if __name__ == "__main__":
    main()
