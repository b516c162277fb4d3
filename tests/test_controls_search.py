"""Controls that change how a mask was found, the data it was found on, or how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy import same, toy_data, toy_task

import tombola as tb
from tombola.asked import draw_recipe
from tombola.auditing import controls_for
from tombola.audits.controls import CONTROLS, Subject
from tombola.audits.controls.corruption import CORRUPTIONS, Chance, corrupted
from tombola.audits.controls.scores import Lowest
from tombola.criteria import score
from tombola.draws import Draw, controls, rounds
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask, prunable
from tombola.methods import METHODS
from tombola.pruning import prune
from tombola.seeds import stream
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.task import Examples, Splits, examples
from tombola.ticket import Ticket

SEEDS = st.integers(0, 2**31)


def drawn(store: tb.Store, task: tb.Task | None = None, seen: list[Event] | None = None, **options: Any) -> Draw:
    task = toy_task() if task is None else task
    recipe = draw_recipe(task, {"allocation": "global", **options})
    found = Draw(recipe, Lab(task, store, recipe=recipe.training, watcher=None if seen is None else seen.append))
    list(rounds(found))
    list(controls(found))
    return found


def counts(mask: Mask) -> list[int]:
    return [layer.kept for layer in mask.layers()]


def lowest(scores: dict[str, Tensor], like: Mask, within: Mask) -> Mask:
    """The rule spelled out: in each layer as many as ``like`` has, lowest first, of equal ones the later."""
    tensors = {}
    for name, kept in like.items():
        free = within[name].flatten().nonzero().flatten().tolist()
        order = sorted(free, key=lambda i: (float(scores[name].flatten()[i]), -i))[: int(kept.sum())]
        flat = torch.zeros(kept.numel(), dtype=torch.bool)
        flat[order] = True
        tensors[name] = flat.reshape(kept.shape)
    return Mask(tensors)


def only_the_mask_differs(control: Any, ticket: Any) -> None:
    about, reference = control.run.record.about, ticket.run.record.about
    assert all(about[k] == reference[k] for k in ("task", "data", "seed", "recipe"))
    assert control.run.mask != ticket.mask
    assert same(control.run.start, dict(Ticket(control.run.mask, ticket.values, {}).values))


# Inverted scores.


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 20), st.sampled_from([1, 3, 10**6]), st.data())
def test_the_lowest_are_what_the_highest_leave(seed: int, size: int, values: int, data: st.DataObject) -> None:
    net = torch.nn.Linear(size, 1, bias=False)
    given = torch.randint(values, (1, size), generator=torch.Generator().manual_seed(seed)).float()
    count = data.draw(st.integers(0, size))
    best = prune({"weight": given}, count / size)
    worst = prune(score(net, Lowest(lambda weights: {"weight": given})), 1 - count / size)
    assert torch.equal(worst["weight"], ~best["weight"]), "ties are turned round too"


@pytest.mark.parametrize("strategy", [1, 2])
def test_inverted_turns_the_last_pruning_of_a_search_round(store: tb.Store, strategy: int) -> None:
    found = drawn(store, rounds=3, strategy=strategy, controls=["inverted"], control_draws=4)
    assert len(found.controls) == 3, "it draws nothing"
    whole = Mask({n: torch.ones_like(kept) for n, kept in found.rounds[1].mask.items()})
    for control, before, ticket in zip(found.controls, found.rounds, found.rounds[1:], strict=False):
        only_the_mask_differs(control, ticket)
        scores = {n: ticket.search[-1].final[n].abs() for n in ticket.mask}
        within = before.mask if before.number else whole
        assert control.run.mask == lowest(scores, ticket.mask, within)
        assert counts(control.run.mask) == counts(ticket.mask)


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "iterative_snip", "force", "magnitude_at_init"])
def test_inverted_before_training_keeps_each_layers_count(store: tb.Store, name: str) -> None:
    options: dict[str, Any] = {"score_rounds": 5} if METHODS[name].prunes == "before" else {}
    found = drawn(store, method=name, densities=[0.3, 0.05], controls=["inverted"], **options)
    for control, ticket in zip(found.controls, found.rounds[1:], strict=True):
        only_the_mask_differs(control, ticket)
        assert counts(control.run.mask) == counts(ticket.mask)


def test_inverted_in_one_round_is_the_lowest_of_the_untrained_net(store: tb.Store) -> None:
    found = drawn(store, method="magnitude_at_init", densities=[0.3], controls=["inverted"])
    values, ticket = found.rounds[0].run.start, found.rounds[1].mask
    whole = Mask({n: torch.ones_like(kept) for n, kept in ticket.items()})
    assert found.controls[0].run.mask == lowest({n: values[n].abs() for n in ticket}, ticket, whole)


def test_inverted_compensates_for_what_it_prunes_itself(store: tb.Store) -> None:
    found = drawn(store, method="obs", density=0.4, survivors="fine-tune", controls=["inverted"])
    run, dense = found.controls[0].run, found.rounds[0].run.final
    for name, kept in run.mask.items():
        assert not bool((run.start[name][kept] == 0).any()), "values of its own, not the ticket's zeros"
        assert not torch.equal(run.start[name], dense[name] * kept)


# Data that are spoilt.


def labelled(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, *shape), generator=g, dtype=torch.uint8), torch.randint(3, (n,), generator=g)


def dataset(x: Tensor, y: Tensor) -> Examples:
    return examples(torch.utils.data.TensorDataset(x.float(), y))


KINDS: dict[str, Callable[[Tensor, Tensor], Examples]] = {
    "tensors": lambda x, y: examples((x.float(), y)),
    "arrays": lambda x, y: Arrays(x, y, (0.0,), (1 / 255,)),
    "dataset": dataset,
}


def all_of(data: Examples) -> tuple[Tensor, Tensor]:
    x, y = data.take(torch.arange(len(data)))
    return x.round(), y


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from([(5,), (2, 3), (2, 4, 3)]), st.integers(2, 30), SEEDS)
def test_data_are_spoilt_in_one_respect(kind: str, shape: tuple[int, ...], n: int, seed: int) -> None:
    x, y = labelled(n, *shape)
    whole, chance = KINDS[kind](x, y), Chance(seed, ("control", 0))
    wrong, moved, half = (
        CORRUPTIONS[name](whole, chance) for name in ("random_labels", "shuffled_pixels", "half_data")
    )
    assert len(wrong) == len(moved) == len(half) == n
    assert torch.equal(all_of(wrong)[0], x.float())
    assert torch.equal(all_of(wrong)[1].sort().values, y.sort().values)
    assert torch.equal(all_of(moved)[1], y)
    pixels = [v.flatten(2) if len(shape) == 3 else v.flatten(1)[:, None] for v in (x.float(), all_of(moved)[0])]
    for before, after in zip(*pixels, strict=True):  # channels of one pixel stay together
        assert sorted(before.T.tolist()) == sorted(after.T.tolist())
    twice = {tuple(row) for row in torch.cat([all_of(half)[0].flatten(1), all_of(half)[1][:, None]], 1).tolist()}
    every = {tuple(row) for row in torch.cat([x.float().flatten(1), y[:, None]], 1).tolist()}
    assert twice <= every
    assert len(twice) <= (n + 1) // 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_data_of_every_kind_are_spoilt_alike(name: str) -> None:
    x, y = labelled(40, 1, 4, 4)
    found = [CORRUPTIONS[name](make(x, y), Chance(1, ("control", 2))) for make in KINDS.values()]
    for one in found:
        assert all(map(torch.equal, all_of(one), all_of(found[0])))
        parts = list(one.batches(7))
        assert torch.equal(torch.cat([part[1] for part in parts]), all_of(one)[1])
        assert all(map(torch.equal, all_of(one.to("cpu")), all_of(one)))
    for make in KINDS.values():
        digests = [CORRUPTIONS[name](make(x, y), Chance(1, ("control", draw))).digest for draw in (2, 2, 3)]
        assert digests[0] == digests[1] != digests[2]
        assert make(x, y).digest not in digests


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_augmented_images_are_spoilt_before_they_are_cropped(name: str) -> None:
    plain = Arrays(*labelled(30, 3, 6, 6), (0.0,), (1 / 255,))
    chance = Chance(0, ("control", 0))
    found = CORRUPTIONS[name](Augmented(plain, pad=1), chance)
    assert isinstance(found, Augmented)
    assert found.pad == 1
    assert all(map(torch.equal, all_of(found.plain), all_of(CORRUPTIONS[name](plain, chance))))


class Varied:
    """Examples of a kind of one's own, which vary from epoch to epoch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.plain = Augmented(Arrays(x, y, (0.0,), (1 / 255,)), pad=1)
        self.vary, self.take, self.batches = self.plain.vary, self.plain.take, self.plain.batches
        self.digest = self.plain.digest

    def __len__(self) -> int:
        return len(self.plain)

    def to(self, device: str) -> Varied:
        return self


