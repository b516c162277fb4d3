"""From scores and a density to a mask: exact counts, allocations, ties, structures, and what is refused."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import DENSITIES, SEEDS, SHAPES, Shape, drawn, kept, total

from tombola.errors import InputError
from tombola.mask import Mask
from tombola.pruning import ALLOCATIONS, prune, top

LENET = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}

NAMED = st.sampled_from(sorted(ALLOCATIONS))


def flat_kept(mask: Mask) -> list[int]:
    return [v for own in kept(mask).values() for v in own]


def reference(scores: list[float], count: int, allowed: list[bool]) -> list[int]:
    """The stated rule, spelled out: highest first, of equal ones the earlier."""
    order = sorted((i for i in range(len(scores)) if allowed[i]), key=lambda i: (-scores[i], i))[:count]
    return [int(i in order) for i in range(len(scores))]


# Exact counts.


@settings(deadline=None)
@given(SHAPES, DENSITIES, NAMED, SEEDS, st.sampled_from([2, 10**9]))
def test_every_allocation_keeps_exactly_the_rounded_count(
    shapes: dict[str, Shape], density: float, allocation: str, seed: int, values: int
) -> None:
    mask = prune(drawn(shapes, seed, values), density, allocation)
    assert mask.kept == round(density * total(shapes))
    assert {n: tuple(t.shape) for n, t in mask.items()} == shapes
    assert list(mask) == list(shapes)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=4), DENSITIES, NAMED, SEEDS)
def test_every_allocation_keeps_exactly_the_rounded_count_of_channels(
    sides: list[tuple[int, int]], density: float, allocation: str, seed: int
) -> None:
    shapes: dict[str, Shape] = {f"l{i}": side for i, side in enumerate(sides)}
    mask = prune(drawn(shapes, seed), density, allocation, structure="channel")
    channels = mask.channels()
    assert sum(int(rows.sum()) for rows in channels.values()) == round(density * sum(rows for rows, _ in sides))
    assert mask == Mask.of_channels(shapes, channels)  # whole channels or none of them


@settings(deadline=None)
@given(SHAPES, DENSITIES, SEEDS, SEEDS, st.sampled_from([1, 2, 10**9]))
def test_global_keeps_the_highest_and_of_equal_ones_the_earlier(
    shapes: dict[str, Shape], density: float, seed: int, free: int, values: int
) -> None:
    scores = drawn(shapes, seed, values)
    within = Mask({n: t > 0 for n, t in drawn(shapes, free, 4).items()})
    flat = [v for t in scores.values() for v in t.flatten().tolist()]
    allowed = [v for t in within.values() for v in t.flatten().tolist()]
    count = round(density * len(flat))
    assert flat_kept(prune(scores, density)) == reference(flat, count, [True] * len(flat))
    if count <= within.kept:
        assert flat_kept(prune(scores, density, within=within)) == reference(flat, count, allowed)
    else:
        text = f"the net can keep at most {within.kept} entries here, but {count} are asked for: prune less"
        with pytest.raises(InputError, match=text):
            prune(scores, density, within=within)


@settings(deadline=None)
@given(SHAPES, DENSITIES, NAMED.filter(lambda a: a != "global"), SEEDS)
def test_layers_keep_their_own_highest(shapes: dict[str, Shape], density: float, allocation: str, seed: int) -> None:
    scores = drawn(shapes, seed, 3)
    mask = prune(scores, density, allocation)
    for layer in mask.layers():
        flat = scores[layer.name].flatten().tolist()
        assert kept(mask)[layer.name] == reference(flat, layer.kept, [True] * len(flat))


@pytest.mark.parametrize(
    ("size", "count"), [(1, 0), (3, 2), (5, 2), (7, 4), (100_001, 50_000), (100_003, 50_002), (2_000_001, 1_000_000)]
)
def test_a_half_is_rounded_to_the_even_number(size: int, count: int) -> None:
    for allocation in ("global", "uniform"):
        assert prune({"a": torch.arange(size)}, 0.5, allocation).kept == count


def test_densities_of_all_and_nothing() -> None:
    scores = drawn(LENET, 0)
    for allocation in ALLOCATIONS:
        assert prune(scores, 1.0, allocation).density == 1.0
        assert prune(scores, 0.0, allocation).kept == 0


# Ties, infinities, types.


def test_of_equal_scores_earlier_parameters_and_rows_win() -> None:
    scores = {"b": torch.tensor([[1.0, 2.0], [1.0, 1.0]]), "a": torch.tensor([1.0, 2.0])}
    assert kept(prune(scores, 3 / 6)) == {"b": [1, 1, 0, 0], "a": [0, 1]}
    assert kept(prune(scores, 5 / 6)) == {"b": [1, 1, 1, 1], "a": [0, 1]}
    assert kept(prune(scores, 0.5, "uniform")) == {"b": [1, 1, 0, 0], "a": [0, 1]}


def test_all_equal_scores_keep_the_first() -> None:
    mask = prune({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, 4 / 8)
    assert kept(mask) == {"a": [1, 1, 1, 1, 0, 0], "b": [0, 0]}


def test_row_major_order_holds_for_any_memory_layout() -> None:
    transposed = torch.zeros(3, 2).T
    images = torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)
    assert kept(prune({"a": transposed}, 0.5)) == {"a": [1, 1, 1, 0, 0, 0]}
    assert kept(prune({"a": images}, 0.375)) == {"a": [1, 1, 1, 0, 0, 0, 0, 0]}


def test_negative_zero_ties_with_zero() -> None:
    assert kept(prune({"a": torch.tensor([-0.0, 0.0, -0.0])}, 2 / 3)) == {"a": [1, 1, 0]}


def test_infinities_are_the_highest_and_the_lowest() -> None:
    scores = {"a": torch.tensor([-math.inf, 3.0, math.inf, -math.inf]), "b": torch.tensor([math.inf, -1e30])}
    assert kept(prune(scores, 2 / 6)) == {"a": [0, 0, 1, 0], "b": [1, 0]}
    assert kept(prune(scores, 5 / 6)) == {"a": [1, 1, 1, 0], "b": [1, 1]}


@settings(deadline=None)
@given(SEEDS, st.floats(0, 1), NAMED)
def test_distinct_scores_are_kept_wherever_they_stand(seed: int, density: float, allocation: str) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = {"a": torch.randperm(24, generator=g).reshape(4, 6), "b": 24 + torch.randperm(12, generator=g)}
    order = {n: torch.randperm(s.numel(), generator=g) for n, s in scores.items()}
    moved = {n: s.flatten()[order[n]].reshape(s.shape) for n, s in scores.items()}
    plain, shuffled = prune(scores, density, allocation), prune(moved, density, allocation)
    for n in scores:
        assert torch.equal(plain[n].flatten()[order[n]], shuffled[n].flatten())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int8, torch.uint8]
)
def test_scores_of_any_real_type_rank_as_their_values(dtype: torch.dtype) -> None:
    scores = torch.tensor([3, 100, 7, 1], dtype=dtype)
    assert kept(prune({"a": scores}, 0.5)) == {"a": [0, 1, 1, 0]}
    assert kept(prune({"a": scores.reshape(2, 2)}, 0.5, structure="channel")) == {"a": [1, 1, 0, 0]}


def test_bool_scores_and_mixed_types() -> None:
    assert kept(prune({"a": torch.tensor([False, True, True])}, 2 / 3)) == {"a": [0, 1, 1]}
    scores = {"a": torch.tensor([1, 3]), "b": torch.tensor([2.5, 2.0], dtype=torch.float16)}
    assert kept(prune(scores, 0.5)) == {"a": [0, 1], "b": [1, 0]}


def test_double_scores_are_not_rounded() -> None:
    assert kept(prune({"a": torch.tensor([1.0, 1.0 + 1e-15], dtype=torch.float64)}, 0.5)) == {"a": [0, 1]}


def test_scores_are_left_alone_and_need_no_detaching() -> None:
    scores = {"a": torch.tensor([1.0, 2.0], requires_grad=True)}
    assert kept(prune(scores, 0.5)) == {"a": [0, 1]}
    assert scores["a"].tolist() == [1.0, 2.0]


def test_the_same_scores_give_the_same_mask() -> None:
    scores = drawn(LENET, 3, values=50)
    for allocation in ALLOCATIONS:
        assert prune(scores, 0.1, allocation).digest == prune(scores, 0.1, allocation).digest


# Channels.


def test_channels_are_ranked_by_their_mean() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [4.0, 4.0], [0.0, 0.0]]), "b": torch.tensor([[3.5], [9.0]])}
    assert kept(prune(scores, 0.6, structure="channel")) == {"a": [0, 0, 1, 1, 0, 0], "b": [1, 1]}
    assert kept(prune(scores, 0.6, "uniform", structure="channel")) == {"a": [1, 1, 1, 1, 0, 0], "b": [0, 1]}
    own = prune(scores, allocation={"a": 1 / 3, "b": 1.0}, structure="channel")
    assert kept(own) == {"a": [0, 0, 1, 1, 0, 0], "b": [1, 1]}


def test_channels_within_a_mask() -> None:
    scores = {"a": torch.tensor([[1.0, 5.0], [4.0, 4.0], [0.0, 0.0]])}
    within = Mask({"a": torch.tensor([[True, False], [False, False], [True, True]])})
    assert kept(prune(scores, 2 / 3, within=within, structure="channel")) == {"a": [1, 0, 0, 0, 1, 1]}
    with pytest.raises(InputError, match="the net can keep at most 2 entries here, but 3 are asked for"):
        prune(scores, 1.0, within=within, structure="channel")


def test_channel_means_do_not_overflow_half_precision() -> None:
    scores = torch.tensor([[60_000.0, 60_000.0], [60_000.0, 60_032.0]], dtype=torch.float16)
    assert kept(prune({"a": scores}, 0.5, structure="channel")) == {"a": [0, 0, 1, 1]}


def test_channels_without_entries_score_0() -> None:
    scores = {"a": torch.zeros(2, 0), "b": torch.tensor([[1.0], [-1.0]]), "c": torch.zeros(0, 3)}
    mask = prune(scores, 0.5, structure="channel")
    assert (kept(mask)["b"], mask["a"].shape, mask["c"].shape) == ([1, 0], (2, 0), (0, 3))


def test_channels_of_opposite_infinities_are_refused() -> None:
    with pytest.raises(InputError, match="scores must not be NaN, but those of 'a' have some"):
        prune({"a": torch.tensor([[math.inf, -math.inf], [1.0, 1.0]])}, 0.5, structure="channel")


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": 1.5}, "a density must be between 0 and 1, but got 1.5"),
        ({"density": -0.1}, "a density must be between 0 and 1, but got -0.1"),
        ({"density": math.nan}, "a density must be between 0 and 1, but got nan"),
        ({}, "give the density to prune to, e.g. density=0.05"),
        ({"density": 0.5, "allocation": "globl"}, "unknown allocation 'globl'. Did you mean 'global'?"),
        ({"density": 0.5, "allocation": ["erk"]}, "unknown allocation ['erk']."),
        ({"density": 0.5, "structure": "row"}, "structure must be 'entry' or 'channel', but got 'row'"),
        (
            {"density": 0.5, "within": Mask({"a": torch.ones(2, dtype=torch.bool)})},
            "scores and the mask to stay within don't cover the same parameters: 'b' differs",
        ),
        (
            {"density": 0.5, "within": Mask({"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(1, 2).bool()})},
            "scores and the mask to stay within don't cover the same parameters: 'b' differs",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        prune({"a": torch.ones(2), "b": torch.ones(2)}, **arguments)  # type: ignore[arg-type]


def test_bad_scores_are_refused() -> None:
    with pytest.raises(InputError, match="there are no scores to prune by: the model has no prunable parameter"):
        prune({}, 0.5)
    for structure in ("entry", "channel"):
        with pytest.raises(
            InputError, match="scores must not be NaN, but those of 'b' have some: did the training div"
        ):
            prune({"a": torch.ones(2, 2), "b": torch.tensor([[1.0, math.nan]])}, 0.5, structure=structure)
        with pytest.raises(InputError, match=r"scores must be real numbers, .* but those of 'a' are torch.complex64"):
            prune({"a": torch.ones(2, 2, dtype=torch.complex64)}, 0.5, structure=structure)
    with pytest.raises(InputError, match="needs parameters with an output dimension, but 'gain' has none"):
        prune({"gain": torch.tensor(1.0)}, 0.5, structure="channel")


# The highest of a pool.


def test_top_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert [top(scores, n).int().tolist() for n in range(5)] == [
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    allowed = torch.tensor([True, False, True, True])
    assert top(scores, 2, allowed).int().tolist() == [0, 0, 1, 1]
    assert top(torch.empty(0), 0).tolist() == []
    with pytest.raises(InputError, match="the scores can keep at most 3 entries here, but 4 are asked for: prune less"):
        top(scores, 4, allowed)
