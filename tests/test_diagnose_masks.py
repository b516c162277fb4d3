"""Distances and overlaps of masks, and what is expected of random ones, against an enumeration of all of them."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from scored import SEEDS, SHAPES, drawn

from tombola.diagnostics.overlap import alike, overlap_rows
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.report.mask_figures import WRITTEN_MASKS, overlap_figure


def random_mask(shapes: dict[str, tuple[int, ...]], seed: int) -> Mask:
    return Mask({name: value.bool() for name, value in drawn(shapes, seed, values=2).items()})


def all_masks(kept: dict[str, int], sizes: dict[str, int]) -> list[Mask]:
    """Every mask that keeps so many of each layer."""
    choices = [list(itertools.combinations(range(sizes[name]), kept[name])) for name in sizes]
    masks = []
    for chosen in itertools.product(*choices):
        tensors = {name: torch.zeros(size, dtype=torch.bool) for name, size in sizes.items()}
        for name, places in zip(sizes, chosen, strict=True):
            tensors[name][list(places)] = True
        masks.append(Mask(tensors))
    return masks


@given(shapes=SHAPES, one=SEEDS, other=SEEDS)
def test_distance_and_overlap_are_those_of_the_masks(shapes: dict[str, tuple[int, ...]], one: int, other: int) -> None:
    a, b = random_mask(shapes, one), random_mask(shapes, other)
    found, back = alike(a, b), alike(b, a)
    assert found.distance == pytest.approx(a.distance(b))
    assert found.overlap == pytest.approx(a.overlap(b))
    assert (found.distance, found.overlap, found.both) == (back.distance, back.overlap, back.both)
    assert found.by_chance == pytest.approx(back.by_chance)
    assert 0 <= found.chance_overlap <= 1
    same = alike(a, a)
    assert (same.distance, same.overlap) == (0, 1)


@pytest.mark.parametrize(
    ("sizes", "mine", "its"),
    [
        ({"a": 4}, {"a": 2}, {"a": 1}),
        ({"a": 4, "b": 3}, {"a": 2, "b": 1}, {"a": 3, "b": 2}),
        ({"a": 5, "b": 2, "c": 1}, {"a": 1, "b": 2, "c": 0}, {"a": 4, "b": 1, "c": 1}),
    ],
)
def test_chance_is_the_mean_over_all_masks(sizes: dict[str, int], mine: dict[str, int], its: dict[str, int]) -> None:
    pairs = list(itertools.product(all_masks(mine, sizes), all_masks(its, sizes)))
    both = [(a & b).kept for a, b in pairs]
    found = alike(*pairs[0])
    assert found.by_chance == pytest.approx(statistics.fmean(both))
    assert found.deviation == pytest.approx(statistics.pstdev(both))
    # The distance is linear in what both keep, so its expected value is exact.
    assert found.chance_distance == pytest.approx(statistics.fmean(a.distance(b) for a, b in pairs))
    kept = sum(mine.values()) + sum(its.values())
    assert found.chance_overlap == pytest.approx(found.by_chance / (kept - found.by_chance))


def test_chance_by_hand_where_all_layers_have_one_density() -> None:
    """Two masks of density d share d^2 of the entries, differ on 2d(1-d), and overlap by d / (2-d)."""
    mask = Mask({"a": torch.arange(50) < 10, "b": (torch.arange(200) < 40).reshape(4, 50)})
    found = alike(mask, mask)
    assert found.by_chance == pytest.approx(0.04 * 250)
    assert found.chance_distance == pytest.approx(2 * 0.2 * 0.8)
    assert found.chance_overlap == pytest.approx(0.2 / 1.8)


def test_shuffled_masks_are_as_alike_as_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = Mask({"a": torch.rand(300, generator=generator) < 0.3, "b": torch.rand(100, generator=generator) < 0.6})
    draws = [alike(mask, mask.shuffled(generator)) for _ in range(400)]
    off = statistics.fmean(one.both - one.by_chance for one in draws)
    assert abs(off) < 5 * draws[0].deviation / math.sqrt(len(draws))
    assert statistics.pstdev(one.both for one in draws) == pytest.approx(draws[0].deviation, rel=0.2)
    sigmas = [one.sigmas for one in draws if one.sigmas is not None]
    assert len(sigmas) == 400
    assert statistics.pstdev(sigmas) == pytest.approx(1, rel=0.2)


def test_a_whole_layer_leaves_nothing_to_chance() -> None:
    mask = Mask({"a": torch.ones(5, dtype=torch.bool), "b": torch.zeros(3, dtype=torch.bool)})
    found = alike(mask, mask)
    assert (found.both, found.by_chance, found.sigmas) == (5, 5, None)


def test_the_order_of_layers_does_not_matter() -> None:
    one = Mask({"a": torch.tensor([True, False]), "b": torch.tensor([True, True, False])})
    other = Mask({"b": torch.tensor([True, False, False]), "a": torch.tensor([True, True])})
    assert alike(one, other).by_chance == pytest.approx(1 * 2 / 2 + 2 * 1 / 3)


def test_rows_of_all_pairs() -> None:
    masks = {str(seed): random_mask({"a": (40,)}, seed) for seed in range(4)}
    rows = overlap_rows(masks)
    assert [(row["one"], row["other"]) for row in rows] == list(itertools.combinations("0123", 2))
    assert all(row["distance"] == masks[row["one"]].distance(masks[row["other"]]) for row in rows)


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    a, b = Mask({"a": torch.ones(2, dtype=torch.bool)}), Mask({"b": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(InputError, match="mine and its can't be compared: the two masks don't cover the same"):
        overlap_rows({"mine": a, "its": b})
    with pytest.raises(InputError, match="two at a time, but there is 1: give more"):
        overlap_rows({"mine": a})


@pytest.mark.parametrize("count", [2, WRITTEN_MASKS + 1])
def test_the_figure_has_a_cell_for_each_pair_both_ways(count: int) -> None:
    masks = {f"m{n}": random_mask({"a": (40,)}, n) for n in range(count)}
    chart = overlap_figure(list(masks), overlap_rows(masks), title="toy").to_dict()
    texts = ["Overlap (Jaccard, %)", "Expected of random masks (%)", "Distance (Hamming, %)"]
    assert [panel["title"]["text"] for panel in chart["concat"]] == texts
    for panel, read in zip(chart["concat"], (Mask.overlap, None, Mask.distance), strict=True):
        cells = chart["datasets"][panel["layer"][0].get("data", panel.get("data"))["name"]]
        assert len(cells) == count * (count - 1)
        assert len(panel["layer"]) == (2 if count <= WRITTEN_MASKS else 1)
        if read is not None:
            assert all(c["value"] == pytest.approx(100 * read(masks[c["one"]], masks[c["other"]])) for c in cells)
