"""TensorBoard: a folder of event files for each run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from tombola.extras import Extra
from tombola.tracking.base import flat, numbers

_MOST_CHARACTERS = 200  # of a folder's name; file systems take 255


class TensorBoard:
    """A tracker that writes curves, recipes and results for ``tensorboard --logdir FOLDER``.

    Each run has a folder of its own below ``folder``, under its name. Recipes and results of finished runs are in the
    tab of hyperparameters.
    Raises ``InputError`` where the package ``tensorboard`` is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with Extra("tensorboard", ("tensorboard",)).needed_by("tracker tensorboard"):
            self._module: Any = import_module("torch.utils.tensorboard")
            self._summary: Any = import_module("torch.utils.tensorboard.summary")
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._writers: dict[str, Any] = {}
        self._steps: dict[str, int] = {}

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Remember the config: the files are begun with the first step, which says what they continue."""
        self._configs[run] = config

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve."""
        writer = self._writer(run, step)
        for name, value in numbers(values).items():
            writer.add_scalar(name, value, step)
        writer.flush()
        self._steps[run] = step

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        """Add the results, and close the run's files."""
        config, step = self._configs[run], self._steps.pop(run, 0)
        writer = self._writer(run, step)
        writer.add_text("result", _code({"status": status, **summary}), step)
        if status != "interrupted":
            results = numbers(summary)
            for name, value in results.items():
                writer.add_scalar(name, value, step)
            told = {n: v for n, v in flat(config).items() if isinstance(v, bool | int | float | str)}
            for part in self._summary.hparams(told, results):
                writer.file_writer.add_summary(part)
        writer.close()
        del self._writers[run], self._configs[run]

    def close(self) -> None:
        """Close the files of runs that are open."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, run: str, step: int) -> Any:
        """The run's writer. What earlier files have from its first step on is told again, so it is purged from them."""
        if run not in self._writers:
            config = self._configs[run]
            folder = self.folder / re.sub(r"[^\w.-]+", "_", config["name"])[-_MOST_CHARACTERS:]
            purged = step if folder.is_dir() else None
            self._writers[run] = self._module.SummaryWriter(str(folder), purge_step=purged)
            self._writers[run].add_text("config", _code(config), step)
        return self._writers[run]


def _code(value: Mapping[str, Any]) -> str:
    """JSON as a block of Markdown."""
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"
