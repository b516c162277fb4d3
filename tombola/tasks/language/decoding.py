"""Translations of a net: the likeliest next token again and again (greedy), or beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tombola.errors import InputError
from tombola.tasks.models.transformer import BEGIN, END, PAD, Transformer

MOST_BEAMS = 100


@dataclass(frozen=True)
class Hypothesis:
    """A translation: its tokens after ``BEGIN``, with ``END`` where it has come to one, and its score."""

    tokens: tuple[int, ...]
    score: float
    """Its log-probability, divided by the number of its tokens to the power of the length penalty."""


def limits(source: Tensor) -> Tensor:
    """How many tokens the translation of each source (batch, length) may have: ten more than twice as many."""
    return 2 * (source != PAD).sum(dim=1) + 10


@torch.no_grad()
def greedy(model: Transformer, source: Tensor) -> list[tuple[int, ...]]:
    """The translations of sources (batch, length) of a net in evaluation mode: tokens as in ``Hypothesis``."""
    most = limits(source)
    found = torch.full((len(source), int(most.max())), PAD, dtype=torch.int64, device=source.device)
    alive, last = torch.arange(len(source), device=source.device), torch.full_like(source[:, :1], BEGIN)
    under_way = model.begin(source)
    for place in range(found.shape[1]):
        last = _possible(model.go_on(under_way, last)[:, 0]).argmax(dim=1, keepdim=True)
        found[alive, place] = last[:, 0]
        going = ((last[:, 0] != END) & (place + 1 < most[alive])).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(alive):
            under_way.select(going)
            alive, last = alive[going], last[going]
    return [tuple(token for token in line if token != PAD) for line in found.tolist()]


@torch.no_grad()
def beam_search(model: Transformer, source: Tensor, beam: int = 4, penalty: float = 1.0) -> list[Hypothesis]:
    """The best translations found of sources (batch, length) by a net in evaluation mode.

    At each step the ``beam`` likeliest prefixes of a sentence are extended by every token, and the likeliest
    ``beam`` prefixes that don't end are kept. What ends, and is among the ``beam`` likeliest extensions, is complete. A
    sentence is over once ``beam`` translations are complete, or at its limit (``limits``), where prefixes count as they
    are. The best is that of the highest score. A beam of 1 is the greedy translation.

    Raises ``InputError`` for a beam outside 1 to 100 and a penalty that is negative or not finite.
    """
    if not 1 <= beam <= MOST_BEAMS or not 0 <= penalty < math.inf:
        raise InputError(
            f"a beam must be 1 to {MOST_BEAMS} and a length penalty 0 or more, but got {beam} and {penalty:g}"
        )
    search = _Search(model, source, beam, penalty)
    while search.numbers:
        search.advance()
    return [max(found, key=lambda hypothesis: hypothesis.score) for found in search.complete]


class _Search:
    """A beam search under way: of each sentence that isn't over, ``beam`` prefixes."""

    def __init__(self, model: Transformer, source: Tensor, beam: int, penalty: float) -> None:
        self.model, self.beam, self.penalty = model, beam, penalty
        self.most = limits(source).tolist()
        self.complete: list[list[Hypothesis]] = [[] for _ in self.most]
        self.numbers = list(range(len(source)))
        device = source.device
        self.under_way = model.begin(source)
        self.under_way.select(torch.arange(len(source), device=device).repeat_interleave(beam))
        self.prefixes = torch.full((len(source) * beam, 1), BEGIN, dtype=torch.int64, device=device)
        # One prefix to begin with: those of sum -inf, and what extends them, are never chosen before others.
        self.sums = torch.tensor([0.0] + [-math.inf] * (beam - 1), device=device).repeat(len(source), 1)

    def advance(self) -> None:
        """Extend each prefix by a token."""
        scores = self.model.go_on(self.under_way, self.prefixes[:, -1:])[:, 0]
        extended = self.sums[:, :, None] + _possible(scores).log_softmax(dim=1).view(*self.sums.shape, -1)
        words = extended.shape[2]
        best, place = extended.flatten(1).topk(2 * self.beam, dim=1)
        origins, tokens, sums = (place // words).tolist(), (place % words).tolist(), best.tolist()
        rows, last, kept, numbers = [], [], [], []
        for position, number in enumerate(self.numbers):
            going = self._sort(number, position, origins[position], tokens[position], sums[position])
            if going:
                numbers.append(number)
                for origin, token, value in going:
                    rows.append(position * self.beam + origin)
                    last.append(token)
                    kept.append(value)
        device = self.prefixes.device
        chosen = torch.tensor(rows, dtype=torch.int64, device=device)
        new = torch.tensor(last, dtype=torch.int64, device=device)[:, None]
        self.under_way.select(chosen)
        self.prefixes = torch.cat((self.prefixes[chosen], new), dim=1)
        self.sums = torch.tensor(kept, device=device).view(-1, self.beam)
        self.numbers = numbers

    def _sort(
        self, number: int, position: int, origins: list[int], tokens: list[int], sums: list[float]
    ) -> list[tuple[int, int, float]]:
        """Note what of a sentence's extensions, the best first, is complete; the others to go on with, or none where it
        is over."""
        length, complete = self.prefixes.shape[1], self.complete[number]
        going: list[tuple[int, int, float]] = []
        at_limit = length >= self.most[number]
        for rank, (origin, token, value) in enumerate(zip(origins, tokens, sums, strict=True)):
            if rank < self.beam and value > -math.inf and (token == END or at_limit):
                prefix = self.prefixes[position * self.beam + origin, 1:].tolist()
                complete.append(Hypothesis((*prefix, token), value / length**self.penalty))
            elif token != END and len(going) < self.beam:
                going.append((origin, token, value))
        return [] if at_limit or len(complete) >= self.beam else going


def _possible(scores: Tensor) -> Tensor:
    """Scores (rows, words) without the tokens that no translation holds."""
    return scores.index_fill(1, torch.tensor([PAD, BEGIN], device=scores.device), -math.inf)
