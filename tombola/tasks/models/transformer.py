"""The encoder-decoder Transformer (Vaswani et al. 2017), its layers normalised at their beginning, for translation.

Attention is made of four linear layers each, so that whatever scores, prunes or counts linear layers sees them. Padding
is token 0, and no position looks at it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.errors import InputError

PAD, BEGIN, END = 0, 1, 2
"""Tokens that are no part of words: padding, and where a sentence begins and ends."""


Memory = tuple[Tensor, Tensor]
"""Keys and values, each (batch, heads, length, width of a head)."""


class Attention(nn.Module):
    """Scaled dot-product attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def remembered(self, x: Tensor) -> Memory:
        """The keys and values of ``x`` (batch, length, width)."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, memory: Memory, allowed: Tensor) -> Tensor:
        """What each position of ``x`` makes of the values; ``allowed`` (broadcast to batch, heads, positions, keys) is
        where it may look."""
        # Written out: torch's fused attention has no second derivatives, which some criteria take.
        keys, values = memory
        scores = self._split(self.query(x)) @ keys.transpose(2, 3) / math.sqrt(keys.shape[3])
        shares = scores.masked_fill(~allowed, -math.inf).softmax(dim=3)
        joined: Tensor = self.output((shares @ values).transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a rectifier between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        out: Tensor = self.outer(F.relu(self.inner(x)))
        return out


class EncoderLayer(nn.Module):
    """Attention of a sentence to itself, then the two linear layers."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.feedforward = Attention(width, heads), FeedForward(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """The next layer's input."""
        normal = self.norm1(x)
        x = x + self.dropout(self.attention(normal, self.attention.remembered(normal), allowed))
        out: Tensor = x + self.dropout(self.feedforward(self.norm2(x)))
        return out


class DecoderLayer(nn.Module):
    """Attention of a translation to what there is of it, attention to the source, then the two linear layers."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention, self.cross = Attention(width, heads), Attention(width, heads)
        self.feedforward = FeedForward(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, before: Memory | None, allowed: Tensor, source: Memory, source_allowed: Tensor
    ) -> tuple[Tensor, Memory]:
        """The next layer's input, and what to remember: the keys and values of ``before`` and of these positions."""
        normal = self.norm1(x)
        keys, values = self.attention.remembered(normal)
        if before is not None:
            keys, values = torch.cat((before[0], keys), dim=2), torch.cat((before[1], values), dim=2)
        x = x + self.dropout(self.attention(normal, (keys, values), allowed))
        x = x + self.dropout(self.cross(self.norm2(x), source, source_allowed))
        return x + self.dropout(self.feedforward(self.norm3(x))), (keys, values)


@dataclass
class Decoding:
    """Translations under way: what the decoder remembers of the source and of the tokens so far, layer by layer."""

    source: list[Memory]
    allowed: Tensor
    """Where the source is no padding, (batch, 1, 1, length)."""
    own: list[Memory | None]
    length: int = 0

    def select(self, rows: Tensor) -> None:
        """Go on with these translations only, in this order; one may be there several times."""

        def chosen(memory: Memory) -> Memory:
            return memory[0].index_select(0, rows), memory[1].index_select(0, rows)

        self.source = [chosen(memory) for memory in self.source]
        self.own = [None if memory is None else chosen(memory) for memory in self.own]
        self.allowed = self.allowed.index_select(0, rows)


class Transformer(nn.Module):
    """Encoder and decoder over one vocabulary, with sinusoidal positions.

    The matrix ``words`` embeds the tokens of both languages and scores those of the translation (Press & Wolf 2017;
    Vaswani et al. 2017, section 3.4): one parameter, prunable as the linear layer that it is. It is drawn from
    N(0, 1 / width), the other matrices Glorot uniformly, biases are 0.

    Parameters
    ----------
    words
        How many tokens there are; those of the module's ``PAD``, ``BEGIN`` and ``END`` are among them.
    width, heads, hidden
        Of the layers: values at a position (even, a multiple of ``heads``), heads of attention, units between the two
        linear layers.
    layers, dropout
        As many in the encoder as in the decoder; the share dropped of what layers add and of the embeddings.

    Raises ``InputError`` for a width that isn't even or no multiple of ``heads``.
    """

    def __init__(
        self, words: int, width: int = 256, *, heads: int = 4, hidden: int = 1024, layers: int = 3, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if width % 2 or width % heads:
            raise InputError(f"the width must be even and a multiple of the heads, {heads}, but got {width}")
        self.width = width
        self.words = nn.Linear(width, words, bias=False)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, hidden, dropout) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.words:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, pairs: Tensor) -> Tensor:
        """Scores of each token of a translation but the first, given the source and the tokens before.

        ``pairs`` (batch, 2, length) are a source and its translation each, between ``BEGIN`` and ``END``, padded;
        the scores have shape (batch, length - 1, words).
        """
        under_way = self.begin(pairs[:, 0])
        return self.go_on(under_way, pairs[:, 1, :-1])

    def begin(self, source: Tensor) -> Decoding:
        """Read sources (batch, length), for translations of which there is nothing yet."""
        allowed = (source != PAD)[:, None, None, :]
        x = self._embedded(source, 0)
        for layer in self.encoder:
            x = layer(x, allowed)
        x = self.encoder_norm(x)
        return Decoding([layer.cross.remembered(x) for layer in self._layers], allowed, [None] * len(self._layers))

    def go_on(self, under_way: Decoding, tokens: Tensor) -> Tensor:
        """Take note of the next tokens (batch, new) of each translation: scores of what follows each, (batch, new,
        words). One call with all tokens gives what as many calls with one each give."""
        x = self._embedded(tokens, under_way.length)
        under_way.length += tokens.shape[1]
        # A position sees those before it and itself. Padding is at the end, so that nothing but padding sees it.
        allowed = _seen(tokens.shape[1], under_way.length, x.device)
        for number, layer in enumerate(self._layers):
            x, under_way.own[number] = layer(
                x, under_way.own[number], allowed, under_way.source[number], under_way.allowed
            )
        scores: Tensor = self.words(self.decoder_norm(x))
        return scores

    @property
    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        x = F.embedding(tokens, self.words.weight) * math.sqrt(self.width)
        embedded: Tensor = self.dropout(x + positions(first, tokens.shape[1], self.width, x.device))
        return embedded


def positions(first: int, count: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines that tell positions ``first`` and on apart, (count, width): Vaswani et al. (2017), 3.5."""
    place = torch.arange(first, first + count, device=device, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / width))
    return torch.stack((torch.sin(place * rate), torch.cos(place * rate)), dim=2).flatten(1)


def _seen(new: int, length: int, device: torch.device) -> Tensor:
    """For each of the last ``new`` of ``length`` positions, those that it may look at."""
    return torch.ones(new, length, dtype=torch.bool, device=device).tril(length - new)
