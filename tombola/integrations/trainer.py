"""Masks in ``transformers.Trainer``: pruned weights stay exactly zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tombola.extras import TRANSFORMERS
from tombola.guarding import Guard
from tombola.mask import Mask

with TRANSFORMERS.needed_by("MaskCallback"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MaskCallback(TrainerCallback):
    """Guards a mask from a Trainer's first step to its last: ``Trainer(..., callbacks=[MaskCallback(mask)])``.

    What the mask prunes of the model is exactly 0.0 from the beginning of ``train()`` on, whatever optimiser, weight
    decay, gradient accumulation, clipping and mixed precision do (see ``tombola.guarding.Guard``), and so it is in
    every checkpoint and in the model that training leaves. A training that goes on from a checkpoint is guarded as one
    that begins; of a checkpoint that was trained without the mask, pruned weights and what the optimiser remembers of
    them are set to zero. Start from a ticket's values by ``model.load_state_dict(ticket.values)``.

    The mask has the names and shapes of the bare model's parameters. ``InputError`` where it doesn't fit, which is so
    as well where a strategy such as FSDP has cut the parameters up.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._guard: Guard | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Guard model and optimiser, a checkpoint's state already in them."""
        self.remove()  # of a training that broke off
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        assert isinstance(model, nn.Module)
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # a wrapper that skips steps doesn't take hooks
        self._guard = Guard(model, optimizer, self.mask)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop guarding; the weights stay as they are."""
        self.remove()
        self.mask.apply_(kwargs["model"])  # the best model of the training may have been loaded from elsewhere

    def remove(self) -> None:
        """Stop guarding, where a training broke off by an exception. Safe to call twice."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None