@pytest.mark.parametrize("name", ["random_labels", "shuffled_pixels"])
def test_variants_of_ones_own_examples_stay(name: str) -> None:
    x, y = labelled(20, 1, 4, 4)
    found: Any = CORRUPTIONS[name](Varied(x, y), Chance(0, ("control", 0)))
    order = torch.arange(20)
    varied = found.vary(order, torch.Generator().manual_seed(0))
    assert torch.equal(varied, Varied(x, y).vary(order, torch.Generator().manual_seed(0)))
    assert torch.equal(found.take(varied)[1], found.take(order)[1])
    assert not torch.equal(found.take(varied)[0], found.take(order)[0])


def test_parts_are_spoilt_each_in_itself_and_nothing_else_is_seen() -> None:
    x, y = toy_data()
    whole = Splits(examples((x[:200], y[:200])), examples((x[200:300], y[200:300])), examples((x[300:], y[300:])))
    found = corrupted(whole, "random_labels", 3, 1)
    assert found.test is None
    for part, true in ((found.train, whole.train), (found.validation, whole.validation)):
        order = torch.arange(len(part))
        assert torch.equal(part.take(order)[0], true.take(order)[0])
        assert torch.equal(part.take(order)[1].bincount(), true.take(order)[1].bincount())
        assert float((part.take(order)[1] == true.take(order)[1]).float().mean()) < 0.6
    random = stream(3, "control", "random_labels", 1)
    assert torch.equal(found.train.take(torch.arange(200))[1], y[:200][torch.randperm(200, generator=random)])


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("shuffled_pixels", (torch.arange(12).view(4, 3), torch.arange(4)), "begin with whole numbers"),
        ("shuffled_pixels", (torch.rand(4), torch.arange(4)), "don't begin with a tensor of two dimensions or more"),
        ("half_data", Varied(*labelled(4, 1, 2, 2)), "read in an order of their own"),
    ],
)
def test_data_that_cannot_be_spoilt_so_say_why(name: str, data: Any, why: str) -> None:
    with pytest.raises(tb.InputError, match=f"'{name}' .*{why}"):
        corrupted(Splits(examples(data), examples(data), None), name, 0, 0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_mask_of_spoilt_data_costs_no_training_before_training(store: tb.Store, name: str) -> None:
    seen: list[Event] = []
    found = drawn(store, seen=seen, method="snip", densities=[0.3, 0.1], controls=[name], control_draws=2)
    assert sum(e.kind == "start" for e in seen) == 1 + 2 + 4
    for control in found.controls:
        only_the_mask_differs(control, found.rounds[control.round])
        assert control.run.mask.kept == found.rounds[control.round].mask.kept
    assert len({c.run.mask for c in found.controls}) == 4


def test_random_labels_give_the_mask_of_a_search_on_them(store: tb.Store, other: tb.Store) -> None:
    x, y = toy_data()
    true = toy_task(train=(x[:200], y[:200]), validation=(x[200:250], y[200:250]))
    order = torch.randperm(200, generator=stream(0, "control", "random_labels", 0))
    by_hand = toy_task(train=(x[:200], y[:200][order]), validation=(x[200:250], y[200:250]))
    for options in ({"rounds": 2}, {"method": "one_shot", "rounds": 2}, {"method": "set", "density": 0.3, **EVERY}):
        found = drawn(store, true, controls=["random_labels"], **options)
        expected = drawn(other, by_hand, **options)
        for control, ticket in zip(found.controls, expected.rounds[1:], strict=True):
            assert control.run.mask == ticket.mask
            only_the_mask_differs(control, found.rounds[control.round])


EVERY: dict[str, Any] = {"survivors": "reset", "update_every": "10it", "allocation": "erk"}


def test_rounds_of_a_ladder_share_the_search_on_spoilt_data(store: tb.Store) -> None:
    seen: list[Event] = []
    found = drawn(store, seen=seen, rounds=3, controls=["half_data"])
    assert sum(e.kind == "start" for e in seen) == 4 + 4 + 3, "the search, that on half the data, the controls"
    spoilt = [run for run in store.runs() if run.about["task"]["name"] == "toy, half_data"]
    assert len(spoilt) == 4
    assert len({c.run.id for c in found.controls}) == 3


def test_data_that_no_score_looks_at_are_not_spoilt() -> None:
    for method in ("synflow", "magnitude_at_init", "random_at_init"):
        with pytest.raises(tb.InputError, match=r"looks at no data, so that nothing would change: leave it out"):
            draw_recipe(toy_task(), {"method": method, "controls": ["random_labels"]})
    for method in ("snip", "grasp", "force", "imp", "set", "supermask"):
        options = {"survivors": "reset"} if METHODS[method].prunes == "during" else {}
        draw_recipe(toy_task(), {"method": method, "controls": list(CORRUPTIONS), **options})


def test_data_that_cannot_be_spoilt_are_refused() -> None:
    x, y = toy_data()
    flat, three = toy_task(train=(x[:, 0], y)), toy_task(train=(x, y, y))
    with pytest.raises(tb.InputError, match="'random_labels' permutes labels, but batches of these data are no pairs"):
        draw_recipe(three, {"controls": ["random_labels"]})
    with pytest.raises(tb.InputError, match="don't begin with a tensor of two dimensions"):
        draw_recipe(flat, {"controls": ["shuffled_pixels"]})
    draw_recipe(three, {"controls": ["shuffled_pixels", "half_data"]})


def test_loaded_data_that_cannot_be_spoilt_are_refused_before_any_training(store: tb.Store) -> None:
    x, y = toy_data()
    flat = toy_task(load=lambda root, seed, progress: toy_task(train=(x[:, 0], y)).splits(seed))
    recipe = draw_recipe(flat, {"method": "snip", "controls": ["reinit", "shuffled_pixels"]})
    lab = Lab(flat, store, recipe=recipe.training)
    with pytest.raises(tb.InputError, match="don't begin with a tensor of two dimensions"):
        list(rounds(Draw(recipe, lab)))
    assert not store.runs()
    known = controls_for(flat, recipe, lambda: lab.splits(0).train)
    assert set(controls_for(flat, recipe)) - set(known) == {"shuffled_pixels"}


# Rivals.


@pytest.mark.parametrize("method", ["one_shot", "obs"])
def test_rivals_are_what_the_method_makes_of_other_survivors(store: tb.Store, method: str) -> None:
    options: dict[str, Any] = {"method": method, "densities": [0.4]}
    found = drawn(store, survivors="reset", controls=["lr_rewind", "fine_tune"], **options)
    again = [drawn(store, survivors=kind, **options).rounds[1].run for kind in ("lr-rewind", "fine-tune")]
    assert [c.run.id for c in found.controls] == [run.id for run in again]
    assert all(c.run.mask == found.rounds[1].mask for c in found.controls)


def test_a_rival_begins_with_the_net_that_was_pruned_and_takes_as_long(store: tb.Store) -> None:
    found = drawn(store, rounds=2, survivors="rewind", back_to="20it", controls=["lr_rewind"])
    for control, ticket in zip(found.controls, found.rounds[1:], strict=True):
        assert same(control.run.start, dict(Ticket(ticket.mask, ticket.search[-1].final, {}).values))
        assert control.run.recipe == ticket.run.recipe
        assert control.run.mask == ticket.mask
    assert found.controls[1].run.start.keys() == found.rounds[1].run.final.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "snip", "controls": ["lr_rewind"]}, "but this method prunes an untrained one: leave it out"),
        (
            {"method": "supermask", "survivors": "reset", "controls": ["fine_tune"]},
            "this method prunes an untrained one",
        ),
        ({"survivors": "lr-rewind", "controls": ["lr_rewind"]}, "but survivors is 'lr-rewind' already: leave it out"),
        ({"survivors": "fine-tune", "controls": ["fine_tune"]}, "but survivors is 'fine-tune' already"),
        ({"method": "set", "survivors": "reset", "controls": ["inverted"]}, "lowest, but this method scores none"),
    ],
)
def test_what_a_method_cannot_have_is_refused_before_any_training(options: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        draw_recipe(toy_task(), options)
    draw_recipe(toy_task(), {**options, "controls": ["reinit"]})


@pytest.mark.parametrize("name", ["inverted", "random_labels", "lr_rewind"])
def test_a_ticket_without_its_search_is_refused(store: tb.Store, name: str) -> None:
    ticket = drawn(store, rounds=1).rounds[1]
    with pytest.raises(tb.InputError, match=f"control '{name}' changes how .* comes without its search: draw it anew"):
        CONTROLS[name].train(Subject(ticket))


def test_controls_depend_on_prunable_layers_alone(store: tb.Store) -> None:
    """Layers left unpruned are no part of a mask, and every control leaves them whole."""
    names = ["random_erk", "inverted", "shuffled_pixels", "lr_rewind", "signed_constant"]
    found = drawn(store, rounds=1, unpruned=["4.weight"], controls=names)
    for control in found.controls:
        assert control.run.mask.keys() == {"0.weight"} == found.rounds[1].mask.keys()
        if control.arm != "lr_rewind":
            assert torch.equal(control.run.start["4.weight"], found.rounds[0].run.start["4.weight"])
    assert "4.weight" in prunable(found.lab.task.build(0))
