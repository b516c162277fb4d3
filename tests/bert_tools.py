"""A made-up BERT of two layers, 16 wide, and made-up reviews and texts that it reads."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

import tombola as tb
from tombola.seeds import stream
from tombola.tasks.pretrained import TransformersTask
from tombola.tasks.pretrained.checkpoint import save
from tombola.tasks.pretrained.tokens import learned

GOOD, BAD = ("good", "fine", "moving"), ("bad", "dull", "weak")
OTHER = ("the", "film", "plot", "is", "a", "story", "and", "of", "its", "actors")


def sentence(number: int) -> tuple[str, int]:
    """A review and its class."""
    g = stream(number, "review")
    label = int(torch.randint(2, (), generator=g))
    words = [OTHER[i] for i in torch.randint(len(OTHER), (3 + number % 9,), generator=g).tolist()]
    words.insert(len(words) // 2, (BAD, GOOD)[label][number % 3])
    return " ".join(words), label


@cache
def tokenizer() -> Any:
    words = " ".join(sentence(number)[0] for number in range(200)).split()
    return learned(tuple(words), 290, 32)


def config(**changes: Any) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=len(tokenizer()), max_position_embeddings=32, **(sizes | changes))


def made(folder: Path, kind: Any = BertForMaskedLM, seed: int = 0, **changes: Any) -> nn.Module:
    """A net with random weights, written as a checkpoint."""
    torch.manual_seed(seed)
    net: nn.Module = kind(config(**changes))
    save(net, tokenizer(), folder)
    return net


def distilled() -> nn.Module:
    """A net of another architecture, for masked words, with a head in several parts."""
    sizes: dict[str, Any] = {"dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 32}
    return DistilBertForMaskedLM(DistilBertConfig(vocab_size=len(tokenizer()), **sizes))


def data(root: Path) -> Path:
    """A data root with 96, 24 and 24 reviews, and short texts."""
    begin = 0
    (root / "sst2").mkdir(parents=True)
    (root / "wikitext-2").mkdir()
    for part, count in (("train", 96), ("dev", 24), ("test", 24)):
        reviews = [sentence(number) for number in range(begin, begin + count)]
        (root / "sst2" / f"{part}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in reviews))
        lines = "\n".join(f" {text} <unk> . " for text, _ in reviews)
        (root / "wikitext-2" / f"{part.replace('dev', 'valid')}.txt").write_text(lines + "\n")
        begin += count
    return root


def task(name: str, **recipe: Any) -> TransformersTask:
    """A task from a checkpoint, with a recipe of 60 steps."""
    found = tb.get_task(name)
    assert isinstance(found, TransformersTask)
    short = {"steps": "60it", "batch": 8, "lr": 3e-3, "evaluate_every": "10it", "optimizer": "adamw"}
    return replace(found, recipe=tb.Recipe(**(short | recipe)))
