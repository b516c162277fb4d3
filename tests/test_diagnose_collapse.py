"""Layer collapse: the grid, the maximal and the critical compression, against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tombola as tb
from tombola.at_init import prune_at_init
from tombola.diagnostics.collapse import (
    collapse_row,
    collapse_rows,
    compressions,
    critical_compression,
    maximal_compression,
)
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.report.mask_figures import collapse_figure, ratio
from tombola.tasks.models import gaussian_glorot_

WHOLE = Mask({"a": torch.ones(10, 60, dtype=torch.bool), "b": torch.ones(40, 10, dtype=torch.bool)})


def net() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 4))
    return gaussian_glorot_(nn.Sequential(*layers))


def leaving(kept: dict[str, int]) -> Mask:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    for name, count in kept.items():
        tensors[name].view(-1)[:count] = True
    return Mask(tensors)


def test_the_maximal_compression_leaves_one_weight_a_layer() -> None:
    assert maximal_compression(WHOLE) == 500
    with pytest.raises(InputError, match="covers no weights"):
        maximal_compression(Mask({"a": torch.ones(0, 3, dtype=torch.bool)}))


def test_the_grid_is_even_on_a_log_axis_and_ends_one_step_beyond_the_maximal_one() -> None:
    grid = compressions(WHOLE, 10)
    assert grid[0] == 1
    assert grid[9] == 500  # to the bit: here one weight decides
    assert [math.log(b / a) for a, b in itertools.pairwise(grid)] == pytest.approx([math.log(500) / 9] * 10)
    assert compressions(WHOLE, 2) == [1, 500]  # a step beyond would leave less than one weight
    with pytest.raises(InputError, match="2 points or more, but got 1"):
        compressions(WHOLE, 1)


def test_a_row_by_hand() -> None:
    assert collapse_row(leaving({"a": 7, "b": 3}), 100) == {
        "compression": 100,
        "kept": 10,
        "fewest": 3,
        "fewest_in": "b",
        "emptied": 0,
        "emptied_layers": "",
    }
    row = collapse_row(leaving({"a": 2}), 500)
    assert (row["fewest"], row["emptied"], row["emptied_layers"]) == (0, 1, "b")


@given(least=st.integers(2, 1000), points=st.integers(2, 12))
def test_bisection_finds_the_fewest_weights_at_which_no_layer_is_empty(least: int, points: int) -> None:
    """A method that empties a layer below ``least`` weights."""

    def find(density: float) -> Mask:
        count = round(density * WHOLE.total)
        here = min(count - (count >= least), 600)
        return leaving({"a": here, "b": count - here if count >= least else 0})

    rows = list(collapse_rows(find, WHOLE, compressions(WHOLE, points), bisections=60))
    found = critical_compression(rows)
    assert round(WHOLE.total / found) == least
    assert found <= maximal_compression(WHOLE)
    assert len(rows) <= points + 1 + 16  # it ends when nothing lies between


def test_the_dense_net_needs_no_search_and_no_bisection_is_done_unasked() -> None:
    asked = []

    def find(density: float) -> Mask:
        asked.append(density)
        return leaving({"a": 5})

    rows = list(collapse_rows(find, WHOLE, [1.0, 10.0], bisections=0))
    assert asked == [0.1]
    assert [row["fewest"] for row in rows] == [400, 0]
    assert critical_compression(rows) == 1
    with pytest.raises(InputError, match="1 or more, but got 0\\.5"):
        list(collapse_rows(find, WHOLE, [0.5]))


def test_the_critical_compression_of_a_global_ranking_is_where_the_best_of_a_layer_goes() -> None:
    """Ranked by magnitude, a layer is empty as soon as its largest weight is not among those kept."""
    model = net()
    weights = [p.detach().abs().flatten() for name, p in tb.prunable(model).items()]
    every = torch.cat(weights)
    least = max(int((every >= layer.max()).sum()) for layer in weights)
    whole = Mask.full(model)
    grid = compressions(whole, 5)
    rows = list(collapse_rows(lambda d: prune_at_init(model, "magnitude", d), whole, grid, bisections=60))
    assert round(whole.total / critical_compression(rows)) == least


def test_synflow_reaches_the_maximal_compression_and_magnitude_does_not() -> None:
    """Theorem 3 of Tanaka et al. (2020): no layer goes while another has more than one weight."""
    model = net()
    whole = Mask.full(model)
    grid, batches = compressions(whole, 8), [torch.empty(1, 20)]
    rows = list(collapse_rows(lambda d: prune_at_init(model, "synflow", d, batches), whole, grid))
    assert critical_compression(rows) == maximal_compression(whole)
    assert rows[7]["kept"] == 3
    assert rows[7]["fewest"] == 1
    assert rows[8]["emptied"] > 0  # fewer weights than layers
    assert critical_compression(rows[:9]) == critical_compression(rows)
    others = list(collapse_rows(lambda d: prune_at_init(model, "magnitude", d), whole, grid))
    assert critical_compression(others) < maximal_compression(whole)


def test_the_figure_shows_zero_and_the_maximal_compression() -> None:
    about = {"method": "snip", "seed": 0}
    rows = [{**about, **collapse_row(WHOLE, 1)}, {**about, **collapse_row(leaving({"a": 9}), 111.0)}]
    chart = collapse_figure(rows, 500.0, title="toy").to_dict()
    fewest, empty = chart["concat"]
    assert "Dotted: the maximal compression, 500." in " ".join(fewest["title"]["subtitle"])
    scale = fewest["layer"][1]["encoding"]["y"]["scale"]
    assert (scale["type"], scale["domain"][0]) == ("symlog", 0)
    assert empty["layer"][1]["encoding"]["y"]["field"] == "emptied"
    data = empty["layer"][1].get("data", empty.get("data"))
    assert [point["emptied"] for point in chart["datasets"][data["name"]]] == [0, 1]


def test_ratios_are_written_plainly() -> None:
    assert [ratio(value) for value in (1.0, 46.523, 999.94, 1051113.14)] == ["1", "46.52", "999.9", "1,051,113"]
