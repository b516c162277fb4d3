"""Translation: Transformers from English to German on Multi30k, judged by BLEU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.extras import LANGUAGE
from tombola.recipe import Recipe
from tombola.tasks.data.download import Progress
from tombola.tasks.data.multi30k import load_multi30k
from tombola.tasks.data.root import data_root
from tombola.tasks.language.decoding import beam_search, greedy
from tombola.tasks.language.pairs import Pairs
from tombola.tasks.language.subwords import Subwords
from tombola.tasks.models.scaling import scaled
from tombola.tasks.models.transformer import PAD, Transformer
from tombola.tasks.task import LoadSplits, Splits, Task

_SMOOTHING = 0.1
_ORDERS = (1, 2, 3, 4)
_TOKENS_AT_ONCE = 2**14  # of all translations under way, at the length of the longest pair


def smoothed_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy over the tokens of a batch of ``Pairs``, in nats, with label smoothing 0.1."""
    pairs, _ = batch
    scores, targets = model(pairs).flatten(0, 1), pairs[:, 1, 1:].flatten()
    return F.cross_entropy(scores, targets, ignore_index=PAD, label_smoothing=_SMOOTHING)


def translation_sums(model: Any, batch: Any) -> dict[str, Tensor]:
    """What ``translation_metrics`` makes metrics of, per pair of the batch: summed cross-entropy without smoothing, the
    number of tokens and of those that the net ranks first, and the counts of BLEU for its greedy translations."""
    pairs, references = batch
    targets = pairs[:, 1, 1:]
    counted = targets != PAD
    scores, wanted = model(pairs)[counted], targets[counted]
    sums = {
        "loss": F.cross_entropy(scores, wanted, reduction="sum").double(),
        "tokens": counted.sum(),
        "right": (scores.argmax(dim=1) == wanted).sum(),
    }
    found = references.subwords.texts(greedy(model, pairs[:, 0]))
    sums |= {name: torch.tensor(count) for name, count in bleu_counts(found, references.texts).items()}
    return {name: value / len(pairs) for name, value in sums.items()} | {"pairs": torch.tensor(references.of)}


def bleu_counts(found: list[str], wanted: tuple[str, ...]) -> dict[str, int]:
    """What BLEU is made of, summed over sentences as they are written, by sacrebleu with its own tokens (13a):
    ``matches`` and ``ngrams`` of 1 to 4 words, and the words of translations and references (``words``, ``wanted``)."""
    score = _bleu().corpus_score(found, [list(wanted)])
    counts = {"words": score.sys_len, "wanted": score.ref_len}
    for order, matches, ngrams in zip(_ORDERS, score.counts, score.totals, strict=True):
        counts |= {f"matches{order}": matches, f"ngrams{order}": ngrams}
    return counts


