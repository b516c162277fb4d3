"""Language modelling: an LSTM on WikiText-2, as Yu et al. (2020) train it, and a small one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.durations import Duration
from tombola.recipe import Recipe
from tombola.tasks.data.download import Progress
from tombola.tasks.data.root import data_root
from tombola.tasks.data.wikitext import load_wikitext2
from tombola.tasks.language.corpus import UNCOUNTED, Streams, Stretches, Vocabulary
from tombola.tasks.models.lstm import LSTMLanguageModel
from tombola.tasks.models.scaling import scaled
from tombola.tasks.task import LoadSplits, Splits, Task

_SCORED_AT_ONCE = 1024  # tokens whose scores of all words are in memory at a time


def next_word_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of the next word, in nats, over the tokens of a batch of ``Streams`` or ``Stretches``."""
    tokens, targets, *carried = batch
    return F.cross_entropy(model(tokens, *carried).flatten(0, 1), targets.flatten(), ignore_index=UNCOUNTED)


def next_word_sums(model: Any, batch: Any) -> dict[str, Tensor]:
    """Summed cross-entropy (``loss``) and the number of counted tokens (``tokens``), both per row of the batch.

    ``model`` is an ``LSTMLanguageModel``; it reads every row from a state of zeros.
    """
    tokens, targets = batch[:2]
    counted = targets.flatten() != UNCOUNTED
    given, wanted = model.read(tokens).flatten(0, 1)[counted], targets.flatten()[counted]
    parts = zip(torch.split(given, _SCORED_AT_ONCE), torch.split(wanted, _SCORED_AT_ONCE), strict=True)
    total = torch.stack([F.cross_entropy(model.output(g), w, reduction="sum").double() for g, w in parts]).sum()
    return {"loss": total / len(tokens), "tokens": counted.sum() / len(tokens)}


def perplexity(means: Mapping[str, float]) -> dict[str, float]:
    """Mean cross-entropy over all tokens, and its exponential: the perplexity of the whole text."""
    loss = means["loss"] / means["tokens"]
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def wikitext2_splits(
    words: int, *, streams: int, segment: int, stretch: int = 1000, tokens: int | None = None
) -> LoadSplits:
    """WikiText-2 with its ``words`` most frequent words; of the training part the first ``tokens``, or all."""

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        train, validation, test = load_wikitext2(data_root(root), progress=progress)
        train = train[:tokens]
        vocabulary = Vocabulary.of(train, words)
        return Splits(
            Streams(vocabulary.numbers(train), streams, segment),
            Stretches(vocabulary.numbers(validation), stretch),
            Stretches(vocabulary.numbers(test), stretch),
        )

    return splits


def _lstm(words: int, units: int, streams: int, dropout: float, factor: float = 1.0) -> LSTMLanguageModel:
    width = scaled(units, factor)
    return LSTMLanguageModel(words, width, width, dropout=dropout, streams=streams)


_JUDGED: dict[str, Any] = {
    "loss": next_word_loss,
    "metrics": next_word_sums,
    "conclude": perplexity,
    "metric": "perplexity",
    "higher_is_better": False,
    "allocation": "global",
    "embeddings": True,
}
_FULL, _SMALL = partial(_lstm, 33_278, 650, 30, 0.5), partial(_lstm, 2_000, 128, 20, 0.2)

MODELLING = (
    Task(
        name="wikitext2-lstm",
        model=_FULL,
        scaled=lambda factor: _FULL(factor=factor),
        load=wikitext2_splits(33_278, streams=30, segment=50),
        data_sets=("wikitext2",),
        recipe=Recipe(
            steps=Duration(10, "ep"),
            batch=30,
            optimizer="adam",
            lr=1e-3,
            eps=1e-3,
            evaluate_every=Duration(1, "ep"),
        ),
        rounds=20,
        margin=1.0,
        description="Two LSTM layers of 650 units on WikiText-2, the recipe of Yu et al. (2020); rewind to 1ep",
        **_JUDGED,
    ),
    Task(
        name="wikitext2-lstm-small",
        model=_SMALL,
        scaled=lambda factor: _SMALL(factor=factor),
        load=wikitext2_splits(2_000, streams=20, segment=35, tokens=400_000),
        data_sets=("wikitext2",),
        recipe=Recipe(
            steps=Duration(5, "ep"),
            batch=20,
            optimizer="adam",
            lr=5e-3,
            lr_schedule="cosine",
            evaluate_every=Duration(1, "ep"),
        ),
        rounds=12,
        margin=0.5,
        description="Two LSTM layers of 128 units on the first fifth of WikiText-2, 2,000 words, for a CPU",
        **_JUDGED,
    ),
)
