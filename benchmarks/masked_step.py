"""What a step of masked training costs: the masked engine against loops written by hand.

LeNet-300-100, batch 60, Adam, one thread. Images are synthetic, of MNIST's shape and held in memory, because the time
of a dense step doesn't depend on what they show; every loop takes its batches from them in the same way. Masks come
from magnitude pruning of a net trained for 300 steps.

Loops: Tombola's masked engine (fused Adam, pruned weights held at zero, the loss added up); a plain dense loop with
the same optimiser and no mask at all, with nothing but the step; the same with torch's default Adam; and masks
multiplied into the weights in every forward pass with torch's default Adam, the usual way of pruning papers' code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timing import begin, duration, header, images, interleaved, ratio, table
from torch import Tensor, nn

import tombola as tb
from tombola.engines.masked import MaskedSession

DENSITIES = (1.0, 0.512, 0.211, 0.055, 0.012)
PLAIN, PLAIN_DEFAULT = "plain, no mask, fused Adam", "plain, no mask, default Adam"
EAGER, TOMBOLA = "masks multiplied in, default Adam", "Tombola's masked engine"
LR = 1.2e-3
TASK = tb.get_task("mnist-lenet300")
RECIPE = tb.Recipe(batch=60, optimizer="adam", lr=LR, engine="masked")


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


def plain(data: tb.Arrays, steps: int, fused: bool | None) -> Callable[[], None]:
    model = TASK.build(0)
    return partial(plain_steps, model, torch.optim.Adam(model.parameters(), lr=LR, fused=fused), data, steps)


def eager(mask: tb.Mask, data: tb.Arrays, steps: int) -> Callable[[], None]:
    model = TASK.build(0)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(model, name, MaskedLinear(layer, mask[f"{name}.weight"]))
    return partial(plain_steps, model, torch.optim.Adam(model.parameters(), lr=LR), data, steps)


def tombola(mask: tb.Mask, data: tb.Arrays, steps: int) -> Callable[[], float]:
    return partial(MaskedSession(TASK.build(0), mask, TASK, data, RECIPE, 0).stretch, steps)


def magnitude_masks(data: tb.Arrays) -> dict[float, tb.Mask]:
    """Masks of a net trained a little, with the layers' shares of Frankle & Carbin (2019)."""
    model = TASK.build(0)
    plain_steps(model, torch.optim.Adam(model.parameters(), lr=LR), data, 300)
    scores = tb.score(model, "magnitude")
    shares = tb.Layerwise(0.2, TASK.relative_rates)
    return {density: tb.prune(scores, density, shares) for density in DENSITIES}


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps = (3, 20) if quick else (11, 200)
    title = header("A training step of LeNet-300-100, batch 60, Adam, synthetic images of MNIST's shape", repeats)
    data = images(55_000, seed=1)
    masks = magnitude_masks(data)
    dense = (PLAIN, "-")
    arms: dict[tuple[str, str], Callable[[], object]] = {
        dense: plain(data, steps, fused=True),
        (PLAIN_DEFAULT, "-"): plain(data, steps, fused=None),
    }
    for density, mask in masks.items():
        arms[EAGER, f"{density:.1%}"] = eager(mask, data, steps)
        arms[TOMBOLA, f"{density:.1%}"] = tombola(mask, data, steps)
    times = interleaved(arms, repeats)
    rows = []
    for (loop, density_shown), taken in sorted(times.items(), key=lambda item: item[0][0]):
        other = times.get((EAGER, density_shown))
        against_eager = ratio(taken, other) if loop == TOMBOLA and other else "-"
        rows.append((loop, density_shown, duration(taken, steps * 1e-6), ratio(taken, times[dense]), against_eager))
    print(title)
    print(table(("loop", "density", "us a step", "against the plain loop", "against masks multiplied in"), rows))


if __name__ == "__main__":
    main()
