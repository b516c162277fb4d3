"""How long each built-in task takes to train: the times that ``tombola draw --list-tasks`` tells.

For each task, dense and with the engine that ``auto`` takes: the seconds of a step and of an evaluation of the
validation data on one core, and on a GPU where there is one; and the floating-point operations, as ``tb.cost`` counts
them. Seconds on one core are processor seconds: other work on the machine lengthens them too, by the caches that it
takes, but far less than seconds of the clock. What follows for a whole training, its steps and evaluations, is said in
``tombola/task_times.py``, and the figures go to ``task_times.json`` beside that, after each task.

- Where the data root lacks a data set, and for checkpoints, inputs are made up in the right shape (``made_up.py``).
- A step of more than 100 billion operations is measured with a part of its batch and on the masked engine alone, as
  ``auto`` would first have to compile and try the sparse one; an evaluation of more than a few seconds is measured with
  a part of the data.
- How long games last, and translations, is learnt: where that weighs, a training of some three minutes is carried out
  whole, and what isn't its steps is its evaluations. Longer ones are judged as the net begins.
- Atari's games are 128 at a time instead of 1,024: as many moves for each step.

``python benchmarks/task_times.py NAME ...`` measures these tasks only, and leaves the others' figures as they are if
they are of this machine and these versions. ``--quick`` measures little and writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from made_up import FILES, FOLDERS, folders
from timing import _processor, header, table

import tombola as tb
from tombola.engines import Plan, Session, begin, open_session
from tombola.mask import Mask
from tombola.task_times import FILE, Measured, Speed, Times, read, write
from tombola.tasks.acting import acts
from tombola.tasks.control.data import TrainingGames
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.root import data_root
from tombola.tasks.data.sources import SOURCES
from tombola.tasks.data.wikitext import load_wikitext2
from tombola.tasks.task import Examples, Splits, Task
from tombola.training.costs import flops_of_steps, training_cost
from tombola.training.loop import train
from tombola.version import versions

LARGE_STEP = LARGE_FOR_SPARSE = 100e9
ENOUGH, WHOLE = 0.5, 200.0
GAMES_AT_ONCE = 128
COUNTED = 1000  # steps whose operations are counted: those of playing come every few steps


class Beginning:
    """The first batch of so many examples."""

    def __init__(self, whole: Examples, size: int) -> None:
        self.whole, self.size = whole, size

    def batches(self, size: int) -> Iterator[Any]:
        return islice(self.whole.batches(self.size), 1)

    def __len__(self) -> int:
        return min(self.size, len(self.whole))


class Clock:
    """Seconds of the processor, or on a GPU of the clock: what is timed ends by reading a number off the device."""

    def __init__(self, device: str) -> None:
        self.now: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter

    def of(self, work: Callable[[], object]) -> float:
        gc.collect()
        began = self.now()
        work()
        return self.now() - began


def beginning(whole: Examples, size: int) -> Any:
    """The first examples, as an engine knows them where it has evaluations of its own."""
    if isinstance(whole, Arrays):
        return whole.select(torch.arange(min(size, len(whole))))
    return Beginning(whole, size)


def data_of(task: Task, folder: Path) -> tuple[Splits, bool]:
    """A task's data from the data root, or made-up ones, and whether they are. Nothing is downloaded."""
    lacking = [name for name in task.data_sets if None in SOURCES[name].found(data_root())]
    if not lacking:
        return task.splits(0), False
    (name,) = lacking
    if name in FOLDERS:
        return folders(name, folder), True
    return task.splits(0, made_root(name, folder)), True


def made_root(name: str, folder: Path) -> Path:
    """A data root with a made-up data set."""
    root = folder / name
    if not root.exists():
        root.mkdir()
        FILES[name](root)
    return root


