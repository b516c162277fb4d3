"""The lab: identity, sharing, the same bits everywhere, rewinding, damaged results."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import same, toy_data, toy_task

import tombola as tb
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask


def watched(task: tb.Task, store: tb.Store) -> tuple[Lab, list[Event]]:
    events: list[Event] = []
    return Lab(task, store, watcher=events.append), events


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events if event.kind not in ("step", "found")]


def test_a_finished_run_is_never_computed_twice(store: tb.Store) -> None:
    lab, events = watched(toy_task(), store)
    first, second = lab.train(0), lab.train(0)
    assert first.id == second.id
    assert kinds(events) == ["start", "done"]
    assert same(first.final, second.final)
    again, later = watched(toy_task(), store)
    again.train(0)
    assert [event.kind for event in later] == ["found"]


def test_the_same_recipe_gives_the_same_bits_in_another_store(store: tb.Store, tmp_path: Path) -> None:
    one = Lab(toy_task(), store).train(0)
    with tb.Store(tmp_path / "other") as other:
        two = Lab(toy_task(), other).train(0)
        assert one.id == two.id
        assert same(one.final, two.final)
        assert one.history == two.history


def test_identity_depends_on_what_decides_a_run_and_on_nothing_else(store: tb.Store) -> None:
    lab = Lab(toy_task(), store)
    base = lab.train(0)
    mask = tb.prune(tb.score(base.model(), "magnitude"), 0.5)
    x, y = toy_data()
    others = {
        "seed": lab.train(1),
        "recipe": lab.train(0, recipe=lab.recipe.model_copy(update={"lr": 0.02})),
        "mask": lab.train(0, mask=mask),
        "start": lab.train(0, start=base.final),
        "name": Lab(toy_task(name="other"), store).train(0),
        "data": Lab(toy_task(test=(x[260:], y[260:])), store).train(0),
        "loss": Lab(toy_task(loss=lambda model, batch: 2 * tb.tasks.cross_entropy(model, batch)), store).train(0),
    }
    ids = {name: run.id for name, run in others.items()}
    assert len({base.id, *ids.values()}) == 1 + len(ids)
    assert lab.train(0, arm="anything", keep=[tb.Duration(10)]).id == base.id


def test_identity_leaves_defaults_out(store: tb.Store) -> None:
    run = Lab(toy_task(), store).train(0)
    assert run.record.about["recipe"] == {"steps": "60it", "batch": 32, "evaluate_every": "10it", "lr": 0.01}
    assert run.record.about["full_recipe"]["optimizer"] == "adam"


def test_pruned_entries_of_the_start_do_not_matter(store: tb.Store) -> None:
    lab = Lab(toy_task(), store)
    model = lab.task.build(0)
    mask = tb.prune(tb.score(model, "magnitude"), 0.5)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run = lab.train(0, start=start, mask=mask)
    for name, kept in mask.items():
        start[name][~kept] = 123.0
    assert lab.train(0, start=start, mask=mask).id == run.id


def test_values_at_a_step_are_those_the_run_passed_through(store: tb.Store, tmp_path: Path) -> None:
    task = toy_task()
    asked_before = Lab(task, store).train(0, keep=[tb.Duration(25)])
    with tb.Store(tmp_path / "other") as other:
        lab, events = watched(task, other)
        asked_after = lab.train(0)
        assert same(asked_before.at(tb.Duration(25)), asked_after.at(tb.Duration(25)))
        events.clear()
        assert same(lab.train(0).at(tb.Duration(25)), asked_before.at(tb.Duration(25)))
        assert [event.kind for event in events] == ["found"], "kept from then on"
        assert same(asked_after.at(tb.Duration(0)), dict(task.build(0).state_dict()))
        assert same(asked_after.at(tb.Duration(60)), asked_after.final)
        with pytest.raises(tb.InputError, match="no values at step 61"):
            asked_after.at(tb.Duration(61))


def test_a_ticket_trains_alone_as_it_did_in_its_search(store: tb.Store, tmp_path: Path) -> None:
    """Every round begins with fresh optimiser state, schedule, data order and statistics."""
    from tombola.asked import draw_recipe
    from tombola.draws import Draw, rounds

    task = toy_task()
    found = Draw(draw_recipe(task, {"rounds": 2}), Lab(task, store))
    last = list(rounds(found))[-1]
    path = found.ticket(last).save(tmp_path / "a.ticket")
    ticket = tb.load(path)
    with tb.Store(tmp_path / "other") as other:
        alone = Lab(task, other).train(0, start=dict(ticket.values), mask=ticket.mask)
        assert alone.id == last.run.id
        assert same(alone.final, last.run.final)


def test_a_damaged_result_is_named_and_computed_again(store: tb.Store, tmp_path: Path) -> None:
    lab, events = watched(toy_task(), store)
    run = lab.train(0)
    final = run.final
    address = run.record.blobs["final"]
    (damaged,) = [p for p in (tmp_path / "runs").rglob("*") if p.name in (address, address[2:])]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="damaged"):
        again = lab.train(0)
    assert kinds(events) == ["start", "done", "start", "done"]
    assert same(again.final, final)


def test_divergence_is_recorded_and_read_back(store: tb.Store) -> None:
    task = toy_task(recipe={"optimizer": "sgd", "lr": 1e30})
    lab, events = watched(task, store)
    run = lab.train(0)
    assert run.diverged
    assert lab.train(0).diverged
    assert kinds(events) == ["start", "done"]
    assert run.metric("end", "test") is None
    assert run.metric("stop", "test") is not None


def test_a_run_holds_no_more_than_the_kept_weights(store: tb.Store) -> None:
    lab = Lab(toy_task(), store)
    mask = tb.prune(tb.score(lab.task.build(0), "magnitude"), 0.1)
    run = lab.train(0, mask=mask)
    for name, kept in mask.items():
        assert bool((run.final[name][~kept] == 0).all())
        assert bool((run.final[name][kept] != run.start[name][kept]).any())


def test_training_leaves_torch_as_it_was(store: tb.Store) -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    Lab(toy_task(), store).train(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_datasets_of_any_kind_train(store: tb.Store) -> None:
    x, y = toy_data()
    dataset = torch.utils.data.TensorDataset(x[:250], y[:250])
    from_dataset = Lab(toy_task(train=dataset), store).train(0)
    from_tensors = Lab(toy_task(), store).train(0)
    assert from_dataset.id != from_tensors.id, "another checksum"
    assert same(from_dataset.final, from_tensors.final)


@pytest.mark.parametrize("bad", [3, "data", (), (torch.zeros(3), torch.zeros(4))])
def test_data_that_are_none_are_refused(bad: object, store: tb.Store) -> None:
    with pytest.raises(tb.InputError, match="data"):
        Lab(toy_task(train=bad), store).train(0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(store: tb.Store) -> None:
    with pytest.raises(tb.InputError, match="'cuda' can't be used"):
        Lab(toy_task(recipe={"device": "cuda"}), store).train(0)
    assert store.runs()[0].status == "interrupted"


def test_a_mask_of_another_model_is_refused(store: tb.Store) -> None:
    with pytest.raises(tb.InputError):
        Lab(toy_task(), store).train(0, mask=Mask({"other.weight": torch.ones(2, 2, dtype=torch.bool)}))
