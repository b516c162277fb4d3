"""Random nets' shapes and scores, and masks in a form to compare by hand: shared by the tests of pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from tombola.mask import Mask

Shape = tuple[int, ...]

SIDES = st.lists(st.integers(0, 6), max_size=3).map(tuple)
SHAPES = st.lists(SIDES, min_size=1, max_size=5).map(lambda s: {f"l{i}": shape for i, shape in enumerate(s)})
DENSITIES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))
SEEDS = st.integers(0, 2**31)


def total(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def drawn(shapes: Mapping[str, Shape], seed: int, values: int = 10**9) -> dict[str, Tensor]:
    """Random scores; few ``values`` make many ties."""
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randint(values, shape, generator=g).double() for n, shape in shapes.items()}


def counts(mask: Mask) -> list[int]:
    return [layer.kept for layer in mask.layers()]


def kept(mask: Mask) -> dict[str, list[int]]:
    return {n: t.flatten().int().tolist() for n, t in mask.items()}
