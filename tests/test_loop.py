"""The training loop: evaluations, the early-stop step, what is read when, divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import same, toy_data, toy_task

import tombola as tb
from tombola.engines import evaluate
from tombola.mask import Mask
from tombola.tasks.task import Splits, examples
from tombola.training.loop import Outcome, train


def run(task: tb.Task, splits: Splits | None = None, **options: Any) -> Outcome:
    model = task.build(0)
    return train(task, splits or task.splits(0), task.recipe, 0, model, Mask.full(model), **options)


def test_evaluations_are_at_multiples_and_at_the_end() -> None:
    outcome = run(toy_task(recipe={"steps": "25it", "evaluate_every": "10it"}))
    assert [row["step"] for row in outcome.history] == [0, 10, 20, 25]
    assert outcome.history[0]["train_loss"] is None
    assert all(row["train_loss"] > 0 for row in outcome.history[1:])


def test_early_stop_is_the_first_minimum_of_validation_loss_after_the_fact() -> None:
    task = toy_task(recipe={"steps": "200it", "lr": 0.05, "evaluate_every": "5it"})
    outcome = run(task)
    losses = [row["validation_loss"] for row in outcome.history]
    best = outcome.history[losses.index(min(losses))]
    assert 0 < best["step"] < 200, "the toy should overfit, or this shows nothing"
    assert outcome.summary["stop_step"] == best["step"]
    assert outcome.summary["stop"]["validation_loss"] == best["validation_loss"]


def test_the_summary_holds_test_metrics_of_those_very_weights() -> None:
    task = toy_task(recipe={"steps": "80it", "lr": 0.05, "evaluate_every": "5it"})
    outcome = run(task)
    stop = outcome.summary["stop_step"]
    again = run(task, keep=[stop])
    for when, state in (("stop", again.kept[stop]), ("end", again.final)):
        model = task.build(0)
        model.load_state_dict(state)
        values = evaluate(task, model, task.splits(0).test)
        assert outcome.summary[when]["test_loss"] == values["loss"]
        assert outcome.summary[when]["test_accuracy"] == values["accuracy"]


class Counted:
    """Examples that count how often they are read through."""

    def __init__(self, data: Any) -> None:
        self.data, self.reads, self.digest = data, 0, data.digest

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor) -> Any:
        raise AssertionError("test data are never trained on")

    def batches(self, size: int) -> Iterator[Any]:
        self.reads += 1
        return self.data.batches(size)

    def to(self, device: str) -> Counted:
        return self


def test_test_data_are_read_once_at_early_stop_and_once_at_the_end() -> None:
    task = toy_task()
    splits = task.splits(0)
    counted = Counted(splits.test)
    run(task, Splits(splits.train, splits.validation, counted))
    assert counted.reads == 2


def test_the_three_parts_are_disjoint_and_split_by_the_seed() -> None:
    task = toy_task()
    first, again, other = task.splits(0), task.splits(0), task.splits(1)
    assert first.digest == again.digest != other.digest
    rows = [next(part.batches(1000))[0] for part in (first.train, first.validation)]
    assert len(rows[0]) + len(rows[1]) == 250
    assert len(torch.unique(torch.cat(rows), dim=0)) == 250


def test_without_test_data_validation_judges() -> None:
    outcome = run(toy_task(test=None))
    assert "test_loss" not in outcome.summary["end"]
    assert outcome.summary["end"]["validation_accuracy"] > 0.5


def test_an_epoch_keeps_its_smaller_last_batch_unless_it_is_a_single_example() -> None:
    recipe = tb.Recipe(batch=32)
    assert [recipe.steps_per_epoch(n) for n in (1, 31, 32, 33, 34, 64, 65, 66)] == [1, 1, 1, 1, 2, 2, 2, 3]
    assert tb.Recipe(batch=1).steps_per_epoch(5) == 5


def test_kept_states_change_no_bit_and_hold_what_a_shorter_run_ends_with() -> None:
    plain, kept = run(toy_task()), run(toy_task(), keep=[0, 17, 60])
    assert same(plain.final, kept.final)
    assert plain.history == kept.history
    assert same(kept.kept[0], toy_task().build(0).state_dict())
    assert same(kept.kept[17], run(toy_task(recipe={"steps": "17it"})).final)
    assert same(kept.kept[60], kept.final)


def test_epochs_count_steps_of_a_pass() -> None:
    outcome = run(toy_task(recipe={"steps": "2ep", "evaluate_every": "1ep"}))  # 225 examples: 7 batches of 32
    assert [row["step"] for row in outcome.history] == [0, 7, 14], "a lone last example is left out"


def test_divergence_is_a_result() -> None:
    outcome = run(toy_task(recipe={"optimizer": "sgd", "lr": 1e30, "steps": "50it"}))
    assert outcome.status == "diverged"
    assert outcome.summary["end"] is None
    assert outcome.summary["stop_step"] == 0, "the values before it diverged"
    assert math.isfinite(outcome.summary["stop"]["test_loss"])
    assert outcome.history[-1]["step"] < 50
    assert None in outcome.history[-1].values()


def test_evaluation_weights_batches_by_size() -> None:
    x, y = toy_data()
    task = toy_task()
    model = task.build(0)
    many = x.repeat(4, 1)[:1100], y.repeat(4)[:1100]  # batches of 1000 and 100
    values = evaluate(task, model, examples(many))
    with torch.no_grad():
        whole = task.metrics(model.eval(), many)
    assert values["accuracy"] == pytest.approx(float(whole["accuracy"]), abs=1e-6)
    assert values["loss"] == pytest.approx(float(whole["loss"]), rel=1e-5)


def test_metrics_without_a_loss_get_the_tasks_loss() -> None:
    task = toy_task(metrics=lambda model, batch: {"accuracy": torch.tensor(0.25)})
    values = evaluate(task, task.build(0), task.splits(0).validation)
    assert values["accuracy"] == 0.25
    assert values["loss"] > 0


def test_rewound_training_takes_up_schedule_and_order_where_it_starts() -> None:
    whole = run(toy_task(), keep=[20])
    task = toy_task(recipe={"start": "20it", "optimizer": "sgd", "lr": 0.1})
    straight = toy_task(recipe={"optimizer": "sgd", "lr": 0.1})
    model = task.build(0)
    model.load_state_dict(whole.kept[20])
    rewound = train(task, task.splits(0), task.recipe, 0, model, Mask.full(model))
    assert [row["step"] for row in rewound.history] == [20, 30, 40, 50, 60]
    # Plain SGD has no memory, so a run from those values is the tail of a run that passed through them.
    tail = run(straight, keep=[20])
    model.load_state_dict(tail.kept[20])
    assert same(train(task, task.splits(0), task.recipe, 0, model, Mask.full(model)).final, tail.final)
