"""What a ticket takes at each stage of Deep Compression (Han, Mao & Dally 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tombola.shipping.positions import stored_entries

STAGES = ("dense", "pruned", "shared", "huffman")


@dataclass(frozen=True)
class LayerSizes:
    """What one layer takes, in bytes, at each stage."""

    name: str
    entries: int
    """All its entries, kept or not."""
    kept: int
    """Those that the mask keeps; of what no mask covers, all."""
    distinct: int | None
    """Distinct values among the kept ones, by their bits; None for what no mask covers."""
    dense: int
    """Every entry in its own dtype, float32 as a rule."""
    pruned: int
    """The paper's sparse format: each kept value as it is, and the difference to the position of the one before in 8
    bits for convolutions and 5 bits for matrices, with fillers of value 0 where it is greater than these can say. A
    layer of which everything is kept needs no positions."""
    shared: int
    """The same with an index into the layer's values, of as few bits as can tell them apart, in place of each value,
    and these values themselves."""
    huffman: int
    """What the file holds for it: values, code lengths, Huffman-coded indices, and its mask in the shortest code."""


@dataclass(frozen=True)
class Sizes:
    """What a ticket takes, in bytes: by layer, of what no mask covers, in total, and the file.

    What no mask covers (biases, normalisation with its running statistics) is in every stage, so that no ratio leaves
    out what the net needs.
    """

    layers: tuple[LayerSizes, ...]
    """The covered layers, in the order of the values."""
    others: LayerSizes
    """All that no mask covers."""
    file: int
    """The whole file, with names, shapes, origin and hash."""

    @property
    def total(self) -> LayerSizes:
        """Everything but what the file adds to it."""
        parts = (*self.layers, self.others)
        sums = {key: sum(getattr(part, key) for part in parts) for key in ("entries", "kept", *STAGES)}
        return LayerSizes("total", distinct=None, **sums)

    @property
    def ratio(self) -> float:
        """Dense bytes / bytes of the file."""
        return self.total.dense / self.file

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a covered layer, one for all the others and one for the total, with the same keys."""
        return [vars(part).copy() for part in (*self.layers, self.others, self.total)]


def layer_sizes(name: str, mask: Tensor, distinct: int, itemsize: int, huffman: int) -> LayerSizes:
    """The sizes of a covered layer with so many distinct values of ``itemsize`` bytes among the kept ones."""
    entries, kept = mask.numel(), int(mask.sum())
    position_bits = 0 if kept == entries else 8 if mask.dim() > 2 else 5
    stored = stored_entries(mask, position_bits) if position_bits else kept
    index_bits = max(distinct - 1, 0).bit_length()
    return LayerSizes(
        name=name,
        entries=entries,
        kept=kept,
        distinct=distinct,
        dense=entries * itemsize,
        pruned=_bytes(stored * (8 * itemsize + position_bits)),
        shared=_bytes(stored * (index_bits + position_bits)) + distinct * itemsize,
        huffman=huffman,
    )


def other_sizes(values: Sequence[Tensor], stored: int) -> LayerSizes:
    """The sizes of all that no mask covers, of which the file holds so many bytes: one value may stand for many."""
    entries = sum(value.numel() for value in values)
    dense = sum(value.numel() * value.dtype.itemsize for value in values)
    return LayerSizes("not covered by the mask", entries, entries, None, dense, dense, dense, stored)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
