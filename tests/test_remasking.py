"""Another mask in the middle of a training: what it prunes, what begins anew, and what goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import same
from updating import ENGINES, OPTIMIZERS, assert_pruned_is_zero, image_task, vector_task

import tombola as tb
from tombola.engines import Plan, Session, open_session
from tombola.engines.compact import CompactSession
from tombola.engines.remasking import remasked
from tombola.engines.tracing import UnsupportedError
from tombola.mask import Mask
from tombola.tasks.task import State, Task

UPDATES = {"updates": {"rule": "set", "every": "1ep", "until": "1ep"}}


def drawn(net: nn.Module, seed: int, density: float) -> Mask:
    g = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(kept.shape, generator=g) < density for name, kept in Mask.full(net).items()})


def opened(task: Task, engine: str, mask: Mask) -> Session:
    return open_session(Plan(engine, ""), task.build(0), mask, task, task.splits(0).train, task.recipe, 0)


def task_of(images: bool, recipe: dict[str, Any]) -> Task:
    return (image_task if images else vector_task)(recipe=recipe | UPDATES)


def new_values(state: State, mask: Mask, seed: int) -> dict[str, Tensor]:
    """Whole tensors for some of the parameters, with zeros among what is kept."""
    g = torch.Generator().manual_seed(seed)
    values = {}
    for name in list(mask)[:2]:
        value = torch.randn(mask[name].shape, generator=g) * mask[name]
        values[name] = value.masked_fill(torch.rand(value.shape, generator=g) < 0.3, 0.0)
    return values


CASES = given(
    images=st.booleans(),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    steps=st.integers(0, 5),
    seed=st.integers(0, 2**31),
    densities=st.tuples(st.sampled_from([0.05, 0.3, 1.0]), st.sampled_from([0.05, 0.3, 1.0])),
    valued=st.booleans(),
)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=20, deadline=None)
@CASES
def test_in_place_and_by_the_state_are_the_same_bits(
    engine: str, images: bool, optimizer: str, steps: int, seed: int, densities: tuple[float, float], valued: bool
) -> None:
    task = task_of(images, OPTIMIZERS[optimizer])
    session = opened(task, engine, drawn(task.build(0), seed, densities[0]))
    session.stretch(steps)
    before, mask = session.state(), drawn(task.build(0), seed + 1, densities[1])
    values = new_values(before, mask, seed) if valued else None
    session.remask(mask, values)
    now = session.state()
    assert same(now, remasked(before, mask, values))
    assert session.mask == mask
    assert session.step == steps
    assert_pruned_is_zero(now, mask)
    check_what_goes_on(before, now, mask, values or {})
    # And so it goes on: as a session that was opened with this mask and took the state.
    other = opened(task, engine, mask)
    other.load(remasked(before, mask, values))
    assert other.stretch(3) == session.stretch(3)
    assert same(session.state(), other.state())
    assert_pruned_is_zero(session.state(), mask)


def check_what_goes_on(before: State, now: State, mask: Mask, values: dict[str, Tensor]) -> None:
    """What stays kept keeps values and moments; what is new starts at 0 with moments of 0."""
    assert now.keys() == before.keys()
    for entry, value in now.items():
        kind, _, rest = entry.partition(".")
        name = rest if kind == "model" else rest.rpartition(".")[0]
        if name not in mask or not value.dim():
            assert torch.equal(value, before[entry]), "nothing else changes"
            continue
        alive = now[f"model.{name}"] != 0
        wanted = values.get(name, before[f"model.{name}"])
        if kind == "model":
            assert torch.equal(value, torch.where(mask[name], wanted, 0.0))
        else:
            assert torch.equal(value, torch.where(alive, before[entry], 0.0))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_entry_that_is_kept_at_zero_begins_anew(engine: str) -> None:
    task = task_of(False, OPTIMIZERS["adam"])
    mask = Mask.full(task.build(0))
    session = opened(task, engine, mask)
    session.stretch(4)
    before = session.state()
    values = {"of.weight": before["model.of.weight"].clone()}
    values["of.weight"][3, 5] = 0.0
    assert before["optimizer.of.weight.exp_avg_sq"][3, 5] > 0
    session.remask(Mask(dict(mask)), values)
    after = session.state()
    for key in ("exp_avg", "exp_avg_sq"):
        changed = after[f"optimizer.of.weight.{key}"] != before[f"optimizer.of.weight.{key}"]
        assert changed.nonzero().tolist() == [[3, 5]]
        assert after[f"optimizer.of.weight.{key}"][3, 5] == 0
    assert float(after["optimizer.of.weight.step"]) == 4, "the count of steps is the whole tensor's"
    session.stretch(1)
    assert session.model.get_parameter("of.weight")[3, 5] != 0, "it trains"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_stays_the_same_object_and_evaluations_see_the_new_mask(engine: str) -> None:
    task = task_of(True, OPTIMIZERS["momentum"])
    session = opened(task, engine, Mask.full(task.build(0)))
    validation = task.splits(0).validation
    session.stretch(3)
    model, dense = session.model, session.evaluate(validation)
    mask = drawn(model, 1, 0.2)
    session.remask(mask)
    assert session.model is model
    cut = session.evaluate(validation)
    assert cut["loss"] != dense["loss"]
    fresh = opened(task, engine, mask)
    fresh.load(session.state())
    assert fresh.evaluate(validation) == cut
    mask.apply_(model)
    with torch.no_grad():
        by_hand = task.metrics(model.eval(), next(validation.batches(1000)))
    assert cut["loss"] == pytest.approx(float(by_hand["loss"]), rel=1e-5)


def test_a_state_is_not_written_to() -> None:
    task = task_of(False, OPTIMIZERS["adam"])
    session = opened(task, "masked", Mask.full(task.build(0)))
    session.stretch(2)
    state = session.state()
    copy = {name: value.clone() for name, value in state.items()}
    mask = drawn(session.model, 2, 0.1)
    remasked(state, mask, new_values(state, mask, 3))
    assert same(state, copy)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_of_another_net_is_refused(engine: str) -> None:
    session = opened(task_of(False, {}), engine, Mask.full(vector_task().build(0)))
    with pytest.raises(tb.InputError, match="the mask"):
        session.remask(Mask({"of.weight": torch.ones(2, 2, dtype=torch.bool)}))
    with pytest.raises(tb.InputError, match=r"the mask covers 'off\.weight'"):
        session.remask(Mask({"off.weight": torch.ones(16, 24, dtype=torch.bool)}))


def test_the_compact_engine_has_one_mask_for_good() -> None:
    task = vector_task()
    mask = drawn(task.build(0), 1, 0.05)
    session = CompactSession(task.build(0), mask, task, task.splits(0).train, task.recipe, 0)
    with pytest.raises(UnsupportedError, match="one mask for good"):
        session.remask(mask)
