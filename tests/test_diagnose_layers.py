"""The masks of methods, as the diagnostics find them: equal to a draw's, without training where it needs none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import toy_data, toy_net, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.diagnostics.layers import layer_rows
from tombola.diagnostics.masks import FoundMask, check_untrained, masks_at, masks_of, untrained, whole_mask
from tombola.draws import Draw, rounds
from tombola.errors import InputError, TombolaError
from tombola.mask import Mask
from tombola.report.mask_figures import NAMED_LAYERS, layers_figure
from tombola.tasks import TASKS

DENSITIES = [0.5, 0.2, 0.1]


def asked(store: tb.Store, method: str, **options: Any) -> tuple[tb.Lab, tb.DrawRecipe]:
    task = toy_task()
    recipe = draw_recipe(task, {"method": method, "seed": 3, **options})
    return tb.Lab(task, store, recipe=recipe.training), recipe


def drawn(lab: tb.Lab, recipe: tb.DrawRecipe) -> list[Mask]:
    return [round.mask for round in rounds(Draw(recipe, lab)) if round.number]


@pytest.mark.parametrize("method", ["snip", "synflow", "random_at_init", "at_init"])
def test_masks_of_a_method_at_init_are_those_of_its_draw_and_train_nothing(store: tb.Store, method: str) -> None:
    options: dict[str, Any] = {"criterion": "grasp"} if method == "at_init" else {}
    lab, recipe = asked(store, method, densities=DENSITIES, score_per_class=4, score_rounds=5, **options)
    found = list(masks_at(lab, recipe, [0.1, 0.5, 0.2, 0.5]))
    assert store.runs() == []
    assert [(one.method, one.seed, one.round, one.density) for one in found] == [
        (method, 3, number, density) for number, density in enumerate(DENSITIES, start=1)
    ]
    assert [one.mask for one in found] == drawn(lab, recipe)
    assert [one.mask for one in masks_of(lab, recipe)] == [one.mask for one in found]


def test_masks_of_imp_end_on_each_density_and_share_their_ladder(store: tb.Store) -> None:
    lab, recipe = asked(store, "imp", rate=0.3)
    found = list(masks_at(lab, recipe, [0.4, 0.6]))
    total = 12 * 24 + 24 * 3
    assert [one.mask.kept for one in found] == [round(0.6 * total), round(0.4 * total)]
    # Dense, 0.7 (shared), 0.6; then 0.49 and 0.4.
    assert len(store.runs()) == 5
    for one in found:
        (*_, last) = drawn(*asked(store, "imp", rate=0.3, density=one.density))
        assert one.mask == last
    assert len(store.runs()) == 5


def test_masks_of_one_shot_come_straight_from_the_dense_net(store: tb.Store) -> None:
    lab, recipe = asked(store, "one_shot")
    found = list(masks_at(lab, recipe, DENSITIES))
    assert [one.mask for one in found] == drawn(*asked(store, "one_shot", densities=DENSITIES))
    assert len(store.runs()) == 1 + len(DENSITIES)


def test_masks_of_all_rounds(store: tb.Store) -> None:
    lab, recipe = asked(store, "imp", rounds=2)
    found = list(masks_of(lab, recipe))
    assert [(one.round, one.density) for one in found] == [(1, found[0].mask.density), (2, found[1].mask.density)]
    assert found[1].mask <= found[0].mask


def test_a_search_that_ends_early_is_an_error(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, recipe = asked(store, "imp", rate=0.3)
    # The dense net holds; the net of the first round does not.
    monkeypatch.setattr(tb.Run, "diverged", property(lambda run: run.mask.density < 1))
    with pytest.raises(TombolaError, match=r"ends at 70.00%, before density 40.00%: a net diverged"):
        list(masks_at(lab, recipe, [0.4]))


def test_what_is_left_unpruned_is_not_in_the_masks(store: tb.Store) -> None:
    lab, recipe = asked(store, "random_at_init", unpruned=["4.*"])
    assert {n: (t.shape, bool(t.all())) for n, t in whole_mask(lab, recipe).items()} == {"0.weight": ((24, 12), True)}
    (found,) = masks_at(lab, recipe, [0.25])
    assert list(found.mask) == ["0.weight"]
    assert found.mask.kept == 72


def test_which_methods_need_no_training() -> None:
    assert [untrained(name) for name in ("snip", "synflow", "at_init", "imp", "one_shot")] == [True] * 3 + [False] * 2
    with pytest.raises(InputError, match="method 'imp' trains before it prunes"):
        check_untrained("imp")
    with pytest.raises(InputError, match="unknown method 'snp'\\. Did you mean 'snip'"):
        check_untrained("snp")


def test_synflow_does_without_data_where_the_shape_of_the_input_is_known(store: tb.Store) -> None:
    def missing(*_: object) -> tb.Task:
        raise AssertionError("the data were loaded")

    x, y = toy_data()
    with_data = tb.Task(model=toy_net, train=(x, y))
    without = tb.Task(model=toy_net, load=missing, input_shape=(12,))  # type: ignore[arg-type]
    masks = []
    for task in (with_data, without):
        recipe = draw_recipe(task, {"method": "synflow", "densities": [0.1]})
        masks.append([one.mask for one in masks_of(tb.Lab(task, store), recipe)])
    assert masks[0] == masks[1]
    snip = draw_recipe(without, {"method": "snip", "densities": [0.1]})
    with pytest.raises(AssertionError, match="the data were loaded"):
        list(masks_of(tb.Lab(without, store), snip))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.input_shape is not None])
def test_the_net_of_every_task_takes_inputs_of_its_shape(name: str) -> None:
    task = TASKS[name]
    assert task.input_shape is not None
    with torch.device("meta"):
        out = task.model()(torch.empty(2, *task.input_shape))
    assert out.dim() == 2
    if name.startswith("digits"):
        assert tuple(task.splits(0).train.take(torch.tensor([0]))[0].shape) == (1, *task.input_shape)


def by_hand() -> list[FoundMask]:
    masks = [Mask({"a": torch.tensor([True, False]), "b": torch.tensor([[True, True, False, k == 1]])}) for k in (0, 1)]
    return [FoundMask("snip", seed, 1, 0.5, mask) for seed, mask in enumerate(masks)]


def test_rows_by_hand() -> None:
    rows = layer_rows(by_hand())
    assert [(r["seed"], r["layer"], r["place"], r["kept"], r["total"], r["layer_density"]) for r in rows] == [
        (0, "a", 1, 1, 2, 0.5),
        (0, "b", 2, 2, 4, 0.5),
        (1, "a", 1, 1, 2, 0.5),
        (1, "b", 2, 3, 4, 0.75),
    ]
    assert {(r["method"], r["density"]) for r in rows} == {("snip", 0.5)}


def row(layer: str, kept: int, method: str = "snip", density: float = 0.5) -> dict[str, Any]:
    about = {"method": method, "seed": 0, "density": density, "layer": layer, "place": 1}
    return {**about, "kept": kept, "total": 10, "layer_density": kept / 10}


def test_the_figure_names_layers_with_nothing_kept_and_breaks_their_line() -> None:
    chart = layers_figure([row("a", 9), row("b", 0), row("c", 6)], title="toy").to_dict()
    assert chart["title"]["text"] == "toy: what each layer keeps, 50.0 % kept"
    assert "Nothing kept: b (snip)." in " ".join(chart["title"]["subtitle"])
    line = next(layer for layer in chart["layer"] if layer["mark"]["type"] == "line")
    assert [point["mean"] for point in chart["datasets"][line["data"]["name"]]] == [90, None, 60]


def test_the_figure_has_a_panel_for_each_density_and_numbers_many_layers() -> None:
    names = [f"layer{n}" for n in range(NAMED_LAYERS + 1)]
    chart = layers_figure([row(n, 5, density=d) for n in names for d in (0.1, 0.5)], title="toy").to_dict()
    assert [panel["title"]["text"] for panel in chart["concat"]] == ["50.0 % kept", "10.0 % kept"]
    assert "Layer 1 is layer0, layer 15 is layer14." in " ".join(chart["concat"][0]["title"]["subtitle"])
    with pytest.raises(InputError, match="there are none"):
        layers_figure([], title="toy")
