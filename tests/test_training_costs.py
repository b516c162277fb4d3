"""What trainings cost: operations counted by hand, and the size of what comes out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import toy_task
from updating import ENGINES, changing, first_mask, go, image_task, on, spy, stopped, vector_task

import tombola as tb
from tombola.costs import cost
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.ticket import Ticket

DENSE = 2 * (12 * 24 + 24 * 16 + 16 * 3)
"""Operations of a forward pass of the vectors' net: two a weight."""
BATCH = 32


@pytest.mark.parametrize("engine", [*ENGINES, "compact"])
def test_under_one_mask_a_step_is_three_passes_of_the_kept_weights(engine: str) -> None:
    task = on(vector_task(), engine)
    mask = first_mask(task, 0.3, "set")
    assert go(task, mask).summary["flops"] == 3 * 2 * mask.kept * BATCH * 60
    dense = Mask.full(task.build(0))
    assert go(task, dense, keep=[3, 17]).summary["flops"] == 3 * DENSE * BATCH * 60


def test_a_later_start_and_a_batch_larger_than_the_data_count_what_is_trained() -> None:
    task = vector_task(recipe={"start": "20it", "batch": 1000})
    assert go(task, Mask.full(task.build(0))).summary["flops"] == 3 * DENSE * 225 * 40


def test_convolutions_count_once_a_position() -> None:
    task = image_task(recipe={"steps": "10it"})
    net = task.build(0)
    mask = first_mask(task, 0.3, "set")
    kept = {name: int(own.sum()) for name, own in mask.items()}
    passed = 2 * (64 * kept["0.weight"] + 4 * kept["4.weight"] + kept["8.weight"])
    assert go(task, mask).summary["flops"] == 3 * passed * BATCH * 10
    assert passed == cost(net, mask, example=torch.zeros(1, 2, 8, 8)).kept_flops


@pytest.mark.parametrize("engine", ENGINES)
def test_gradual_pruning_is_the_sum_over_its_stretches(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    task = on(vector_task(recipe=changing("gradual", "7it", "40it", density=0.2)), engine)
    updates = spy(monkeypatch, "gradual")
    found = go(task, first_mask(task, None, "gradual")).summary["flops"]
    assert [update.step for update in updates] == [7, 14, 21, 28, 35]
    kept = [720, *(update.change.mask.kept for update in updates)]
    lengths = [7, 7, 7, 7, 7, 25]
    assert found == 3 * 2 * BATCH * sum(n * steps for n, steps in zip(kept, lengths, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_rigl_pays_for_dense_gradients_at_its_updates(engine: str) -> None:
    """Two passes of the kept weights and one of all, in place of a step (Evci et al. 2020, appendix H)."""
    task = on(vector_task(recipe=changing("rigl", "10it", "45it")), engine)
    mask = first_mask(task, 0.3, "rigl")
    sparse = 2 * mask.kept
    by_hand = BATCH * (56 * 3 * sparse + 4 * (2 * sparse + DENSE))
    assert go(task, mask).summary["flops"] == by_hand
    assert go(task, mask, slot=stopped(task, mask, 40).slot()).summary["flops"] == by_hand


@pytest.mark.parametrize("rule", ["set", "dsr", "deep_r"])
def test_rules_without_gradients_pay_nothing_for_updates(rule: str) -> None:
    task = vector_task(recipe=changing(rule))
    mask = first_mask(task, 0.3, rule)
    assert go(task, mask).summary["flops"] == 3 * 2 * mask.kept * BATCH * 60


def test_a_training_that_settles_counts_the_steps_it_took() -> None:
    asked = {"until_settled": {"density": 0.5, "window": 2, "distance": 1.0}}
    outcome = go(toy_task(recipe=asked), Mask.full(toy_task().build(0)))
    assert outcome.summary["steps"] == 14
    assert outcome.summary["flops"] == 3 * 2 * (12 * 24 + 24 * 3) * BATCH * 14


def test_an_older_record_without_the_figure_gives_the_same(store: tb.Store) -> None:
    task = vector_task()
    lab = Lab(task, store)
    for mask in (None, first_mask(task, 0.1, "set")):
        run = lab.train(0, mask=mask)
        older = {name: value for name, value in run.summary.items() if name != "flops"}
        record = dataclasses.replace(run.record, summary=older)
        old = tb.Run(lab, record, 0, run.recipe, run.start, run.mask)
        assert old.flops == run.flops == run.summary["flops"] == 6 * run.mask.kept * BATCH * 60


class TwoInputs(nn.Module):
    """Can't be run on the first part of a batch alone; ``told`` says how it fails."""

    def __init__(self, told: type[Exception] | None = None) -> None:
        super().__init__()
        self.layer, self.told = nn.Linear(12, 3), told

    def forward(self, x: Tensor, scale: Any = None) -> Tensor:
        if scale is None:
            raise (TypeError if self.told is None else self.told)("a scale is needed")
        out: Tensor = self.layer(x) * scale
        return out


def scaled(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], 2.0), batch[1])


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError, NotImplementedError])
def test_a_net_whose_inputs_can_not_be_told_trains_without_a_figure(store: tb.Store, error: type[Exception]) -> None:
    task = toy_task(model=lambda: TwoInputs(error), loss=scaled, metrics=lambda m, b: {"accuracy": scaled(m, b)})
    run = Lab(task, store).train(0)
    assert "flops" not in run.summary
    assert run.flops is None


class Counting(nn.Module):
    """Counts its passes, draws random numbers and moves statistics even in evaluation."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        out: Tensor = self.layer(x + 0.01 * torch.randn(x.shape))
        return out


def test_counting_operations_leaves_no_trace() -> None:
    task = toy_task(model=Counting, recipe={"steps": "5it", "evaluate_every": "5it"})
    before = torch.get_rng_state()
    outcome = go(task, Mask.full(task.build(0)), keep=[0])
    assert "flops" in outcome.summary
    assert outcome.kept[0]["passes"] == 0
    evaluated = torch.random.get_rng_state()
    torch.set_rng_state(before)
    for _ in range(2):  # on validation data, before and after
        torch.randn(25, 12)
    for _ in range(2):  # on test data, at the early stop and at the end
        torch.randn(80, 12)
    assert torch.equal(torch.get_rng_state(), evaluated)


def normalising_net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_net_that_normalises_by_its_batch_has_a_figure(engine: str) -> None:
    task = toy_task(model=normalising_net, recipe={"steps": "5it", "engine": engine})
    assert go(task, Mask.full(task.build(0))).summary["flops"] == 3 * 2 * (96 + 24) * BATCH * 5


def test_bytes_are_those_of_the_result(store: tb.Store) -> None:
    sizes = {}
    for rule in ("set", "gradual"):
        task = vector_task(recipe=changing(rule))
        run = Lab(task, store).train(0, mask=first_mask(task, 0.3, rule))
        assert run.bytes == len(Ticket(run.final_mask, run.final, {}).to_bytes())
        sizes[rule] = run.bytes
    assert sizes["gradual"] < sizes["set"], "at a tenth and at three tenths of the weights"
