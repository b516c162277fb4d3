"""A language model of LSTM layers that reads a text in segments and carries its state from one to the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SPREAD = 0.1


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM layers with dropout between them, and an output layer: of each word, scores of the next one.

    In training mode the state after a segment is carried over, without its gradient, to the next segment of the same
    stream of text: it lives in the buffer ``carried`` of shape (2, layers, streams + 1, units), h and c, and so in
    state_dicts, checkpoints and tickets. The last row is for segments that belong to no stream. In evaluation mode
    every text is read from a state of zeros, and the buffer is left alone.

    Embeddings and output weights are drawn uniformly from -0.1 to 0.1, the LSTM's as PyTorch draws them; the output's
    biases are 0. The weights of embedding and output are not tied.

    Parameters
    ----------
    words
        How many words there are.
    width
        Of the embedding.
    units
        Of each LSTM layer.
    layers, dropout
        Number of LSTM layers, and the share of values dropped between two of them.
    streams
        How many streams of text are read side by side in training.
    """

    carried: Tensor

    def __init__(
        self, words: int, width: int, units: int, *, layers: int = 2, dropout: float = 0.5, streams: int = 30
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, units, layers, dropout=dropout, batch_first=True)
        self.output = nn.Linear(units, words)
        self.register_buffer("carried", torch.zeros(2, layers, streams + 1, units))
        nn.init.uniform_(self.embedding.weight, -_SPREAD, _SPREAD)
        nn.init.uniform_(self.output.weight, -_SPREAD, _SPREAD)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, streams: Tensor | None = None, begins: Tensor | None = None) -> Tensor:
        """Scores of the word after each of ``tokens`` (batch, length): (batch, length, words).

        ``streams`` (batch,) are the rows of the carried state, no one twice but the last; where ``begins`` (batch,) is
        True the state is 0 instead. Without them, or in evaluation mode, it is 0 everywhere.
        """
        scores: Tensor = self.output(self.read(tokens, streams, begins))
        return scores

    def read(self, tokens: Tensor, streams: Tensor | None = None, begins: Tensor | None = None) -> Tensor:
        """What the last LSTM layer gives, (batch, length, units); arguments as of ``forward``."""
        inputs = self.embedding(tokens)
        if not self.training or streams is None or begins is None:
            given: Tensor = self.lstm(inputs)[0]
            return given
        before = self.carried.index_select(2, streams).masked_fill_(begins[None, None, :, None], 0.0)
        given, (h, c) = self.lstm(inputs, (before[0], before[1]))
        with torch.no_grad():
            self.carried.index_copy_(2, streams, torch.stack((h, c)).to(self.carried.dtype))
        return given
