"""Checkpoints of a training under way: everything the next stretch depends on, so that a resume has the same bits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch import Tensor

from tombola.engines import Plan
from tombola.errors import TicketError
from tombola.sealed import seal, unseal
from tombola.tasks.task import State

KIND = "checkpoint"


@dataclass
class Progress:
    """How far a training has come, beside the engine's own state. History rows hold None for what isn't finite."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float | None = None
    best_step: int | None = None
    best: State | None = None
    kept: dict[int, State] = field(default_factory=dict)
    seconds: float = 0.0
    diverged: bool = False


class Keeper(Protocol):
    """Where a checkpoint's bytes live: replaced as a whole or not at all."""

    def save(self, data: bytes) -> None:
        """Replace the checkpoint."""
        ...

    def load(self) -> bytes | None:
        """The checkpoint, or None where there is none."""
        ...


@dataclass
class Saved:
    """A checkpoint read back."""

    plan: Plan
    progress: Progress
    state: State


class Slot:
    """The checkpoint of one run, written at an evaluation when the last one is at least ``every`` seconds old."""

    def __init__(self, keeper: Keeper, run_id: str, every: float = 20.0) -> None:
        self.keeper, self.run_id, self.every = keeper, run_id, every
        self._saved_at = time.monotonic()

    def save_if_due(self, plan: Plan, progress: Progress, state: Callable[[], State]) -> None:
        """Write a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved_at < self.every:
            return
        tensors: dict[str, Tensor] = {f"state/{name}": value for name, value in state().items()}
        tensors |= {f"best/{name}": value for name, value in (progress.best or {}).items()}
        for step, kept in progress.kept.items():
            tensors |= {f"kept/{step}/{name}": value for name, value in kept.items()}
        manifest = {
            "run": self.run_id,
            "plan": asdict(plan),
            "history": progress.history,
            "best_step": progress.best_step,
            "best_loss": progress.best_loss,
            "seconds": progress.seconds,
        }
        self.keeper.save(seal(manifest, tensors, kind=KIND))
        self._saved_at = time.monotonic()

    def load(self) -> Saved | None:
        """The run's checkpoint. A damaged one, or another run's, is passed over with a warning: the run starts over."""
        data = self.keeper.load()
        if data is None:
            return None
        try:
            manifest, tensors = unseal(data, kind=KIND)
            if manifest["run"] != self.run_id:
                raise TicketError(f"it is of run {manifest['run']}")
        except TicketError as error:
            warnings.warn(
                f"the checkpoint of run {self.run_id[:12]} can't be used, so it starts again: {error}", stacklevel=2
            )
            return None
        parts: dict[str, State] = {"state": {}, "best": {}}
        kept: dict[int, State] = {}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part == "kept":
                step, _, name = name.partition("/")
                kept.setdefault(int(step), {})[name] = value
            else:
                parts[part][name] = value
        progress = Progress(
            history=manifest["history"],
            best_loss=manifest["best_loss"],
            best_step=manifest["best_step"],
            best=parts["best"] or None,
            kept=kept,
            seconds=manifest["seconds"],
        )
        return Saved(Plan(**manifest["plan"]), progress, parts["state"])
