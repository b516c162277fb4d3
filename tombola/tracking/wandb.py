"""Weights & Biases: a run of theirs for each run, under the same identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from tombola.extras import Extra
from tombola.tracking.base import numbers

_DIGITS = 32  # of a run's identity: no two runs share them, and addresses stay short


class Wandb:
    """A tracker that gives runs to Weights & Biases.

    They go to project ``WANDB_PROJECT``, by default tombola, grouped by task, with the arm as their type of job. Their
    identity there begins our own, so a training that goes on from its checkpoint goes on in the same run. W&B's own
    environment variables say the rest: ``WANDB_MODE=offline``, ``WANDB_DIR``, ``WANDB_ENTITY``, ``WANDB_API_KEY``.
    Raises ``InputError`` where the package ``wandb`` is missing.
    """

    def __init__(self) -> None:
        with Extra("wandb", ("wandb",)).needed_by("tracker wandb"):
            self._wandb: Any = import_module("wandb")
        self._runs: dict[str, Any] = {}

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Begin a run, or go on with it."""
        self._runs[run] = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "tombola",
            id=run[:_DIGITS],
            name=config["name"],
            group=config["task"],
            job_type=config["arm"],
            config={**config, "run": run},
            resume="allow",
            reinit="create_new",  # several are open at once
            settings=self._wandb.Settings(console="off", silent=True),  # the terminal is not theirs
        )

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; W&B leaves out a step that it has."""
        self._runs[run].log(numbers(values), step=step)

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        """Add the results, and end the run: as failed where it isn't finished."""
        theirs = self._runs.pop(run)
        theirs.summary.update({"status": status, **numbers(summary)})
        theirs.finish(exit_code=0 if status == "finished" else 1)

    def close(self) -> None:
        """End the runs that are open."""
        for theirs in self._runs.values():
            theirs.finish(exit_code=1)
