"""Tickets found before training: the scored weights are the trained ones, at every density anew from the whole net."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import TINY, call
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.draws import Draw, rounds
from tombola.lab import Lab
from tombola.mask import Mask, prunable
from tombola.methods import METHODS, AtInit
from tombola.seeds import stream
from tombola.tasks import get_task
from tombola.tasks.balance import balanced
from tombola.tasks.task import examples

AT_INIT = {name: method for name, method in METHODS.items() if isinstance(method, AtInit)}
QUICK = {"steps": "2it", "evaluate_every": "2it"}


def drawn(store: tb.Store, task: str | tb.Task = "digits-mlp", **options: Any) -> Draw:
    known = task if isinstance(task, tb.Task) else get_task(task)
    recipe = draw_recipe(known, {"training": QUICK, "score_rounds": None, **options})
    found = Draw(recipe, Lab(known, store, recipe=recipe.training))
    list(rounds(found))
    return found


def scored_by_hand(task: str, method: str, density: float, number: int = 1, seed: int = 0, **options: Any) -> Mask:
    """The mask of the seed's own net, found without labs, draws or methods."""
    known, own = get_task(task), AT_INIT[method]
    train = known.splits(seed).train
    batch = train.take(balanced(train, options.pop("per_class", 10), stream(seed, "scoring")))
    options = {"rounds": own.rounds, "generator": stream(seed, "criterion", number)} | options
    return tb.prune_at_init(known.build(seed), own.criterion or "magnitude", density, [batch], known.loss, **options)


def test_these_are_the_methods_at_initialisation() -> None:
    assert sorted(AT_INIT) == [
        *("at_init", "force", "grasp", "iterative_snip", "magnitude_at_init", "random_at_init", "snip", "synflow")
    ]


@pytest.mark.parametrize("method", AT_INIT)
def test_the_scored_weights_are_the_trained_ones(store: tb.Store, method: str) -> None:
    options = {"rounds": 4} if method in ("iterative_snip", "force", "synflow") else {}
    found = drawn(store, method=method, densities=(0.5, 0.1), score_rounds=options.get("rounds"), seed=3)
    initial = get_task("digits-mlp").build(3).state_dict()
    assert [r.number for r in found.rounds] == [0, 1, 2]
    assert found.rounds[0].mask.density == 1
    for number, density in ((1, 0.5), (2, 0.1)):
        round = found.rounds[number]
        assert round.mask == scored_by_hand("digits-mlp", method, density, number, seed=3, **options)
        assert same(dict(round.values), initial), "a ticket's values are the initial ones, bit for bit"
        start = {n: v * round.mask[n] if n in round.mask else v for n, v in initial.items()}
        assert same(round.run.start, start)
        for name, kept in round.mask.items():
            assert bool((round.run.final[name][~kept] == 0).all())
            assert bool((round.run.final[name][kept] != initial[name][kept]).any())


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_a_net_with_batch_normalisation_and_shortcuts(store: tb.Store, method: str) -> None:
    found = drawn(store, "digits-conv", method=method, density=0.05, score_rounds=3)
    options = {"rounds": 3}
    assert found.rounds[1].mask == scored_by_hand("digits-conv", method, 0.05, **options)
    assert same(dict(found.rounds[1].values), get_task("digits-conv").build(0).state_dict())
    assert found.rounds[1].mask.kept == round(0.05 * 19_408)


def test_the_methods_rounds_are_the_criterions_unless_asked_for(store: tb.Store) -> None:
    once, twice = (drawn(store, method="iterative_snip", density=0.05, score_rounds=n) for n in (1, 2))
    snip = drawn(store, method="snip", density=0.05)
    assert once.rounds[1].mask == snip.rounds[1].mask
    assert once.rounds[1].run.id == snip.rounds[1].run.id, "the same ticket is trained once"
    assert twice.rounds[1].mask == scored_by_hand("digits-mlp", "snip", 0.05, rounds=2)
    synflow = drawn(store, method="synflow", density=0.02)
    assert synflow.rounds[1].mask == scored_by_hand("digits-mlp", "synflow", 0.02)


def test_the_dense_net_is_shared_with_other_methods(store: tb.Store) -> None:
    snip, imp = drawn(store, method="snip", density=0.2), drawn(store, method="imp", rounds=1)
    assert snip.rounds[0].run.id == imp.rounds[0].run.id


