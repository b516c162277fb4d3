"""How long the built-in tasks take: what was measured of each, in ``task_times.json``, and what follows from it.

``benchmarks/task_times.py`` measures and writes. Everything is of the dense net and of one training; a draw trains once
more than it has rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tombola.engines.evaluation import EVALUATION_BATCH
from tombola.recipe import Recipe

FILE = Path(__file__).with_name("task_times.json")
GPU_FLOPS = 10e12
"""Floating-point operations a second that a GPU is reckoned to do in practice, in float32."""
GPU_LEAST = 1e-3
"""Seconds that a step, and a batch of an evaluation, is reckoned to take at least on a GPU: what launching takes."""


@dataclass(frozen=True)
class Speed:
    """Seconds of a step of training and of one evaluation of the validation data."""

    step: float
    evaluation: float
    engine: str = ""
    """The engine that was measured."""


@dataclass(frozen=True)
class Measured:
    """What is known of a task's dense training."""

    examples: int
    """Training examples; for games, moves of an epoch."""
    validation: int
    test: int
    step_flops: int | None
    """Operations of a step of the recipe (``tombola.training.costs``); None where they can't be counted."""
    validation_flops: int | None
    """Operations of a forward pass per validation example; None for games."""
    plays: bool = False
    """Whether the net learns from games that it plays itself."""
    made_up: bool = False
    """Whether it was measured on made-up inputs of the right shape."""
    cpu: Speed | None = None
    """On one core, in seconds of processor time."""
    cuda: Speed | None = None

    def seconds(self, recipe: Recipe, speed: Speed) -> float:
        """Of one training: all steps, and the evaluations before the first, on the way and, of the test data, two."""
        steps = self.steps(recipe)
        every = max(1, recipe.evaluate_every.steps(recipe.steps_per_epoch(self.examples)))
        evaluations = 1 + -(-steps // every) + 2 * self.test / max(1, self.validation)
        return steps * speed.step + evaluations * speed.evaluation

    def steps(self, recipe: Recipe) -> int:
        """Of one training."""
        return recipe.steps.steps(recipe.steps_per_epoch(self.examples))

    def training_flops(self, recipe: Recipe) -> int | None:
        """Of the steps of one training."""
        return None if self.step_flops is None else self.step_flops * self.steps(recipe)

    def reckoned(self, recipe: Recipe) -> Speed | None:
        """The speed on a GPU by ``GPU_FLOPS`` and ``GPU_LEAST``; None for games, which are played on the CPU, and where
        operations can't be counted."""
        if self.plays or self.step_flops is None or self.validation_flops is None:
            return None
        launched = GPU_LEAST * -(-self.validation // EVALUATION_BATCH)
        return Speed(
            step=max(GPU_LEAST, self.step_flops / GPU_FLOPS),
            evaluation=max(launched, self.validation_flops * self.validation / GPU_FLOPS),
        )


@dataclass(frozen=True)
class Times:
    """All that was measured."""

    machines: Mapping[str, Mapping[str, Any]]
    """For ``cpu`` and ``cuda`` the machine and the versions that it was measured with."""
    tasks: Mapping[str, Measured]
    """By the task's name; of tasks that begin with a checkpoint, the name before the colon."""


def read(path: Path = FILE) -> Times:
    """What was measured; nothing where there is no such file."""
    if not path.is_file():
        return Times({}, {})
    found = json.loads(path.read_bytes())
    return Times(found["machines"], {name: _measured(about) for name, about in found["tasks"].items()})


def write(times: Times, path: Path = FILE) -> None:
    """Write what was measured, a task in a line."""
    machines = json.dumps(times.machines, indent=2).replace("\n", "\n  ")
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(asdict(m))}" for name, m in times.tasks.items())
    path.write_text(f'{{\n  "machines": {machines},\n  "tasks": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


@cache
def known() -> Times:
    """What comes with Tombola."""
    return read()


def _measured(about: Mapping[str, Any]) -> Measured:
    speeds = {name: None if about[name] is None else Speed(**about[name]) for name in ("cpu", "cuda")}
    return Measured(**{**about, **speeds})
