"""Byte-pair encoding, by Hugging Face's tokenizers: the extra ``language``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tombola.errors import InputError
from tombola.extras import LANGUAGE

FIRST = 3
"""The number of the first subword: those below are the ``PAD``, ``BEGIN`` and ``END`` of ``models/transformer.py``."""
_BYTES = 256


@dataclass(frozen=True, eq=False)
class Subwords:
    """Subwords of a text's bytes (Sennrich et al. 2016), so that every line can be written in them and read back."""

    tokenizer: Any

    @classmethod
    def trained(cls, lines: Sequence[str], size: int) -> Subwords:
        """``size`` tokens, ``PAD``, ``BEGIN`` and ``END`` among them, merged by their frequency in the lines.

        The same lines give the same subwords, in seconds for tens of thousands. Raises ``InputError`` for a size that
        has no room for single bytes, and where the extra isn't installed.
        """
        LANGUAGE.require("translation")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if size < FIRST + _BYTES:
            raise InputError(f"there must be {FIRST + _BYTES} subwords or more, one for each byte, but got {size}")
        tokenizer = Tokenizer(models.BPE())
        # Words begin with their space, the first of a line too: then a word has one form wherever it stands.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size - FIRST, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer)

    def numbers(self, lines: Sequence[str]) -> list[list[int]]:
        """The tokens of each line, ``FIRST`` or above."""
        return [[FIRST + number for number in found.ids] for found in self.tokenizer.encode_batch(list(lines))]

    def texts(self, numbers: Sequence[Sequence[int]]) -> list[str]:
        """The lines of such tokens, without those below ``FIRST`` and without space at their ends."""
        known = [[number - FIRST for number in line if number >= FIRST] for line in numbers]
        return [str(text).strip() for text in self.tokenizer.decode_batch(known)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the vocabulary and its merges."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