def test_densities_that_are_not_asked_for() -> None:
    task = get_task("digits-mlp")
    assert draw_recipe(task, {"method": "snip"}).densities == (0.1, 0.05, 0.02, 0.01)
    assert draw_recipe(task, {"method": "snip", "density": 0.3}).densities is None
    assert draw_recipe(task, {"method": "imp"}).densities is None


def test_a_density_is_gone_to_at_once(store: tb.Store) -> None:
    found = drawn(store, method="magnitude_at_init", density=0.03)
    assert [round(r.mask.density, 3) for r in found.rounds] == [1, 0.03]


def test_the_ranking_is_over_the_whole_net_unless_asked_for(store: tb.Store) -> None:
    assert get_task("digits-mlp").allocation == "layerwise"
    whole = drawn(store, method="snip", density=0.1).rounds[1].mask
    layers = drawn(store, method="snip", density=0.1, allocation="uniform").rounds[1].mask
    assert len({round(layer.density, 2) for layer in whole.layers()}) > 1
    assert [layer.density for layer in layers.layers()] == pytest.approx([0.1] * 3, abs=1e-3)
    assert layers == scored_by_hand("digits-mlp", "snip", 0.1, allocation="uniform")


def test_layers_left_unpruned_stay_whole_and_do_not_count(store: tb.Store) -> None:
    found = drawn(store, method="snip", density=0.1, unpruned=("*fc1*",)).rounds[1]
    names = prunable(get_task("digits-mlp").build(0))
    left = [name for name in names if "fc1" not in name]
    assert list(found.mask) == left
    assert 0 < len(left) < len(names)
    assert found.mask.kept == round(0.1 * sum(names[n].numel() for n in left))
    (spared,) = names.keys() - set(left)
    assert torch.equal(found.run.start[spared], get_task("digits-mlp").build(0).state_dict()[spared])


def test_examples_and_mode_of_scoring_are_the_recipes(store: tb.Store) -> None:
    one = drawn(store, method="snip", density=0.05, score_per_class=1).rounds[1].mask
    assert one == scored_by_hand("digits-mlp", "snip", 0.05, per_class=1)
    assert one != scored_by_hand("digits-mlp", "snip", 0.05)
    train = drawn(store, "digits-conv", method="snip", density=0.05, score_mode="train").rounds[1].mask
    assert train == scored_by_hand("digits-conv", "snip", 0.05, mode="train")
    assert train != scored_by_hand("digits-conv", "snip", 0.05)


def test_many_examples_are_scored_in_parts_as_at_once(store: tb.Store) -> None:
    found = drawn(store, method="snip", density=0.05, score_per_class=60).rounds[1].mask
    assert found.distance(scored_by_hand("digits-mlp", "snip", 0.05, per_class=60)) < 1e-3, "rounding alone"


def test_any_criterion_scores_at_initialisation(store: tb.Store) -> None:
    found = drawn(store, method="at_init", criterion="test_at_init_methods:smallest", density=0.1).rounds[1].mask
    values = prunable(get_task("digits-mlp").build(0))
    assert found == tb.prune({n: -v.detach().abs() for n, v in values.items()}, 0.1)


def smallest(weights: tb.Weights) -> dict[str, Tensor]:
    return {name: -w.abs() for name, w in weights.final.items()}


def test_criteria_without_data_are_not_made_to_wait_for_them(store: tb.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Tensor:
        raise AssertionError("no examples are needed")

    monkeypatch.setattr("tombola.methods.base.balanced", refuse)
    drawn(store, method="magnitude_at_init", density=0.5)
    with pytest.raises(AssertionError, match="no examples are needed"):
        drawn(store, method="snip", density=0.5)


def test_the_ticket_of_a_density_asked_for_is_returned_though_it_is_outside_the_margin(store: tb.Store) -> None:
    ticket = tb.draw("digits-mlp", method="random_at_init", density=0.01, margin=0, training=QUICK, store=store)
    assert ticket.mask.density == pytest.approx(0.01, rel=1e-2)
    assert ticket.origin["method"] == "random_at_init"


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.embed(x).mean(1))
        return found


def tokens() -> tb.Task:
    g = stream(0, "tokens")
    x, y = torch.randint(9, (90, 5), generator=g), torch.randint(3, (90,), generator=g)
    return tb.Task(model=Tokens, train=(x, y), name="tokens", recipe=toy_task().recipe, allocation="global")


