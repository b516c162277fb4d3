"""Tasks whose net is one of Transformers, mostly one that begins pre-trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tombola.errors import InputError
from tombola.mask import prunable
from tombola.seeds import global_stream
from tombola.tasks.pretrained.checkpoint import CLASSIFIER, Checkpoint, in_body, save
from tombola.tasks.task import Task


@dataclass(frozen=True)
class TransformersTask(Task):
    """A task with a net of Transformers. Names of parameters and the state_dict are the library's.

    Parameters
    ----------
    checkpoint
        What the net begins with: the body's values are pre-trained, and a head that is drawn comes from the seed. So
        step 0 of a training has the pre-trained values, and to reset survivors is to rewind to them. None for a net
        that is drawn from the seed alone.
    kind
        Which head the net has: ``CLASSIFIER`` or ``MASKED_WORDS``.
    tokenizer
        ``tokenizer(root)`` gives the tokenizer of the net; ``root`` is the data root.
    """

    checkpoint: Checkpoint | None = None
    kind: str = CLASSIFIER
    tokenizer: Callable[[Path | None], Any] | None = None

    def build(self, seed: int, *names: str | int) -> nn.Module:
        """The net as it begins: for a control's stream one that is drawn at random throughout, as pre-trained values
        would be the same in every draw."""
        if self.checkpoint is None or not names or names[0] != "control":
            return super().build(seed, *names)
        with global_stream(seed, *names):
            return self.checkpoint.drawn(self.kind).train()

    def identity(self) -> dict[str, Any]:
        """As of every task, with the checkpoint known by its content in place of its address."""
        known = super().identity()
        if self.checkpoint is not None:
            known["name"] = self.name.replace(self.checkpoint.name, self.checkpoint.digest[:12])
            known["checkpoint"] = self.checkpoint.digest
        return known

    def export(self, net: nn.Module, folder: Path, root: Path | None = None) -> Path:
        """Write a net of the task as a checkpoint, ``folder/transformers``: configuration, weights, tokenizer."""
        assert self.tokenizer is not None
        save(net, self.tokenizer(root), folder / "transformers")
        return folder / "transformers"

    def carried_from(self, source: Task) -> Task:
        """This task for tickets of ``source``, which have masks and values for the body that both have in common.

        What only this net has is drawn as ever, and outside the mask. Raises ``InputError`` unless both begin with the
        same checkpoint.
        """
        mine = self.checkpoint
        theirs = source.checkpoint if isinstance(source, TransformersTask) else None
        if mine is None or theirs is None or mine.digest != theirs.digest or not isinstance(source, TransformersTask):
            raise InputError(
                f"tickets are carried between tasks that begin with one checkpoint, but {self.name!r} begins with "
                f"{_origin(mine)} and {source.name!r} with {_origin(theirs)}: name the same after the colon of both"
            )
        covered = set(source.prunable(theirs.skeleton(source.kind))) - set(source.unpruned)
        own = self.prunable(mine.skeleton(self.kind))
        extra = [name for name in own if name not in covered and name not in self.unpruned]
        if not extra:
            return self
        return replace(self, name=f"{self.name}@{source.name}", unpruned=(*self.unpruned, *extra))

    def head(self) -> Callable[[str], bool] | None:
        """What is outside the body, and the pooler, which not every task's net has."""
        if self.checkpoint is None:
            return None
        net = self.checkpoint.skeleton(self.kind)
        return lambda name: not in_body(net, name) or "pooler" in name.split(".")


def heads(checkpoint: Checkpoint, kind: str) -> tuple[str, ...]:
    """The prunable weights of a net that are left whole: its head's, and embeddings that a head shares.

    A pooler that the checkpoint doesn't have is drawn anew and so belongs to the head.
    """
    net = checkpoint.skeleton(kind)
    fresh = () if checkpoint.has_pooler else ("pooler",)
    left = {"embeddings", *fresh}
    return tuple(n for n in prunable(net) if not in_body(net, n) or left & set(n.split(".")))


def _origin(checkpoint: Checkpoint | None) -> str:
    return "none" if checkpoint is None else f"{checkpoint.name} ({checkpoint.digest[:8]})"