def measured(task: Task, folder: Path, devices: Sequence[str], quick: bool, known: Measured | None) -> Measured:
    splits, made_up = data_of(task, folder)
    model = task.build(0)
    mask = Mask.full(model)
    work, judging = (training_cost(model, mask, part) for part in (splits.train, splits.validation))
    found = Measured(
        examples=len(splits.train),
        validation=len(splits.validation),
        test=0 if splits.test is None else len(splits.test),
        step_flops=None
        if work is None
        else round(flops_of_steps(work, splits.train, task.recipe, 0, COUNTED) / COUNTED),
        validation_flops=None if judging is None or acts(splits.train) else judging.flops,
        plays=acts(splits.train),
        made_up=made_up,
        cuda=None if known is None else known.cuda,
    )
    for device in devices:
        taken = speed(task, splits, device, found, quick)
        found = replace(found, cpu=taken) if device == "cpu" else replace(found, cuda=taken)
    return found


def speed(task: Task, splits: Splits, device: str, about: Measured, quick: bool) -> Speed:
    recipe = task.recipe.model_copy(update={"device": device})
    flops = about.step_flops or 0
    parts = 1
    while device == "cpu" and not about.plays and flops / parts > LARGE_STEP and recipe.batch % (2 * parts) == 0:
        parts *= 2
    recipe = recipe.model_copy(update={"batch": recipe.batch // parts})
    data, play = splits.to(device), splits.train
    if isinstance(play, TrainingGames):
        rules = replace(play.rules, games=min(play.rules.games, GAMES_AT_ONCE))
        data = replace(data, train=replace(play, rules=rules, device=device))
        period = rules.moves * rules.passes // recipe.batch
    else:
        period = 1
    model = task.build(0)
    mask, clock = Mask.full(model), Clock(device)
    if device == "cpu" and flops > LARGE_FOR_SPARSE:
        plan = Plan("masked", "measured")
        session = open_session(plan, model, mask, task, data.train, recipe, 0)
    else:
        plan, session = begin(model, mask, task, data.train, recipe, 0)
    first = clock.of(lambda: session.stretch(period)) / period  # with whatever is compiled or made at first
    if not quick and first > 5 * ENOUGH:
        step = clock.of(lambda: session.stretch(period)) / period
    else:
        trial = clock.of(lambda: session.stretch(period)) / period
        steps = period * max(1, round((0.1 if quick else ENOUGH) / max(trial, 1e-6) / period))
        step = statistics.median(clock.of(lambda: session.stretch(steps)) / steps for _ in range(1 if quick else 3))
    step *= parts

    evaluation = evaluation_of(session, data.validation, clock, 0.1 if quick else ENOUGH, about.plays)
    found = Speed(step, evaluation, plan.engine)
    seconds = about.seconds(task.recipe, found)
    if (about.plays or task.metric == "bleu") and not quick and seconds < WHOLE:
        outcome = train(task, splits, task.recipe.model_copy(update={"device": device}), 0, task.build(0), mask)
        whole = outcome.summary["processor_seconds" if device == "cpu" else "seconds"]
        steps = about.steps(task.recipe)
        evaluation = max(0.0, (whole - steps * step) / sum("validation_loss" in row for row in outcome.history))
        found = Speed(step, evaluation, plan.engine)
    return Speed(float(f"{found.step:.4g}"), float(f"{found.evaluation:.4g}"), found.engine)


def evaluation_of(session: Session, whole: Examples, clock: Clock, enough: float, plays: bool) -> float:
    """Seconds of an evaluation, from a part of the examples where that takes long enough.

    Of games 16 are played side by side, and fewer only where they take very long: one game a time costs more for each.
    """
    part, seconds = whole, 0.0
    for size in (4, 16) if plays else (4, 16, 64, 250, 1000):
        part = beginning(whole, size)
        seconds = min(clock.of(partial(session.evaluate, part)) for _ in range(1 if plays else 2))
        if seconds > (4 * enough if plays else enough) or len(part) == len(whole):
            break
    seconds *= len(whole) / len(part)
    if plays or seconds > 10 * enough:
        return seconds
    session.evaluate(whole)  # with whatever is made at first
    return statistics.median(clock.of(partial(session.evaluate, whole)) for _ in range(3))


def families(folder: Path) -> dict[str, Callable[[], Task]]:
    """The tasks that begin with a checkpoint: a made-up one, of BERT base's shape, or a small one's for the small."""
    from tombola.tasks.pretrained import FROM_A_CHECKPOINT, from_checkpoint
    from tombola.tasks.pretrained.bert import ROW, VOCABULARY
    from tombola.tasks.pretrained.checkpoint import save, transformers
    from tombola.tasks.pretrained.tokens import learned

    def of(name: str) -> Task:
        small = name.endswith("-small")
        where = folder / ("small" if small else "base")
        if not where.exists():
            library = transformers()
            lacking = None in SOURCES["wikitext2"].found(data_root())
            words = tuple(load_wikitext2(made_root("wikitext2", folder) if lacking else data_root())[0])
            tokenizer = learned(words, VOCABULARY if small else 30_522, ROW if small else 512)
            net = (
                tb.get_task("wikitext2-mlm-small").build(0) if small else library.BertForMaskedLM(library.BertConfig())
            )
            save(net, tokenizer, where)
        task = from_checkpoint(f"{name}:{where}")
        assert task is not None
        return task

    return {name: lambda name=name: of(name) for name in FROM_A_CHECKPOINT}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little work, written nowhere: to see that it runs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks to measure; all of them by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    machines = {"cpu": {"machine": _processor(), "cores": 1, "seconds": "of the processor", **versions()}}
    if "cuda" in devices:
        machines["cuda"] = {"machine": torch.cuda.get_device_name(), "seconds": "of the clock", **versions()}
    there = read(FILE)
    same = all(there.machines.get(device) == machines[device] for device in devices)
    known = dict(there.tasks) if same else {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ways: dict[str, Callable[[], Task]] = {name: lambda task=task: task for name, task in tb.TASKS.items()}  # type: ignore[misc]
        ways |= {f"{name}:": way for name, way in families(folder).items()}
        chosen = asked.names or (["digits-mlp", "digits-conv", "mnist-lenet300-quick"] if asked.quick else list(ways))
        if unknown := set(chosen) - set(ways):
            sys.exit(f"no such tasks: {', '.join(sorted(unknown))}; there are {', '.join(ways)}")
        fresh = {}
        for name in chosen:
            task = ways[name]()
            fresh[name] = measured(task, folder, devices, asked.quick, known.get(name))
            print(line(name, task, fresh[name]), file=sys.stderr, flush=True)
            known[name] = fresh[name]
            if not asked.quick:
                ordered = {own: known[own] for own in ways if own in known}
                write(Times({**there.machines, **machines} if same else machines, ordered), FILE)
        print(header("Dense trainings of the built-in tasks, processor seconds of one core", None))
        rows = [row(name, ways[name](), found) for name, found in fresh.items()]
        print(
            table(("task", "engine", "step, ms", "evaluation, s", "training, s", "draw, h", "TFLOP a training"), rows)
        )


def row(name: str, task: Task, found: Measured) -> tuple[str, ...]:
    assert found.cpu is not None
    seconds = found.seconds(task.recipe, found.cpu)
    work = found.training_flops(task.recipe)
    return (
        f"`{name}`{', made-up data' if found.made_up else ''}",
        found.cpu.engine,
        f"{1e3 * found.cpu.step:.3g}",
        f"{found.cpu.evaluation:.3g}",
        f"{seconds:,.3g}" if seconds < 1000 else f"{seconds:,.0f}",
        f"{seconds * (task.rounds + 1) / 3600:,.2f}",
        "-" if work is None else f"{work / 1e12:,.3g}",
    )


def line(name: str, task: Task, found: Measured) -> str:
    return "  ".join(row(name, task, found))


if __name__ == "__main__":
    main()
