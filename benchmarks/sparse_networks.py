"""What a step of sparse training of convolutional nets costs, against dense steps with masks multiplied in.

Conv-2 and Conv-4 (batch 60, Adam), ResNet-20 and VGG-11 with batch normalisation (batch 128, SGD with momentum) on
32x32 colour images, one thread, masks of global magnitude pruning. Eager loops in the default layout, in channels last,
and in channels last with bfloat16 by autocast, all with the fused optimiser; a dense step's time doesn't depend on what
the mask keeps. A net that the sparse engine can't express is named with the reason.

Global pruning keeps small kernels on large images and empties large ones on small images, so that the share of the
multiply-adds that is left, which decides the time of a sparse step, is above the share of the weights.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from baselines import Loop, Normalised, eager
from machine import described, limits
from real_masks import Data, colour_images, conv_masks
from timing import begin, duration, header, interleaved, ratio, table
from torch import nn

import tombola as tb
from tombola.engines import Plan, open_session
from tombola.engines.tracing import UnsupportedError
from tombola.tasks.models import conv_net, resnet, vgg

DENSITIES = (1.0, 0.2, 0.1, 0.05, 0.02)
DEFAULT, LAST, BF16 = "default layout", "channels last", "channels last, bfloat16"
COLUMNS = ("density", "multiply-adds kept", "ms a step", f"x of {DEFAULT}", f"x of {LAST}", f"x of {BF16}")
_ADAM = tb.Recipe(batch=60, optimizer="adam", lr=3e-4)
_SGD = tb.Recipe(batch=128, optimizer="sgd", lr=0.05, momentum=0.9)


@dataclass(frozen=True)
class Net:
    name: str
    build: Callable[[], nn.Module]
    recipe: tb.Recipe


NETS = (
    Net("Conv-2", lambda: conv_net(2), _ADAM),
    Net("Conv-4", lambda: conv_net(4), _ADAM),
    Net("ResNet-20", lambda: resnet(20), _SGD),
    Net("VGG-11", lambda: vgg(11), _SGD),
)


def dense_loops(model: nn.Module, mask: tb.Mask, images: Normalised, recipe: tb.Recipe) -> dict[str, Loop]:
    last = images.as_channels_last()
    return {
        DEFAULT: eager(model, mask, images, recipe, fused=True),
        LAST: eager(model, mask, last, recipe, fused=True),
        BF16: eager(model, mask, last, recipe, fused=True, bfloat16=True),
    }


def sparse_loop(net: Net, mask: tb.Mask, data: Data) -> Loop:
    task = tb.Task(name=net.name, model=net.build, load=lambda root, seed, progress: data.splits, recipe=net.recipe)
    return open_session(Plan("sparse", ""), task.build(0), mask, task, data.splits.train, net.recipe, 0).stretch


def measured(loops: Mapping[str, Loop], repeats: int, quick: bool) -> dict[str, list[float]]:
    """Seconds a step, by repeat; loops with short steps take several in a repeat."""
    counts = {}
    for name, loop in loops.items():
        loop(1)
        began = time.perf_counter()
        loop(1)
        counts[name] = 1 if quick else max(1, math.ceil(0.3 / (time.perf_counter() - began)))
    taken = interleaved({name: partial(loop, counts[name]) for name, loop in loops.items()}, repeats)
    return {name: [seconds / counts[name] for seconds in each] for name, each in taken.items()}


def training_work(work: tb.Cost) -> int:
    """Operations of a step per example on kept weights: forward, for the weights, and for all inputs but the net's."""
    return 3 * work.kept_flops - work.layers[0].kept_flops


def report(net: Net, data: Data, repeats: int, quick: bool) -> str:
    """The table of one net, or why there is none."""
    model = net.build()
    densities = DENSITIES[1:3] if quick else DENSITIES
    masks = conv_masks(net.name, net.build, net.recipe, data, densities, quick).masks
    try:
        sparse = {f"{mask.density:.1%}": sparse_loop(net, mask, data) for mask in masks}
    except UnsupportedError as error:
        return f"The sparse engine can't: {error}."
    images = Normalised.of(data.splits.train, most=10_000)
    times = measured(dense_loops(model, masks[-1], images, net.recipe) | sparse, repeats, quick)
    rows = []
    example = images.x[:1]
    for mask, name in zip(masks, sparse, strict=True):
        work, own = tb.cost(model, mask, example=example), times[name]
        rate = training_work(work) * net.recipe.batch / statistics.median(own) / 1e9
        above = [ratio(times[loop], own) for loop in (DEFAULT, LAST, BF16)]
        rows.append((name, f"{work.kept_flops / work.flops:.1%}", duration(own, 1e-3, 2), *above, f"{rate:.1f}"))
    dense = ", ".join(f"{loop} {duration(times[loop], 1e-3, 1)} ms" for loop in (DEFAULT, LAST, BF16))
    return f"Dense steps: {dense}.\n\n{table((*COLUMNS, 'kept GFLOP/s'), rows)}"


def main() -> None:
    quick = begin(__doc__ or "")
    repeats = 2 if quick else 7
    torch.manual_seed(0)
    data = colour_images(quick)
    print(header(f"Training steps of convolutional nets, {data.told}, global magnitude masks", repeats))
    print(described(limits(quick)))
    small = {"batch": 16}
    for net in NETS:
        net = replace(net, recipe=net.recipe.model_copy(update=small)) if quick else net
        print(f"## {net.name}, batch {net.recipe.batch}, {net.recipe.optimizer}\n", flush=True)
        print(report(net, data, repeats, quick), "\n", flush=True)


if __name__ == "__main__":
    main()
