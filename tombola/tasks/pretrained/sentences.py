"""Labelled sentences as batches for nets of Transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.sealed import content_hash

LONGEST = 128
"""Tokens of a sentence at most, those that begin and end it included; longer ones are cut (Chen et al. 2020)."""
AT_ONCE = 100
"""Sentences that are evaluated at once: a large net's feed-forward layers would fill the memory with more."""


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences as rows of tokens (examples, longest), padded at their ends, with lengths and classes, each int64.

    A batch maps ``input_ids`` and ``attention_mask``, (batch, longest of the batch), and ``labels``: the arguments of
    the library's nets.
    """

    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """The batch of these sentences."""
        index = index.to(self.ids.device)
        lengths = self.lengths[index]
        longest = int(lengths.max())
        given = torch.arange(longest, device=index.device) < lengths[:, None]
        return {"input_ids": self.ids[index, :longest], "attention_mask": given.long(), "labels": self.labels[index]}

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All sentences in order, at most ``AT_ONCE`` in a batch."""
        for index in torch.split(torch.arange(len(self)), min(size, AT_ONCE)):
            yield self.take(index)

    def to(self, device: str) -> Sentences:
        """The same sentences on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("ids", "lengths", "labels")}
        return replace(self, **tensors)

    @property
    def digest(self) -> str:
        """A checksum of the tokens and classes."""
        tensors = {name: getattr(self, name).cpu() for name in ("ids", "lengths", "labels")}
        return content_hash("sentences", {}, tensors)


def tokenised(sentences: Sequence[str], labels: Sequence[int], tokenizer: Any, longest: int = LONGEST) -> Sentences:
    """Sentences as a tokenizer of Transformers splits them, with its tokens for beginning and end."""
    rows = tokenizer(list(sentences), truncation=True, max_length=longest)["input_ids"]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), int(tokenizer.pad_token_id))
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = torch.tensor(found)
    return Sentences(ids, lengths, torch.tensor(list(labels)))


def classified(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the classes."""
    return F.cross_entropy(_scores(model, batch), batch["labels"])


def judged(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Loss and share of right answers."""
    out = _scores(model, batch)
    right = out.argmax(dim=1) == batch["labels"]
    return {"loss": F.cross_entropy(out, batch["labels"]), "accuracy": right.float().mean()}


def _scores(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    out: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return out
