"""What a step of sparse training costs: the sparse engine against dense steps with masks multiplied in.

LeNet-300-100, Adam, one thread, masks of real iterative magnitude pruning. Loops: an eager step with Adam as torch
makes it by default and with fused Adam; the whole step through torch.compile; Tombola's masked, compact and sparse
engine. The eager and compiled ones take their batches from images normalised beforehand, Tombola's engines normalise
theirs as they go.

Kept work is that of the kept weights alone: two operations each forward, for the weight's gradient and, beyond the
first layer, for the input's. Its rate is given as a share of what multiply-adds reach when fed from the first-level
cache, the limit of a kernel that reads an operand for each. An *empty* step keeps no weight at all: biases, loss and
update remain, and nothing is gathered. The kernels' own times are of each call alone, again and again: with the caches
to itself, and for the gather with no other work behind which to fetch the next batch's rows.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from baselines import Loop, Normalised, compiled, eager
from machine import Limits, described, limits
from real_masks import Data, Masks, grey_images, lenet_masks, lenet_task
from timing import begin, duration, header, interleaved, ratio, table

import tombola as tb
from tombola.engines import Plan, open_session
from tombola.engines.sparse.run import Table
from tombola.engines.sparse.session import SparseSession

DENSITIES = (1.0, 0.21, 0.055, 0.012, 0.005)
DEFAULT, FUSED, WHOLE = "eager, default Adam", "eager, fused Adam", "torch.compile, whole step"
MASKED, COMPACT, SPARSE = "Tombola, masked engine", "Tombola, compact engine", "Tombola, sparse engine"
ENGINES = {MASKED: "masked", COMPACT: "compact", SPARSE: "sparse"}


class Arm(NamedTuple):
    loop: str
    density: float


class Bench:
    """One batch size: loops at every density, and their times."""

    def __init__(self, data: Data, masks: Masks, batch: int, repeats: int, steps: int) -> None:
        self.data, self.repeats, self.steps = data, repeats, steps
        self.masks = {density: masks.nearest(density) for density in DENSITIES}
        self.task = lenet_task(data)
        self.recipe = self.task.recipe.model_copy(update={"batch": batch})
        self.normalised = Normalised.of(data.splits.train)

    def engine(self, name: str, mask: tb.Mask) -> Loop:
        """A training on one of Tombola's engines."""
        model, train = self.task.build(0), self.data.splits.train
        return open_session(Plan(name, ""), model, mask, self.task, train, self.recipe, 0).stretch

    def sparse(self, mask: tb.Mask) -> SparseSession:
        """A training on the sparse engine, to look into."""
        return SparseSession(self.task.build(0), mask, self.task, self.data.splits.train, self.recipe, 0)

    def loops(self, names: tuple[str, ...]) -> dict[Arm, Loop]:
        """Each of the named loops at every density; what can't be compiled is left out."""
        net = self.task.build(0)
        whole = compiled(net, self.recipe, self.normalised) if WHOLE in names else None
        made: dict[Arm, Loop] = {}
        for density, mask in self.masks.items():
            known: dict[str, Callable[[], Loop]] = {
                DEFAULT: partial(eager, net, mask, self.normalised, self.recipe),
                FUSED: partial(eager, net, mask, self.normalised, self.recipe, fused=True),
            }
            if whole is not None:
                known[WHOLE] = partial(whole.loop, mask, self.normalised)
            known |= {name: partial(self.engine, engine, mask) for name, engine in ENGINES.items()}
            made |= {Arm(name, density): known[name]() for name in names if name in known}
        return made

    def times(self, names: tuple[str, ...]) -> dict[Arm, list[float]]:
        """Seconds a step, by repeat; sparse steps are short, so more of them are taken."""
        loops = self.loops(names)
        counts = {arm: self._count(loop) if arm.loop == SPARSE else self.steps for arm, loop in loops.items()}
        gc.freeze()  # what compiling left behind would make every collection between two arms take long
        taken = interleaved({arm: partial(loop, counts[arm]) for arm, loop in loops.items()}, self.repeats)
        return {arm: [seconds / counts[arm] for seconds in each] for arm, each in taken.items()}

    def _count(self, loop: Loop) -> int:
        """Steps that take as long as ``self.steps`` steps of a millisecond would, or a tenth of that for a start."""
        loop(self.steps)
        began = time.perf_counter()
        loop(self.steps)
        return max(self.steps, int(self.steps**2 * 1e-3 / (time.perf_counter() - began)))

    def work(self, session: SparseSession) -> int:
        """Floating-point operations of a step on the kept weights that compaction left."""
        counts = [len(p.value) for p in session.program.parameters if p.name in self.masks[1.0]]
        return 2 * self.recipe.batch * (3 * sum(counts) - counts[0])


