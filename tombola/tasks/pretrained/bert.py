"""The tasks of BERT: pre-trained here on WikiText-2, and from a checkpoint that the task's name gives.

``sst2-bert:CHECKPOINT`` and the like begin with the checkpoint's values. What is drawn anew, the head of a classifier
and a pooler that the checkpoint lacks, is left unpruned, as are embeddings; all linear weights of the body are pruned
by one threshold (Chen et al. 2020, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tombola.durations import Duration
from tombola.errors import InputError
from tombola.extras import TRANSFORMERS, Extra
from tombola.recipe import Recipe
from tombola.tasks.data.download import Progress
from tombola.tasks.data.root import data_root
from tombola.tasks.data.sst2 import load_sst2
from tombola.tasks.data.wikitext import load_wikitext2
from tombola.tasks.models.scaling import scaled
from tombola.tasks.models.transformer import positions
from tombola.tasks.pretrained.checkpoint import CLASSIFIER, MASKED_WORDS, Checkpoint, checkpoint, transformers
from tombola.tasks.pretrained.masking import MaskedText, concluded, counted, in_rows, told
from tombola.tasks.pretrained.sentences import LONGEST, classified, judged, tokenised
from tombola.tasks.pretrained.task import TransformersTask, heads
from tombola.tasks.pretrained.tokens import encoded, learned
from tombola.tasks.task import Splits

COLON = ":"
VOCABULARY, ROW, _SMALL_ROW = 8192, 128, 32
"""Of the BERT of 4 layers: tokens that it knows, and tokens in a row, at most and in the small task."""
_WIDTH, _HEADS = 64, 2
"""Of a head, and how many heads there are."""
_TEXT, _SENTENCES = ("wikitext2",), ("sst2",)
ROUNDS = 9

_FINE_TUNING = Recipe(
    steps=Duration(3, "ep"),
    batch=32,
    optimizer="adamw",
    lr=2e-5,
    lr_schedule="linear",
    evaluate_every=Duration(50),
)
_SMALL_FINE_TUNING = _FINE_TUNING.model_copy(update={"lr": 5e-4})
_PRE_TRAINING = Recipe(
    steps=Duration(40, "ep"),
    batch=32,
    optimizer="adamw",
    lr=1e-3,
    betas=(0.9, 0.98),
    weight_decay=0.01,
    lr_schedule="linear",
    warmup=Duration(1, "ep"),
    evaluate_every=Duration(1, "ep"),
)
_SMALL_PRE_TRAINING = _PRE_TRAINING.model_copy(
    update={
        "steps": Duration(4_000),
        "batch": 64,
        "lr": 2e-3,
        "warmup": Duration(250),
        "evaluate_every": Duration(500),
    }
)
_FURTHER_PRE_TRAINING = _FINE_TUNING.model_copy(update={"lr": 5e-5, "evaluate_every": Duration(100)})
_SMALL_FURTHER_PRE_TRAINING = _FURTHER_PRE_TRAINING.model_copy(update={"steps": Duration(400), "batch": 64, "lr": 1e-4})


def small_bert(factor: float = 1.0, *, dropout: float = 0.1) -> nn.Module:
    """A BERT of 4 layers, 128 wide, with 2 heads, for masked language modelling: 786,432 weights to prune.

    Its positions begin as sines and cosines, as long as the embeddings of words, and are trained. From positions at
    random it takes far more steps to learn whom to attend to (``docs/log.md``). ``factor`` scales the widths of heads
    and of feed-forward layers.
    """
    library = transformers()
    config = library.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=_HEADS * scaled(_WIDTH, factor),
        num_hidden_layers=4,
        num_attention_heads=_HEADS,
        intermediate_size=scaled(512, factor),
        max_position_embeddings=ROW,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.05,  # BERT's 0.02 is for weights 768 wide: as large outputs from 128
        attn_implementation="eager",
    )
    made: nn.Module = library.BertForMaskedLM(config).train()
    places: Tensor = made.get_parameter("bert.embeddings.position_embeddings.weight")
    waves = positions(0, ROW, places.shape[1], places.device)
    places.data.copy_(waves * (config.initializer_range * math.sqrt(2)))  # a wave's mean square is a half
    return made


def _learned_tokenizer(root: Path | None) -> Any:
    return learned(tuple(load_wikitext2(data_root(root))[0]), VOCABULARY, ROW)


def _text_splits(
    root: Path | None,
    seed: int,
    progress: Progress | None,
    *,
    length: int,
    tokenizer: Callable[[Path | None], Any],
) -> Splits:
    """WikiText-2 in rows of tokens, the same for every seed: its own validation and test part."""
    words = load_wikitext2(data_root(root), progress=progress)
    found = tokenizer(root)
    return Splits(
        *(
            _masked(part, found, length, name)
            for part, name in zip(words, ("training", "validation", "test"), strict=True)
        )
    )


def _masked(words: list[str], tokenizer: Any, length: int, part: str) -> MaskedText:
    text = f"the {part} part of WikiText-2"
    begin, end, mask = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask"))
    if None in (begin, end, mask, tokenizer.unk_token_id):
        raise InputError(
            "masked language modelling needs a tokenizer with tokens for beginning, end, mask and unknown words, but "
            "the checkpoint's lacks one: choose a checkpoint of BERT's kind"
        )
    rows = in_rows(encoded(words, tokenizer), length, begin, end, text)
    return MaskedText(rows, mask, torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))))


def _sentence_splits(
    root: Path | None, seed: int, progress: Progress | None, *, tokenizer: Callable[[Path | None], Any], longest: int
) -> Splits:
    """SST-2, the same for every seed: its development part validates."""
    parts = load_sst2(data_root(root), progress=progress)
    found = tokenizer(root)
    return Splits(*(tokenised(part.sentences, part.labels, found, longest) for part in parts))


def _pre_training(name: str, recipe: Recipe, description: str, *, length: int, dropout: float) -> TransformersTask:
    net = partial(small_bert, dropout=dropout)
    return TransformersTask(
        name=name,
        model=net,
        scaled=net,
        load=partial(_text_splits, length=length, tokenizer=_learned_tokenizer),
        data_sets=_TEXT,
        extra=TRANSFORMERS,
        kind=MASKED_WORDS,
        tokenizer=_learned_tokenizer,
        loss=told,
        metrics=counted,
        conclude=concluded,
        allocation="global",
        unpruned=("*embeddings*", "cls.*"),
        rounds=ROUNDS,
        recipe=recipe,
        description=description,
    )


MADE_HERE = (
    _pre_training(
        "wikitext2-mlm",
        _PRE_TRAINING,
        "BERT of 4 layers, 128 wide, pre-trained on WikiText-2 by masked language modelling",
        length=ROW,
        dropout=0.1,
    ),
    _pre_training(
        "wikitext2-mlm-small",
        _SMALL_PRE_TRAINING,
        "As wikitext2-mlm for minutes on one core: in rows of 32 tokens, no dropout",
        length=_SMALL_ROW,
        dropout=0.0,
    ),
)


def _sst2(name: str, found: Checkpoint, recipe: Recipe) -> TransformersTask:
    longest = _longest(found, LONGEST)
    return TransformersTask(
        name=name,
        model=partial(found.load, CLASSIFIER),
        load=partial(_sentence_splits, tokenizer=lambda root: found.tokenizer, longest=longest),
        data_sets=_SENTENCES,
        extra=TRANSFORMERS,
        kind=CLASSIFIER,
        checkpoint=found,
        tokenizer=lambda root: found.tokenizer,
        loss=classified,
        metrics=judged,
        allocation="global",
        unpruned=heads(found, CLASSIFIER),
        rounds=ROUNDS,
        margin=0.015,
        recipe=recipe,
        description=f"SST-2 fine-tuned from {found.name}",
    )


def _further_mlm(name: str, found: Checkpoint, recipe: Recipe, *, length: int = ROW) -> TransformersTask:
    return TransformersTask(
        name=name,
        model=partial(found.load, MASKED_WORDS),
        load=partial(_text_splits, length=_longest(found, length), tokenizer=lambda root: found.tokenizer),
        data_sets=_TEXT,
        extra=TRANSFORMERS,
        kind=MASKED_WORDS,
        checkpoint=found,
        tokenizer=lambda root: found.tokenizer,
        loss=told,
        metrics=counted,
        conclude=concluded,
        allocation="global",
        unpruned=heads(found, MASKED_WORDS),
        rounds=ROUNDS,
        recipe=recipe,
        description=f"Masked language modelling on WikiText-2 from {found.name}",
    )


@dataclass(frozen=True)
class Family:
    """The tasks of one name that differ in the checkpoint they begin with."""

    make: Callable[[str, Checkpoint, Recipe], TransformersTask]
    recipe: Recipe
    data_sets: tuple[str, ...]
    description: str
    rounds: int = ROUNDS
    extra: Extra = TRANSFORMERS

    def task(self, name: str, found: Checkpoint) -> TransformersTask:
        """The one of a checkpoint."""
        return self.make(name, found, self.recipe)


FROM_A_CHECKPOINT = {
    "sst2-bert": Family(_sst2, _FINE_TUNING, _SENTENCES, "SST-2 fine-tuned from a checkpoint"),
    "sst2-bert-small": Family(
        _sst2, _SMALL_FINE_TUNING, _SENTENCES, "SST-2 fine-tuned from a checkpoint of a few million weights"
    ),
    "wikitext2-mlm": Family(
        _further_mlm, _FURTHER_PRE_TRAINING, _TEXT, "Masked language modelling on WikiText-2 from a checkpoint"
    ),
    "wikitext2-mlm-small": Family(
        partial(_further_mlm, length=_SMALL_ROW),
        _SMALL_FURTHER_PRE_TRAINING,
        _TEXT,
        "As wikitext2-mlm:CHECKPOINT in rows of 32 tokens, from a checkpoint of a few million weights",
    ),
}
"""By the name before the colon."""
_KNOWN: dict[str, TransformersTask] = {}


def from_checkpoint(name: str) -> TransformersTask | None:
    """The task of a name like ``sst2-bert:CHECKPOINT``; None for names of another kind.

    The task's own name has the absolute path of a folder. As long as the checkpoint stays as it is, the same name gives
    the same task.

    Raises ``InputError`` or ``DataError`` as ``checkpoint`` does, and for a name that lacks the checkpoint.
    """
    family, _, address = name.partition(COLON)
    if family not in FROM_A_CHECKPOINT:
        return None
    if not address:
        raise InputError(
            f"{family!r} begins with a pre-trained net, which its name must give: {family}:FOLDER, a folder in "
            f"Transformers' format, or {family}:NAME, a checkpoint of the Hugging Face hub such as bert-base-uncased; "
            "one is made here by tombola train wikitext2-mlm-small --out FOLDER, in FOLDER/transformers"
        )
    known = _KNOWN.get(name)
    if known is None or known.checkpoint is None or not known.checkpoint.unchanged:
        found = checkpoint(address)
        full = f"{family}{COLON}{found.name}"
        known = _KNOWN.get(full)
        if known is None or known.checkpoint != found:
            known = FROM_A_CHECKPOINT[family].task(full, found)
        _KNOWN[full] = known
        if not Path(address).expanduser().is_dir():
            _KNOWN[name] = known
    return known


def _longest(found: Checkpoint, most: int) -> int:
    """Tokens in a row: as many as the net and its tokenizer take, at most ``most``."""
    limits = (getattr(found.config, "max_position_embeddings", most), found.tokenizer.model_max_length)
    return min(most, *(int(limit) for limit in limits))
