"""What ``tb.guard`` adds to a step of an ordinary training loop, beside what ``torch.nn.utils.prune`` adds.

LeNet-300-100 and LeNet-5, batch 60, one thread, synthetic images of MNIST's shape, masks at density 20 % by the
magnitude of the initial weights. The loops are the same but for the guard, or the pruned parametrisation of
``torch.nn.utils.prune``, which multiplies the mask into the weights in every forward pass.

Adam is timed as torch makes it by default and fused. The default takes the root of the second moments in a way that
can be slow for exact zeros, and zeros are what pruned weights have there, whoever prunes them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from masked_step import plain_steps
from timing import begin, duration, header, images, interleaved, ratio, table
from torch import nn
from torch.nn.utils import prune

import tombola as tb

DENSITY = 0.2
NETS = {"LeNet-300-100": tb.get_task("mnist-lenet300").build, "LeNet-5": tb.get_task("mnist-lenet5").build}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "Adam, fused": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, fused=True),
}
UNGUARDED = "unguarded"


def arm(net: str, optimizer: str, loop: str, data: tb.Arrays, steps: int) -> Callable[[], None]:
    """A loop that trains a net of its own."""
    model = NETS[net](0)
    mask = tb.prune(tb.score(model, "magnitude"), DENSITY)
    if loop == "torch.nn.utils.prune":
        for name, kept in mask.items():
            prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", kept)  # type: ignore[no-untyped-call]
    chosen = OPTIMIZERS[optimizer](model)
    if loop == "tb.guard":
        tb.guard(model, chosen, mask)
    return partial(plain_steps, model, chosen, data, steps)


def main() -> None:
    quick = begin(__doc__ or "")
    repeats = 3 if quick else 11
    steps = {"LeNet-300-100": 20, "LeNet-5": 5} if quick else {"LeNet-300-100": 100, "LeNet-5": 15}
    title = header("A step of an ordinary loop, batch 60, synthetic images of MNIST's shape, density 20 %", repeats)
    data = images(10_000, seed=1)
    rows = []
    for net in NETS:
        for optimizer in OPTIMIZERS:
            loops = (UNGUARDED, "tb.guard", "torch.nn.utils.prune")
            times = interleaved({loop: arm(net, optimizer, loop, data, steps[net]) for loop in loops}, repeats)
            for loop, taken in times.items():
                rows.append((net, optimizer, loop, duration(taken, steps[net] * 1e-6), ratio(taken, times[UNGUARDED])))
    print(title)
    print(table(("net", "optimiser", "loop", "us a step", "against unguarded"), rows))


if __name__ == "__main__":
    main()
