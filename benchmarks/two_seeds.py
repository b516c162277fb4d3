"""Whether two seeds on two cores cost what one does on one: draws of LeNet-300-100 in processes of their own.

Each draw is a dense net and a few rounds on the sparse engine, one thread. One draw by one worker process, against two
draws with different seeds by two at the same time; both arms start their workers anew and write to a store of their
own. The ratio would be 1 if the cores shared nothing, and 2 if the second were of no use.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial

from real_masks import has
from timing import begin, duration, header, interleaved, ratio, table

import tombola as tb
from tombola.asked import draw_recipe
from tombola.execution import carry_out

ROUNDS = 5
ONE, TWO = "one seed, one process", "two seeds, two processes"


def draws(task: tb.Task, seeds: tuple[int, ...], steps: int, rounds: int) -> None:
    """One draw for each seed, each in a process; at most two work at once."""
    training = {"steps": f"{steps}it", "threads": 1}
    recipes = [draw_recipe(task, {"seed": seed, "rounds": rounds, "training": training}) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        carry_out(recipes, store=folder, jobs=2)


def main() -> None:
    quick = begin(__doc__ or "")
    repeats, steps, rounds = (2, 200, 1) if quick else (3, 2_000, ROUNDS)
    os.environ["OMP_NUM_THREADS"] = "1"
    task = tb.get_task("mnist-lenet300" if has("MNIST/raw/train-images-idx3-ubyte") else "digits-mlp")
    arms: dict[str, Callable[[], object]] = {
        ONE: partial(draws, task, (0,), steps, rounds),
        TWO: partial(draws, task, (0, 1), steps, rounds),
    }
    times = interleaved(arms, repeats)
    rates = {name: count * 60 / statistics.median(times[name]) for name, count in ((ONE, 1), (TWO, 2))}
    print(header(f"Draws of {task.name}, {1 + rounds} trainings of {steps:,} steps each", repeats))
    rows = [(name, duration(t, digits=1), ratio(t, times[ONE]), f"{rates[name]:.2f}") for name, t in times.items()]
    print(table(("what", "seconds", "against one seed", "draws a minute"), rows))


if __name__ == "__main__":
    main()