def translation_metrics(means: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy per token, and the BLEU that sacrebleu gives for all greedy translations together."""

    def count(name: str) -> int:
        return round(means[name] * means["pairs"])

    bleu = _bleu().compute_bleu(
        [count(f"matches{n}") for n in _ORDERS],
        [count(f"ngrams{n}") for n in _ORDERS],
        count("words"),
        count("wanted"),
        smooth_method="exp",
    )
    tokens = means["tokens"]
    return {"loss": means["loss"] / tokens, "token_accuracy": means["right"] / tokens, "bleu": float(bleu.score)}


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(force=True)  # no word of warning where the translations of an untaught net look cut into tokens


@dataclass(frozen=True)
class Translations:
    """Translations of a whole set, in its order, and their BLEU, with sacrebleu's signature of how it was computed."""

    texts: tuple[str, ...]
    bleu: float
    signature: str


def translate(model: nn.Module, data: Pairs, *, beam: int = 4, penalty: float = 1.0) -> Translations:
    """Translate a set by beam search (see ``beam_search``) and compare with its references.

    The model comes back in the mode that it was in. Raises ``InputError`` for a net that is no Transformer of ours, and
    for a beam or penalty that ``beam_search`` refuses.
    """
    if not isinstance(model, Transformer):
        raise InputError(f"only a Transformer of tombola's own translates, but the net is a {type(model).__name__}")
    order, device = data.lengths.argsort(stable=True), next(model.parameters()).device
    texts, was_training = [""] * len(data), model.training
    model.eval()
    try:
        for part in torch.split(order, max(1, _TOKENS_AT_ONCE // (beam * data.pairs.shape[2]))):
            found = beam_search(model, data.take(part)[0][:, 0].to(device), beam, penalty)
            for number, text in zip(part.tolist(), data.subwords.texts([h.tokens for h in found]), strict=True):
                texts[number] = text
    finally:
        model.train(was_training)
    metric = _bleu()
    score = metric.corpus_score(texts, [list(data.texts)])
    return Translations(tuple(texts), float(score.score), str(metric.get_signature()))


def translates(task: Task) -> bool:
    """Whether a task's nets are translators: ``translate`` takes them, and the task's data."""
    return task.metrics is translation_sums


def multi30k_splits(words: int, *, group: int) -> LoadSplits:
    """Multi30k in ``words`` subwords of both languages, those of the training part (read in groups of ``group``)."""

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        LANGUAGE.require("translation")
        parts = load_multi30k(data_root(root), progress=progress)
        subwords = Subwords.trained((*parts[0].source, *parts[0].target), words)
        train, validation, test = (Pairs.of(part.source, part.target, subwords, group) for part in parts)
        return Splits(train, validation, test)

    return splits


def _transformer(
    words: int, heads: int, hidden: int, layers: int, dropout: float, *, head: int, factor: float = 1.0
) -> Transformer:
    """Heads of ``head`` values each; of another factor, as many of them as are nearest to it."""
    heads = scaled(heads, factor)
    return Transformer(words, head * heads, heads=heads, hidden=scaled(hidden, factor), layers=layers, dropout=dropout)


_JUDGED: dict[str, Any] = {
    "loss": smoothed_loss,
    "metrics": translation_sums,
    "conclude": translation_metrics,
    "metric": "bleu",
    "higher_is_better": True,
    "allocation": "global",
    "embeddings": True,
}

_FULL = partial(_transformer, 8_000, 4, 1024, 4, 0.3, head=64)
_SMALL = partial(_transformer, 3_000, 4, 256, 2, 0.0, head=32)


def _recipe(**changes: Any) -> Recipe:
    """Adam with the moments of Vaswani et al. (2017), a linear warm-up, then a cosine."""
    fields: dict[str, Any] = {"batch": 64, "optimizer": "adam", "betas": (0.9, 0.98), "lr_schedule": "cosine"}
    return Recipe(**(fields | changes))


TRANSLATION = (
    Task(
        name="multi30k-transformer",
        model=_FULL,
        scaled=lambda factor: _FULL(factor=factor),
        load=multi30k_splits(8_000, group=64),
        data_sets=("multi30k",),
        extra=LANGUAGE,
        recipe=_recipe(steps=Duration(40, "ep"), lr=5e-4, warmup=Duration(2_000), evaluate_every=Duration(1, "ep")),
        rounds=15,
        margin=0.5,
        description="Transformer of 4 + 4 layers of width 256 on Multi30k, English to German, 40 epochs",
        **_JUDGED,
    ),
    Task(
        name="multi30k-transformer-small",
        model=_SMALL,
        scaled=lambda factor: _SMALL(factor=factor),
        load=multi30k_splits(3_000, group=32),
        data_sets=("multi30k",),
        extra=LANGUAGE,
        recipe=_recipe(
            steps=Duration(2, "ep"), batch=32, lr=3e-3, warmup=Duration(200), evaluate_every=Duration(1, "ep")
        ),
        rounds=10,
        margin=0.5,
        description="Transformer of 2 + 2 layers of width 128 on Multi30k, English to German, 2 epochs, for a CPU",
        **_JUDGED,
    ),
)