def test_a_net_that_takes_words(store: tb.Store) -> None:
    assert list(drawn(store, tokens(), method="grasp", density=0.5).rounds[1].mask) == ["fc.weight"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (tokens, {"method": "synflow", "density": 0.5}, "synflow gives the net one input of ones, .*doesn't take it"),
        (toy_task, {"method": "snip", "criterion": "grasp"}, "goes by its own criterion, 'snip', .* 'at_init' takes"),
        (toy_task, {"method": "snip", "densities": (0.1, 0.5)}, "densities must fall from round to round"),
        (toy_task, {"method": "snip", "densities": ()}, "densities"),
        (toy_task, {"method": "snip", "density": 0.0}, "density: .*greater than 0"),
        (toy_task, {"method": "snip", "densities": (0.5,), "density": 0.5}, "leave out rounds, density and schedule"),
        (toy_task, {"method": "snip", "unpruned": ("nothing*",)}, "no prunable parameter fits the pattern 'nothing"),
        (toy_task, {"method": "snip", "unpruned": ("*",)}, "unpruned leaves nothing to prune"),
        (toy_task, {"method": "snip", "score_mode": "evaluate"}, "score_mode"),
        (toy_task, {"method": "snip", "score_per_class": 0}, "score_per_class: .*greater than 0"),
        (toy_task, {"method": "snip", "score_rounds": 0}, "score_rounds: .*greater than 0"),
        (toy_task, {"method": "synflo"}, "unknown method 'synflo'.*Did you mean 'synflow'"),
    ],
)
def test_bad_options_are_refused_before_any_training(
    store: tb.Store, task: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.draw(task(), store=store, **options)
    assert store.runs() == []


def test_the_command_line_writes_to_a_folder_of_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("draw", "digits-mlp", "--method", "snip", "--densities", "0.2,0.05", "--json", *TINY)
    assert done.status == 0, done.err
    assert [row["round"] for row in done.json["rounds"]] == [0, 1, 2]
    out = tmp_path / "tombola-out" / "digits-mlp-snip"
    (ticket,) = (tb.load(path) for path in out.glob("*.ticket"))
    assert ticket.mask in [scored_by_hand("digits-mlp", "snip", density) for density in (0.2, 0.05)]
    refused = call("draw", "digits-mlp", "--method", "snip", "--density", "1.5", *TINY)
    assert refused.status == 2
    assert "Traceback" not in refused.err


# Examples of each class.


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sampled_from([0, 1, 2, 7, 10**12]), min_size=1, max_size=60),
    per_class=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_as_many_examples_of_each_class(labels: list[int], per_class: int, seed: int) -> None:
    data = examples((torch.arange(len(labels)).float()[:, None], torch.tensor(labels)))
    chosen = balanced(data, per_class, torch.Generator().manual_seed(seed))
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == len(chosen), "no example twice"
    counts = Counter(labels[i] for i in chosen.tolist())
    assert counts == {label: min(per_class, count) for label, count in Counter(labels).items()}
    assert torch.equal(chosen, balanced(data, per_class, torch.Generator().manual_seed(seed)))


def test_examples_of_each_class_are_drawn_at_random_and_mixed() -> None:
    labels = torch.arange(5).repeat_interleave(100)
    data = examples((torch.zeros(500, 1), labels))
    chosen, other = (balanced(data, 20, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert set(chosen.tolist()) != set(other.tolist())
    assert bool((labels[chosen].diff() < 0).any()), "not sorted by class"
    assert len(set(labels[chosen[:20]].tolist())) > 2


@pytest.mark.parametrize(
    "targets",
    [torch.zeros(50), torch.zeros(50, 2, dtype=torch.int64), torch.full((50,), -1)],
    ids=["real", "several", "negative"],
)
def test_of_data_without_classes_ten_times_as_many(targets: Tensor) -> None:
    data = examples((torch.zeros(50, 1), targets))
    assert len(set(balanced(data, 3, torch.Generator()).tolist())) == 30
    assert len(balanced(data, 9, torch.Generator())) == 50


def test_a_dataset_of_pairs_has_classes_too() -> None:
    data = examples([(torch.zeros(2), number % 3) for number in range(30)])
    assert Counter(int(i) % 3 for i in balanced(data, 4, torch.Generator())) == {0: 4, 1: 4, 2: 4}
