"""Words as tokens: a vocabulary of one's own, learned from a text, and running text through any tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from tombola.tasks.data.wikitext import END
from tombola.tasks.pretrained.checkpoint import transformers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN = "<unk>"
"""What the text has in the place of a rare word."""
_AT_ONCE = 10_000


@lru_cache(maxsize=4)
def learned(words: tuple[str, ...], size: int, longest: int) -> Any:
    """A tokenizer of Transformers with ``size`` tokens learned from words: byte-level BPE, lower case, no accents.

    The same words give the same tokens on every machine. (A WordPiece vocabulary, as BERT's own, would be drawn by
    chance: the trainer numbers the pieces inside of words in no fixed order.) ``longest`` is the longest row of tokens
    that the net takes.
    """
    library = transformers()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(_lines(words), trainer)
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    roles = dict(zip(names, SPECIAL, strict=True))
    return library.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=longest, **roles)


def encoded(words: Sequence[str], tokenizer: Any) -> list[int]:
    """The tokens of running text, without any that begin or end it.

    Each word is split as it is after a space, so it is enough to split every word once. Ends of lines are left out,
    and rare words are the tokenizer's unknown token.
    """
    kinds = sorted(set(words) - {END, UNKNOWN})
    split = tokenizer([f" {word}" for word in kinds], add_special_tokens=False)["input_ids"] if kinds else []
    known = dict(zip(kinds, split, strict=True)) | {END: [], UNKNOWN: [int(tokenizer.unk_token_id)]}
    return [token for word in words for token in known[word]]


def _lines(words: Sequence[str]) -> Iterator[str]:
    kept = [word for word in words if word not in (END, UNKNOWN)]
    for first in range(0, len(kept), _AT_ONCE):
        yield " ".join(kept[first : first + _AT_ONCE])
