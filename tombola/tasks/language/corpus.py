"""A text as tokens: a vocabulary, parallel streams of segments to train on, long stretches to be judged on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tombola.errors import InputError

UNKNOWN = "<unk>"
UNCOUNTED = -1
"""The target of what is no token of the text: the end of the last stretch."""
_AT_ONCE = 2**15  # tokens of a batch of stretches, so that what layers give of them stays in memory


@dataclass(frozen=True)
class Vocabulary:
    """Words, the most frequent first, and those of one frequency in alphabetical order. Others count as ``<unk>``."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, tokens: Sequence[str], most: int) -> Vocabulary:
        """The ``most`` most frequent words of a text, ``<unk>`` always among them."""
        counts = Counter(tokens)
        counts.setdefault(UNKNOWN, 0)
        if most < 1:
            raise InputError(f"a vocabulary must have 1 word or more, but got {most}")
        ranked = sorted(counts, key=lambda word: (word != UNKNOWN, -counts[word], word))[:most]
        return cls(tuple(sorted(ranked, key=lambda word: (-counts[word], word))))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def numbers(self, tokens: Sequence[str]) -> Tensor:
        """The number of each token, int64 of shape (N,)."""
        numbers, unknown = self._numbers, self._numbers[UNKNOWN]
        return torch.tensor([numbers.get(token, unknown) for token in tokens], dtype=torch.int64)


def _check(tokens: Tensor, least: int) -> None:
    if tokens.dtype != torch.int64 or tokens.dim() != 1 or len(tokens) < least:
        raise InputError(
            f"a text must be {least:,} or more tokens, int64 of shape (N,), but is {tokens.dtype} of shape "
            f"{tuple(tokens.shape)}"
        )


def _digest(what: str, tokens: Tensor) -> str:
    return hashlib.sha256(what.encode() + tokens.cpu().numpy().tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Streams:
    """A text that is read side by side in ``streams`` equal parts, each in segments of ``segment`` tokens.

    A batch is ``(tokens, targets, streams, begins)``: tokens and those that follow them, int64 (rows, segment), the
    stream of each row, and whether it begins there. Segment k of stream s has the number ``k * streams + s``: in their
    order, consecutive batches of ``streams`` segments go on where those before them stopped, and so do smaller ones.

    In each epoch the text is read as a ring from a place drawn at random, where its first stream begins. The place is
    part of the index: of n segments, ``segment + n * (1 + place)``. Plain indices stand for segments that are read by
    themselves, of the text from its beginning: they belong to no stream (their number is ``streams``), and begin.

    Raises ``InputError`` for a text that is too short for one segment a stream.
    """

    tokens: Tensor
    streams: int = 30
    segment: int = 50

    def __post_init__(self) -> None:
        if self.streams < 1 or self.segment < 1:
            raise InputError(f"streams and segment must be 1 or more, but got {self.streams} and {self.segment}")
        _check(self.tokens, self.streams * self.segment)

    def __len__(self) -> int:
        """How many segments there are; what is left over at the end of each stream isn't read in that epoch."""
        return len(self.tokens) // self.streams // self.segment * self.streams

    def vary(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The segments of an epoch in reading order, from a place that ``generator`` draws; ``order`` is not needed."""
        place = torch.randint(len(self.tokens), (), generator=generator)
        return torch.arange(len(self)) + len(self) * (1 + place)

    def check_batch(self, size: int) -> None:
        """Raise ``InputError`` for batches of varied indices in which a stream would be read at two places at once."""
        if size > self.streams:
            raise InputError(
                f"a batch must hold a segment of each stream at most, and the text is read in {self.streams} streams, "
                f"but the batch is {size}: set it to {self.streams} or less"
            )

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The batch of a varied or plain index (1-D int64 on any device).

        Raises ``InputError`` for what ``check_batch`` refuses.
        """
        n, device = len(self), self.tokens.device
        index = index.to(device)
        if len(index) > self.streams and bool((index >= n).any()):  # to look at the index waits for the device
            self.check_batch(len(index))
        number, place = index % n, index.div(n, rounding_mode="floor") - 1
        alone = place < 0
        segment, stream = number.div(self.streams, rounding_mode="floor"), number % self.streams
        first = place.clamp(min=0) + stream * (len(self.tokens) // self.streams) + segment * self.segment
        places = first[:, None] + torch.arange(self.segment + 1, device=device)
        text = self.tokens[places % len(self.tokens)]
        return text[:, :-1], text[:, 1:], stream.masked_fill(alone, self.streams), alone | (segment == 0)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """All segments in order, each read by itself, in batches of ``size``."""
        for part in torch.split(torch.arange(len(self)), size):
            yield self.take(part)

    def to(self, device: str) -> Streams:
        """The same with its tokens on ``device``."""
        return replace(self, tokens=self.tokens.to(device))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and how they are read."""
        return _digest(f"streams {self.streams}/segment {self.segment}/", self.tokens)


@dataclass(frozen=True, eq=False)
class Stretches:
    """A text that is read whole, in stretches of ``length`` tokens, each from a state that knows nothing.

    A batch is ``(tokens, targets)``, int64 (stretches, length). Every token but the first of the text is a target once;
    what fills the last stretch has the target ``UNCOUNTED``.
    """

    tokens: Tensor
    length: int = 1000

    def __post_init__(self) -> None:
        if self.length < 1:
            raise InputError(f"a stretch must have 1 token or more, but got {self.length}")
        _check(self.tokens, 2)

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.length)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of these stretches (1-D int64 on any device)."""
        device, last = self.tokens.device, len(self.tokens) - 1
        places = index.to(device)[:, None] * self.length + torch.arange(self.length, device=device)
        targets = self.tokens[(places + 1).clamp(max=last)].masked_fill(places >= last, UNCOUNTED)
        return self.tokens[places.clamp(max=last)], targets

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All stretches in order, in batches of ``size``, or of fewer where that would be too much text at once."""
        for part in torch.split(torch.arange(len(self)), max(1, min(size, _AT_ONCE // self.length))):
            yield self.take(part)

    def to(self, device: str) -> Stretches:
        """The same with its tokens on ``device``."""
        return replace(self, tokens=self.tokens.to(device))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and how they are read."""
        return _digest(f"stretches {self.length}/", self.tokens)
