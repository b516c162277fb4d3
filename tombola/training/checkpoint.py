"""Checkpoints of a training under way: everything the next stretch depends on, so that a resume has the same bits."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from tombola.engines import Plan
from tombola.engines.replicates import Place
from tombola.errors import TicketError
from tombola.mask import Mask
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
    best_kept: int | None = None
    """How many entries were kept at the early stop, where updates change that."""
    kept: dict[int, State] = field(default_factory=dict)
    seconds: float = 0.0
    processor_seconds: float = 0.0
    """What the process's threads worked, whatever else the machine did meanwhile."""
    diverged: bool = False
    flops: int = 0
    """Operations so far, of the kept weights alone."""
    mask: Mask | None = None
    """What is kept now, where updates may have changed it."""
    memory: State = field(default_factory=dict)
    """What the rule of the updates remembers."""
    channels: list[Mask] = field(default_factory=list)
    """The channel masks of the epochs so far, where the training ends when they have settled."""
    place: Place | None = None
    """Its place in the pass it is trained in with others; None for a training by itself."""


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

    @property
    def step(self) -> int:
        """The step it was taken before: checkpoints are written at evaluations."""
        return int(self.progress.history[-1]["step"])


class Slot:
    """The checkpoint of one run, to be written at an evaluation when the last one is ``every`` seconds old."""

    def __init__(self, keeper: Keeper, run_id: str, every: float = 20.0) -> None:
        self.keeper, self.run_id, self.every = keeper, run_id, every
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one."""
        return time.monotonic() - self._saved_at >= self.every

    def save(self, plan: Plan, progress: Progress, state: State) -> None:
        """Write a checkpoint."""
        tensors: dict[str, Tensor] = {f"state/{name}": value for name, value in state.items()}
        tensors |= {f"best/{name}": value for name, value in (progress.best or {}).items()}
        for step, kept in progress.kept.items():
            tensors |= {f"kept/{step}/{name}": value for name, value in kept.items()}
        tensors |= {f"memory/{name}": value for name, value in progress.memory.items()}
        tensors |= {f"mask/{name}": kept for name, kept in (progress.mask or {}).items()}
        for epoch, mask in enumerate(progress.channels):
            tensors |= {f"channels/{epoch}/{name}": kept for name, kept in mask.items()}
        manifest = {
            "run": self.run_id,
            "plan": asdict(plan),
            "history": progress.history,
            "best_step": progress.best_step,
            "best_loss": progress.best_loss,
            "best_kept": progress.best_kept,
            "seconds": progress.seconds,
            "processor_seconds": progress.processor_seconds,
            "flops": progress.flops,
            "place": None if progress.place is None else asdict(progress.place),
        }
        self.keeper.save(seal(manifest, tensors, kind=KIND))
        self._saved_at = time.monotonic()

    @cached_property
    def saved(self) -> Saved | None:
        """The checkpoint that was there at the outset.

        A damaged one, or another run's, is passed over with a warning: the run starts over.
        """
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
        parts: dict[str, State] = {"state": {}, "best": {}, "memory": {}, "mask": {}}
        several: dict[str, dict[int, State]] = {"kept": {}, "channels": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part in several:
                number, _, name = name.partition("/")
                several[part].setdefault(int(number), {})[name] = value
            else:
                parts[part][name] = value
        place = manifest.get("place")  # absent from checkpoints written before there were passes
        progress = Progress(
            history=manifest["history"],
            best_loss=manifest["best_loss"],
            best_step=manifest["best_step"],
            best=parts["best"] or None,
            best_kept=manifest.get("best_kept"),
            kept=several["kept"],
            seconds=manifest["seconds"],
            processor_seconds=manifest.get("processor_seconds", 0.0),
            flops=manifest.get("flops", 0),
            mask=Mask(parts["mask"]) if parts["mask"] else None,
            memory=parts["memory"],
            channels=[Mask(mask) for _, mask in sorted(several["channels"].items())],
            place=None if place is None else Place(**place),
        )
        return Saved(Plan(**manifest["plan"]), progress, parts["state"])
