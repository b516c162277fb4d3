"""Sentences and their translations as tokens, in batches of like lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tombola.errors import InputError
from tombola.tasks.language.subwords import Subwords
from tombola.tasks.models.transformer import BEGIN, END, PAD

_AT_ONCE = 2**14  # tokens of a batch to be judged, so that the scores of all words for each fit into memory


@dataclass(frozen=True)
class References:
    """What the translations of a batch are compared with."""

    texts: tuple[str, ...]
    subwords: Subwords
    of: int
    """How many pairs the whole set has."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a source and its translation: int64 (N, 2, longest), each from ``BEGIN`` to ``END``, then ``PAD``.

    A batch is ``(pairs, references)``: pairs cut to the longest among them, and their ``References``. In an epoch
    (``vary``) groups of ``group`` pairs are of like lengths, and come in random order: with batches of that size little
    is padded. Raises ``InputError`` for tensors of another form.
    """

    pairs: Tensor
    texts: tuple[str, ...]
    """The translations as they are written."""
    subwords: Subwords
    group: int = 64

    def __post_init__(self) -> None:
        shape = tuple(self.pairs.shape)
        if self.pairs.dtype != torch.int64 or len(shape) != 3 or shape[:2] != (len(self.texts), 2) or 0 in shape:
            raise InputError(
                f"pairs must be int64 of shape ({len(self.texts)}, 2, longest), but are {self.pairs.dtype} of {shape}"
            )
        if self.group < 1:
            raise InputError(f"a group must have 1 pair or more, but got {self.group}")

    @classmethod
    def of(cls, source: Sequence[str], target: Sequence[str], subwords: Subwords, group: int = 64) -> Pairs:
        """Lines and their translations as pairs."""
        lines = [subwords.numbers(texts) for texts in (source, target)]
        longest = 2 + max(len(line) for texts in lines for line in texts)
        pairs = torch.full((len(source), 2, longest), PAD, dtype=torch.int64)
        for side, texts in enumerate(lines):
            for row, line in enumerate(texts):
                pairs[row, side, : len(line) + 2] = torch.tensor([BEGIN, *line, END])
        return cls(pairs, tuple(target), subwords, group)

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def lengths(self) -> Tensor:
        """Of the longer part of each pair, int64 (N,)."""
        return (self.pairs != PAD).sum(dim=2).amax(dim=1)

    def vary(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The pairs of an epoch: groups of like lengths in random order, then those, drawn at random, that make no
        whole group. Pairs of one length are grouped at random, by their place in ``order``."""
        whole = len(order) // self.group * self.group
        grouped, rest = order[:whole], order[whole:]
        by_length = grouped[self.lengths.to(order.device)[grouped].argsort(stable=True)].view(-1, self.group)
        shuffled = torch.randperm(len(by_length), generator=generator).to(order.device)
        return torch.cat((by_length[shuffled].flatten(), rest))

    def take(self, index: Tensor) -> tuple[Tensor, References]:
        """The batch of these pairs (1-D int64 index on any device): int64 (batch, 2, length of the longest)."""
        index = index.to(self.pairs.device)
        pairs = self.pairs.index_select(0, index)[:, :, : int(self.lengths[index].max())]
        texts = tuple(self.texts[number] for number in index.tolist())
        return pairs, References(texts, self.subwords, len(self))

    def batches(self, size: int) -> Iterator[tuple[Tensor, References]]:
        """All pairs in order, in batches of ``size``, or of fewer where that would be too much text at once."""
        size = max(1, min(size, _AT_ONCE // self.pairs.shape[2]))
        for part in torch.split(torch.arange(len(self)), size):
            yield self.take(part)

    def to(self, device: str) -> Pairs:
        """The same with its tokens on ``device``."""
        return replace(self, pairs=self.pairs.to(device))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tokens, subwords and translations, and of how they are grouped."""
        digest = hashlib.sha256(f"pairs/group {self.group}/{self.subwords.digest}/{self.texts}".encode())
        digest.update(f"{tuple(self.pairs.shape)}".encode())
        digest.update(self.pairs.cpu().numpy().data)
        return digest.hexdigest()
