"""What the first use costs: kernels compiled into an empty cache, and how long Tombola takes to start.

Kernels are compiled when a net first needs them and then kept on disk. Every training here is one step in a process of
its own, with ``TOMBOLA_CACHE`` in a temporary folder: empty for the first, left as it was for the second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import TypedDict

from startup import BARE, COMMANDS, TORCH, in_fresh_process
from timing import begin, duration, header, interleaved, table

TRAIN = """
import json, sys, time, torch
import tombola as tb
from tombola.engines import Plan, open_session
from tombola.engines.sparse.kernel import compile_seconds
torch.set_num_threads(1)
task, shape = tb.get_task(sys.argv[1]), [int(n) for n in sys.argv[2].split("x")]
data = tb.Arrays(torch.randint(256, (600, *shape), dtype=torch.uint8), torch.randint(10, (600,)), (0.5,), (0.25,))
model = task.build(0)
mask = tb.prune(tb.score(model, "magnitude"), 0.1)
ready = time.perf_counter()
session = open_session(Plan("sparse", ""), model, mask, task, data, task.recipe, 0)
session.stretch(1)
trained = time.perf_counter()
session.evaluate(data)
done = time.perf_counter()
print(json.dumps({"train": trained - ready, "evaluate": done - trained, "kernels": compile_seconds}))
"""
NETS = {
    "LeNet-300-100": ("mnist-lenet300", "1x28x28"),
    "LeNet-5": ("mnist-lenet5", "1x28x28"),
    "Conv-2": ("cifar10-conv2", "3x32x32"),
}
STARTS = (BARE, TORCH, "import torch, tombola", "tombola --help")


class Report(TypedDict):
    """What a process that trained a step and evaluated once tells: seconds, also of each kernel."""

    train: float
    evaluate: float
    kernels: dict[str, float]


def first_step(task: str, shape: str, cache: str) -> Report:
    """Train one step and evaluate in a process of its own, with the kernels kept in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, task, shape],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"TOMBOLA_CACHE": cache, "OMP_NUM_THREADS": "1"},
    )
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


def compiling(nets: dict[str, tuple[str, str]], repeats: int) -> str:
    """By net, with an empty and with a filled cache: seconds of the first step and of the first evaluation."""
    rows = []
    for name, (task, shape) in nets.items():
        reports: dict[str, list[Report]] = {"empty": [], "filled": []}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                for found in reports.values():
                    found.append(first_step(task, shape, cache))
        for state, found in reports.items():
            train, evaluate = (
                duration(taken, digits=2) for taken in ([r["train"] for r in found], [r["evaluate"] for r in found])
            )
            kernels = found[-1]["kernels"]
            slowest = max(kernels, key=lambda kernel: kernels[kernel])
            rows.append((name, state, train, evaluate, str(len(kernels)), f"`{slowest}` {kernels[slowest]:.2f}"))
    return table(("net", "cache", "first step, s", "first evaluation, s", "kernels", "the slowest, s"), rows)


def starting(repeats: int) -> str:
    """Milliseconds of bare starts, and beyond what each builds on."""
    times = interleaved({name: in_fresh_process(COMMANDS[name][0]) for name in STARTS}, repeats)
    rows = []
    for name, taken in times.items():
        base = COMMANDS[name][1]
        beyond = statistics.median(t - b for t, b in zip(taken, times[base], strict=True)) if base else None
        shown = "-" if beyond is None else f"{1000 * beyond:+.0f} beyond {base!r}"
        rows.append((f"`{name}`", duration(taken, 1e-3), shown))
    return table(("what", "ms", "difference, ms"), rows)


def main() -> None:
    quick = begin(__doc__ or "")
    repeats = 1 if quick else 5
    print(header("First use, each time in a fresh process", repeats))
    print(compiling({"LeNet-300-100": NETS["LeNet-300-100"]} if quick else NETS, repeats), "\n")
    print(starting(2 if quick else 11))


if __name__ == "__main__":
    main()
