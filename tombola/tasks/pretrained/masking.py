"""Masked language modelling (Devlin et al. 2019, section 3.1, task 1): tokens are hidden and to be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.errors import DataError
from tombola.sealed import content_hash
from tombola.seeds import stream

HIDDEN, MASKED, ANOTHER = 0.15, 0.8, 0.1
"""Share of the tokens that are to be told; of these, shares shown as [MASK] and as another token. The rest is shown as
it is."""
NOT_ASKED = -100
_CODES = 2**40
AT_ONCE = 50
"""Rows that are evaluated at once: each has a score for every token of the vocabulary at every place asked for."""


@dataclass(frozen=True, eq=False)
class MaskedText:
    """Running text in rows of equal length (rows, length), int64: a token that begins it, text, one that ends it.

    An index names a row and a draw of what is hidden: of n rows, ``row + n * code``; code 0 is the draw that the row
    is judged by. A token of the text is hidden with probability ``HIDDEN``, on its own; what is shown in its place is
    drawn as ``MASKED`` and ``ANOTHER`` say, another token equally likely from all but the ``special`` ones, which are
    never hidden. A batch maps ``input_ids`` and ``labels``, ``NOT_ASKED`` where nothing is hidden.
    """

    rows: Tensor
    mask: int
    """The token that hides another."""
    ordinary: Tensor
    """The tokens that may stand in another's place."""

    def __len__(self) -> int:
        return len(self.rows)

    def vary(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The index of an epoch: the same order, with a fresh draw for each row."""
        return order + len(self) * torch.randint(1, _CODES, (len(order),), generator=generator)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """The batch of these rows, each hidden as the index says."""
        ids = self.rows[(index % len(self)).to(self.rows.device)]
        drawn = torch.stack([torch.rand(3, ids.shape[1], generator=stream(0, "masked", i)) for i in index.tolist()])
        asked, how, which = drawn.to(ids.device).unbind(1)
        hidden = asked < HIDDEN
        hidden[:, [0, -1]] = False
        another = self.ordinary[(which * len(self.ordinary)).long().clamp(max=len(self.ordinary) - 1)]
        shown = torch.where(how < MASKED, self.mask, torch.where(how < MASKED + ANOTHER, another, ids))
        return {
            "input_ids": torch.where(hidden, shown, ids),
            "labels": ids.masked_fill(~hidden, NOT_ASKED),
        }

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in order, hidden as they are judged, at most ``AT_ONCE`` in a batch."""
        for index in torch.split(torch.arange(len(self)), min(size, AT_ONCE)):
            yield self.take(index)

    def to(self, device: str) -> MaskedText:
        """The same text on a device. What is hidden is drawn on the CPU, so it is the same everywhere."""
        return replace(self, rows=self.rows.to(device), ordinary=self.ordinary.to(device))

    @property
    def digest(self) -> str:
        """A checksum of the tokens, and of how they are hidden."""
        rule = {"hidden": HIDDEN, "masked": MASKED, "another": ANOTHER, "mask": self.mask}
        return content_hash("masked text", rule, {"rows": self.rows.cpu(), "ordinary": self.ordinary.cpu()})


def in_rows(tokens: Sequence[int], length: int, begin: int, end: int, text: str) -> Tensor:
    """Running text cut into rows of ``length``, each between a token that begins and one that ends it.

    What is left over, less than a row, is left out. ``DataError`` for less than one row; ``text`` names it there.
    """
    inside = length - 2
    count = len(tokens) // inside
    if not count:
        raise DataError(f"{text} must have at least {inside} tokens for one row, but has {len(tokens)}")
    body = torch.tensor(tokens[: count * inside]).reshape(count, inside)
    edges = torch.ones(count, 1, dtype=torch.int64)
    return torch.cat([edges * begin, body, edges * end], dim=1)


def told(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the hidden tokens of a batch; 0 where none is hidden."""
    out, right = _scores(model, batch)
    return F.cross_entropy(out, right, reduction="sum") / max(len(right), 1)


def counted(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Summed loss, tokens told right and hidden tokens, each per row: ``concluded`` makes them ratios."""
    out, right = _scores(model, batch)
    rows = len(batch["labels"])
    loss = F.cross_entropy(out, right, reduction="sum")
    hits = (out.argmax(dim=1) == right).sum()
    return {"loss": loss / rows, "hits": hits / rows, "hidden": torch.tensor(len(right) / rows)}


def concluded(means: Mapping[str, float]) -> dict[str, float]:
    """Loss and accuracy over all hidden tokens of a set."""
    hidden = means["hidden"] or 1.0
    return {"loss": means["loss"] / hidden, "accuracy": means["hits"] / hidden}


def _scores(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores of the vocabulary where a token is hidden, (hidden, vocabulary), and the hidden tokens.

    The head is computed for these places alone: over all of them it would cost more than the rest of a small net.
    """
    asked = batch["labels"] != NOT_ASKED
    body = model.base_model
    heads = [child for child in model.children() if child is not body]
    assert isinstance(body, nn.Module)
    if len(heads) == 1:
        out: Tensor = heads[0](body(input_ids=batch["input_ids"]).last_hidden_state[asked])
    else:  # a head in several parts, which only the net itself puts together
        out = model(input_ids=batch["input_ids"]).logits[asked]
    return out, batch["labels"][asked]
