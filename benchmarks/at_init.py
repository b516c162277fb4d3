"""What pruning at initialisation costs, against the papers' algorithms written in plain torch (``straightforward.py``).

SNIP, GraSP and SynFlow (100 rounds in float64) prune VGG-19 and ResNet-32 at double width to 5 % by 100 examples of
CIFAR's shape in one batch, one thread. Times are processor time, which waiting for other work doesn't lengthen, in one
process and in turn; a copy of the model for each is made beforehand. The masks are compared too: how many of the kept
entries both keep. Peak memory is that of fresh processes.

Then what must work at all: SynFlow on ResNet-110, where float32 overflows, and a net of 100 million weights.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from straightforward import Masks, grasp, snip, synflow
from timing import begin, duration, header, ratio, table
from torch import Tensor, nn

import tombola as tb
from tombola.tasks.models import resnet, vgg

DENSITY = 0.05
OURS, PLAIN = "tombola", "straightforward"
CRITERIA = ("snip", "grasp", "synflow")
Batch = tuple[Tensor, Tensor]


def large() -> nn.Module:
    """An MLP of 100.7 million prunable weights for images of CIFAR's shape."""
    sizes = (3072, 8192, 8192, 1024, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETS: dict[str, Callable[[], nn.Module]] = {
    "VGG-19": lambda: vgg(19),
    "ResNet-32, double width": lambda: resnet(32, width=32),
    "ResNet-110": lambda: resnet(110),
    "MLP of 100.7 million": large,
    "VGG-11, an eighth of the width": lambda: vgg(11, width=8),
}
SMALL = "VGG-11, an eighth of the width"


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def given(net: str, examples: int = 100) -> tuple[nn.Module, Batch]:
    """A net as drawn from seed 0, and random images with the ten classes in turn."""
    torch.manual_seed(0)
    return NETS[net](), (torch.randn(examples, 3, 32, 32), torch.arange(examples) % 10)


def ours(by: str, model: nn.Module, batch: Batch, rounds: int | None) -> Mapping[str, Tensor]:
    return tb.prune_at_init(model, by, DENSITY, [batch], loss, rounds)


def plain(by: str, model: nn.Module, batch: Batch, rounds: int | None) -> Masks:
    if by == "synflow":
        return synflow(model, batch[0], DENSITY, rounds or 100)
    return {"snip": snip, "grasp": grasp}[by](model, *batch, DENSITY)


ARMS = {OURS: ours, PLAIN: plain}


def timed(net: str, by: str, repeats: int, rounds: int | None) -> tuple[dict[str, list[float]], float]:
    """Seconds of processor time by repeat, after one untimed; and the share of the kept entries that both keep."""
    model, batch = given(net)
    masks, times = {}, {name: list[float]() for name in ARMS}
    for repeat in range(-1, repeats):
        for name in ARMS if repeat % 2 else reversed(ARMS):
            fresh = copy.deepcopy(model)
            gc.collect()
            began = time.process_time()
            masks[name] = ARMS[name](by, fresh, batch, rounds)
            if repeat >= 0:
                times[name].append(time.process_time() - began)
    first, second = masks.values()
    both = sum(int((first[name] & second[name]).count_nonzero()) for name in first)
    return times, both / sum(int(mask.count_nonzero()) for mask in first.values())


def alone(net: str, by: str, arm: str, rounds: int | None) -> dict[str, float]:
    """Seconds of a fresh process, and MiB: its peak beforehand and at all."""
    arguments = [sys.executable, __file__, "--alone", json.dumps([net, by, arm, rounds])]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_alone(net: str, by: str, arm: str, rounds: int | None) -> dict[str, float]:
    """What ``alone`` reports, measured in the process that it starts."""
    torch.set_num_threads(1)
    model, batch = given(net)
    start, began = _peak(), time.process_time()
    kept = sum(int(mask.count_nonzero()) for mask in ARMS[arm](by, model, batch, rounds).values())
    return {"seconds": time.process_time() - began, "start": start, "peak": _peak(), "kept": kept}


def _peak() -> float:
    """Peak memory of this process so far, MiB. ``getrusage`` counts what the process was before it ran this program."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def against_plain(nets: tuple[str, ...], repeats: int, rounds: int | None) -> str:
    rows = []
    for net in nets:
        for by in CRITERIA:
            number = rounds if by == "synflow" else None
            times, agreed = timed(net, by, max(2, repeats // 3) if by == "synflow" else repeats, number)
            memory = {arm: alone(net, by, arm, number) for arm in ARMS}
            seconds = [duration(times[arm], digits=2) for arm in ARMS]
            peaks = [f"{memory[arm]['peak']:.0f}" for arm in ARMS]
            start = f"{memory[OURS]['start']:.0f}"
            rows.append((net, by, *seconds, ratio(times[PLAIN], times[OURS]), f"{agreed:.3%}", *peaks, start))
    columns = ("net", "criterion", "s", f"{PLAIN}, s", f"{PLAIN} against it", "kept by both")
    return table((*columns, "peak, MiB", f"{PLAIN}, MiB", "at the start, MiB"), rows)


def demanding(nets: dict[str, tuple[str, ...]], rounds: int | None) -> str:
    rows = []
    for net, criteria in nets.items():
        for by in criteria:
            found = alone(net, by, OURS, rounds if by == "synflow" else None)
            figures = (found["seconds"], found["peak"], found["start"])
            rows.append((net, by, *(f"{figure:,.0f}" for figure in figures), f"{int(found['kept']):,}"))
    return table(("net", "criterion", "s", "peak, MiB", "at the start, MiB", "kept"), rows)


def main() -> None:
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(measure_alone(*json.loads(sys.argv[2]))))
        return
    quick = begin(__doc__ or "")
    repeats, rounds = (2, 3) if quick else (9, None)
    print(
        header(f"Pruning at initialisation to {DENSITY:.0%}, 100 examples (synflow: a third of the repeats)", repeats)
    )
    nets = (SMALL,) if quick else ("VGG-19", "ResNet-32, double width")
    print(against_plain(nets, repeats, rounds), "\n", flush=True)
    hard: dict[str, tuple[str, ...]] = {"ResNet-110": ("synflow",), "MLP of 100.7 million": CRITERIA}
    print(demanding({SMALL: CRITERIA} if quick else hard, rounds))


if __name__ == "__main__":
    main()
