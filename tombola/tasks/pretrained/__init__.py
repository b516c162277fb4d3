"""Tasks with nets of Transformers: BERT fine-tuned from pre-trained weights, and pre-trained (Chen et al. 2020)."""

from __future__ import annotations

from tombola.tasks.pretrained.bert import FROM_A_CHECKPOINT, MADE_HERE, from_checkpoint
from tombola.tasks.pretrained.task import TransformersTask

__all__ = ["FROM_A_CHECKPOINT", "MADE_HERE", "TransformersTask", "from_checkpoint"]
