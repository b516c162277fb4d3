"""MLflow: a run of theirs for each run, found again by a tag."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tombola.extras import Extra
from tombola.tracking.base import flat, numbers

SECONDS = 5.0
"""A run's curves are sent at most so often: a server far away must not be asked at every evaluation."""
_TAG = "tombola.run"
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # of one request, by MLflow's rules
_STATUS = {"finished": "FINISHED", "diverged": "FAILED", "interrupted": "KILLED"}


@dataclass
class _Open:
    """A run under way: its name there, and what is not sent yet."""

    id: str
    metrics: list[Any] = field(default_factory=list)
    sent: float = field(default_factory=time.monotonic)


class Mlflow:
    """A tracker that gives runs to MLflow.

    They go to experiment ``MLFLOW_EXPERIMENT_NAME``, by default tombola, of the server or database that MLflow's own
    ``MLFLOW_TRACKING_URI`` names. A training that goes on from its checkpoint goes on in the same run. Curves are sent
    every ``SECONDS`` and at the end.
    Raises ``InputError`` where MLflow, or what it needs for a database, is missing.
    """

    def __init__(self) -> None:
        with Extra("mlflow", ("mlflow",)).needed_by("tracker mlflow"):
            self._client: Any = import_module("mlflow.tracking").MlflowClient()
            self._entities: Any = import_module("mlflow.entities")
        self._open: dict[str, _Open] = {}

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Begin a run with its parameters, or go on with it."""
        client, experiment = self._client, self._experiment()
        known = client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run}'", max_results=1)
        if known:
            self._open[run] = _Open(known[0].info.run_id)
            client.update_run(self._open[run].id, status="RUNNING")
            return
        own = {_TAG: run, "tombola.task": config["task"], "tombola.arm": config["arm"]}
        self._open[run] = _Open(client.create_run(experiment, run_name=config["name"], tags=own).info.run_id)
        params = [self._entities.Param(n, str(v)) for n, v in flat(config).items() if v is not None]
        for first in range(0, len(params), _MOST_PARAMS):
            client.log_batch(self._open[run].id, params=params[first : first + _MOST_PARAMS])

    def log(self, run: str, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve."""
        one = self._open[run]
        self._add(one, step, values)
        if time.monotonic() - one.sent >= SECONDS:
            self._send(one)

    def finish(self, run: str, summary: Mapping[str, Any], status: str) -> None:
        """Add the results, and end the run."""
        one = self._open.pop(run)
        self._add(one, int(summary.get("steps", 0)), summary)
        self._send(one)
        self._client.set_tag(one.id, "tombola.status", status)
        self._client.set_terminated(one.id, _STATUS[status])

    def close(self) -> None:
        """Do nothing: a server that has failed isn't asked for anything more."""

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "tombola"
        known = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if known is None else known.experiment_id)

    def _add(self, one: _Open, step: int, values: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        one.metrics += [self._entities.Metric(name, value, now, step) for name, value in numbers(values).items()]

    def _send(self, one: _Open) -> None:
        for first in range(0, len(one.metrics), _MOST_METRICS):
            self._client.log_batch(one.id, metrics=one.metrics[first : first + _MOST_METRICS])
        one.metrics, one.sent = [], time.monotonic()