def steps_table(times: Mapping[Arm, list[float]], bench: Bench) -> str:
    """Microseconds a step: loops by densities."""
    names = list(dict.fromkeys(arm.loop for arm in times))
    rows = [[name, *(duration(times[Arm(name, d)], 1e-6, 1) for d in DENSITIES)] for name in names]
    return table(("us a step", *(f"{bench.masks[d].density:.2%}" for d in DENSITIES)), rows)


def ratios_table(times: Mapping[Arm, list[float]], bench: Bench, limit: Limits) -> str:
    """How much longer each loop takes than the sparse engine, and the sparse engine's rate."""
    names = [name for name in dict.fromkeys(arm.loop for arm in times) if name != SPARSE]
    rows = []
    for density, mask in bench.masks.items():
        own = times[Arm(SPARSE, density)]
        rate = bench.work(bench.sparse(mask)) / statistics.median(own) / 1e9
        above = [ratio(times[Arm(name, density)], own) for name in names]
        rows.append((f"{mask.density:.2%}", *above, f"{rate:.1f}", limit.share(rate)))
    return table(("density", *(f"x of {name}" for name in names), "kept GFLOP/s", "of L1-fed limit"), rows)


def kernels_table(bench: Bench, repeats: int) -> str:
    """Microseconds of every call of a sparse step alone, and the rate of those that multiply."""
    columns = []
    names: list[str] = []
    for mask in bench.masks.values():
        session = bench.sparse(mask)
        session.stretch(10)
        labels, cells = _kernels(session, repeats, bench)
        names = labels if len(labels) > len(names) else names
        columns.append(dict(zip(labels, cells, strict=True)))
    rows = [(name, *(column.get(name, "-") for column in columns)) for name in names]
    return table(("us a call (GFLOP/s)", *(f"{mask.density:.2%}" for mask in bench.masks.values())), rows)


def _kernels(session: SparseSession, repeats: int, bench: Bench) -> tuple[list[str], list[str]]:
    batch, steps = bench.recipe.batch, 300
    order, counts = session._indices(0)[: batch * steps], np.full(steps, batch, dtype=np.int64)
    of = {id(array): p for p in session.program.parameters for array in (p.value, p.gradient)}
    labels, cells = [], []
    tables = {"the loop itself": Table([])}
    sizes = {}
    for call in session._training.calls:
        parameter = next((of[id(a)] for a in call.args if id(a) in of), None)
        label = call.kernel.name + (f" {parameter.name}" if parameter else "")
        tables[label] = Table([call])
        sizes[label] = len(parameter.value) if parameter and parameter.name.endswith("weight") else 0
    # A learning rate of 0 keeps the update from moving anything, however often the same gradient comes.
    taken = interleaved({n: partial(t.run, order, counts) for n, t in tables.items()}, repeats)
    for label, each in taken.items():
        seconds = statistics.median(each) / steps
        rate = f" ({2e-9 * batch * sizes[label] / seconds:.0f})" if sizes.get(label) else ""
        labels.append(label)
        cells.append(f"{seconds * 1e6:.2f}{rate}")
    return labels, cells


def empty_step(bench: Bench) -> str:
    """What a step costs when no weight is kept."""
    nothing = tb.Mask({name: torch.zeros_like(kept) for name, kept in bench.masks[1.0].items()})
    loop = bench.sparse(nothing).stretch
    count = 100 * bench.steps
    (taken,) = interleaved({"empty": partial(loop, count)}, bench.repeats).values()
    return f"An empty step, no weight kept: {duration(taken, 1e-6 * count, 2)} us.\n"


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps = (3, 20) if quick else (11, 150)
    data = grey_images()
    masks, limit = lenet_masks(data), limits(quick)
    print(header(f"A training step of LeNet-300-100, Adam, {data.told}, magnitude masks", repeats))
    print(described(limit))
    for batch in (60, 128, 512):
        bench = Bench(data, masks, batch, repeats, steps if batch == 60 else max(3, steps * 60 // batch))
        names = (DEFAULT, FUSED, WHOLE, MASKED, COMPACT, SPARSE) if batch == 60 else (DEFAULT, FUSED, SPARSE)
        times = bench.times(names)
        print(f"## Batch {batch}\n")
        print(steps_table(times, bench), "\n")
        print(ratios_table(times, bench, limit), "\n")
        if batch == 60:
            print(empty_step(bench))
            print(kernels_table(bench, repeats), "\n")


if __name__ == "__main__":
    main()
