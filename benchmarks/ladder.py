"""What the whole ladder of the paper's first experiment costs: 26 trainings of LeNet-300-100, dense to 0.4 %.

One ``tombola.draw`` into a store of its own: 50,000 steps of batch 60 a training, loss and accuracy on 5,000 validation
images every 100 steps, pruning, everything stored; one process, one thread. After every training the ordinary loops
take a few hundred steps and some evaluations under the same mask, and the table says how long they would need for the
same numbers of both, the medians of three measurements. Their time is left out of Tombola's, and so is compiling.
``--steps`` makes every training shorter.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from baselines import Compiled, Loop, Normalised, compiled, eager, evaluate, with_masks
from real_masks import Data, grey_images, lenet_task
from timing import header, table

import tombola as tb
from tombola.events import Event

PAPER_STEPS, PRUNINGS, EVERY = 50_000, 25, 100
DEFAULT, FUSED, WHOLE = "eager, default Adam", "eager, fused Adam", "torch.compile, whole step"


@dataclass
class Rival:
    """Watches the draw, and after each training measures the ordinary loops under its mask."""

    task: tb.Task
    train: Normalised
    validation: Normalised
    store: tb.Store
    whole: Compiled | None
    steps: int
    seconds: float = 0.0
    """Spent here: not part of the draw's own time."""
    rounds: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)
    """Density, Tombola's seconds, and what each loop would need."""

    def __call__(self, event: Event) -> None:
        if event.kind != "done" or event.row is None:
            return
        began = time.perf_counter()
        record = self.store.run(event.run)
        assert record is not None
        mask = tb.Ticket.from_bytes(self.store.read(record, "final")).mask
        net = self.task.build(0)
        loops = {DEFAULT: eager(net, mask, self.train, self.task.recipe)}
        loops[FUSED] = eager(net, mask, self.train, self.task.recipe, fused=True)
        if self.whole is not None:
            loops[WHOLE] = self.whole.loop(mask, self.train)
        judged = with_masks(net, mask)
        evaluation = statistics.median(_seconds(lambda: evaluate(judged, self.validation)) for _ in range(3))
        taken = event.row["steps"]
        needed = {name: taken * self._step(loop) + (taken // EVERY + 1) * evaluation for name, loop in loops.items()}
        self.rounds.append((event.density, float(event.row["seconds"]), needed))
        self.seconds += time.perf_counter() - began

    def _step(self, loop: Loop) -> float:
        """Seconds a step: the median of three pieces, after a few steps to warm up."""
        loop(5)
        piece = max(1, self.steps // 3)
        return statistics.median(_seconds(lambda: loop(piece)) / piece for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def climb(data: Data, steps: int, measured: int) -> tuple[Rival, float]:
    """Draw, and measure beside it; the watcher with its rounds, and the draw's own seconds."""
    task = lenet_task(data)
    train, validation = Normalised.of(data.splits.train), Normalised.of(data.splits.validation)
    whole = compiled(task.build(0), task.recipe, train)
    _touch(task)
    with tempfile.TemporaryDirectory() as folder, tb.Store(folder) as store:
        rival = Rival(task, train, validation, store, whole, measured)
        training = {"steps": f"{steps}it", "evaluate_every": f"{EVERY}it"}
        began = time.perf_counter()
        tb.draw(task, store=store, watcher=rival, rounds=PRUNINGS, training=training)
        return rival, time.perf_counter() - began - rival.seconds


def _touch(task: tb.Task) -> None:
    """A draw of a few steps, so that kernels are compiled before anything is timed."""
    with tempfile.TemporaryDirectory() as folder, tb.Store(folder) as store:
        tb.draw(task, store=store, rounds=1, training={"steps": "10it"})


def report(rival: Rival, whole: float) -> str:
    """Seconds of each round, and of all."""
    names = list(rival.rounds[0][2])
    rows = [
        (f"{density:.2%}", f"{own:.2f}", *(f"{needed[n]:.1f} ({needed[n] / own:.1f}x)" for n in names))
        for density, own, needed in rival.rounds
    ]
    totals = [sum(needed[name] for _, _, needed in rival.rounds) for name in names]
    trainings = sum(own for _, own, _ in rival.rounds)
    rows.append(("all trainings", f"{trainings:.1f}", *(f"{t:.1f} ({t / trainings:.1f}x)" for t in totals)))
    rows.append(("tombola.draw in all", f"{whole:.1f}", *(f"{t:.1f} ({t / whole:.1f}x)" for t in totals)))
    return table(("density", "Tombola, s", *(f"{name}, s, projected" for name in names)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 steps a training: to see that it runs")
    parser.add_argument("--steps", type=int, default=PAPER_STEPS, help="steps of each training")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = 500 if given.quick else given.steps
    data = grey_images()
    rival, whole = climb(data, steps, measured=30 if given.quick else 300)
    shorter = "" if steps == PAPER_STEPS else f" (shortened from {PAPER_STEPS:,}; fixed costs weigh more)"
    print(header(f"{len(rival.rounds)} trainings of LeNet-300-100 on {data.told}, {steps:,} steps each{shorter}", None))
    print(report(rival, whole))


if __name__ == "__main__":
    main()
