"""Batches of whatever form the data yield: tensors, tuples, lists and mappings of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def size_of(batch: Any) -> int:
    """How many examples a batch holds: the first dimension of its first tensor."""
    found = tensors(batch)
    return len(found[0]) if found and found[0].dim() else 1


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return [t for part in batch for t in tensors(part)] if isinstance(batch, (tuple, list)) else []


def moved(batch: Any, device: str) -> Any:
    """The batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(part, device) for key, part in batch.items()}
    return [moved(part, device) for part in batch] if isinstance(batch, (tuple, list)) else batch
