"""Trainings that end when the masks of their channels have settled."""

from __future__ import annotations

from typing import Any

import pytest
from test_updates_resume import assert_same
from toy import same, toy_task
from updating import changing, go, image_task, on, stopped, vector_task

import tombola as tb
from tombola.early_bird import channel_mask, drawn_at, scales
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.task import Task

EPOCH = 7
"""Steps of the toy's."""


def settling(task: Task, **asked: float) -> Task:
    recipe = task.recipe.model_dump() | {"until_settled": {"density": 0.5, "window": 3, "distance": 0.05} | asked}
    return tb.Task(**{**vars(task), "recipe": tb.Recipe(**recipe)})


def looks(task: Task, first: int = 0, density: float = 0.5) -> tuple[list[int], list[Mask]]:
    """The ends of epochs of the plain training, and the channel masks there."""
    last = task.recipe.steps.steps(EPOCH)
    steps = [step for step in range(EPOCH, last + 1, EPOCH) if step > first]
    kept = go(task, Mask.full(task.build(0)), keep=steps).kept
    masks = []
    for step in steps:
        model = task.build(0)
        model.load_state_dict(kept[step])
        masks.append(channel_mask(scales(model), density))
    return steps, masks


RECIPE: dict[str, Any] = {"steps": "140it", "lr": 0.02, "scale_l1": 0.01}


@pytest.mark.parametrize("every", ["10it", "1ep", "2it", "500it"])
def test_it_ends_at_the_first_epoch_at_which_masks_have_settled(every: str) -> None:
    task = toy_task(recipe={**RECIPE, "evaluate_every": every})
    steps, masks = looks(task)
    number = drawn_at(masks, 3, 0.05)
    assert number is not None
    assert 2 < number < len(steps) - 1, "it should settle on the way, or this shows nothing"
    end = steps[number]
    outcome = go(settling(task), Mask.full(task.build(0)), keep=[end, end + 1])
    plain = go(task, Mask.full(task.build(0)), keep=[end])
    assert outcome.status == "finished"
    assert outcome.summary["settled"] is True
    assert outcome.summary["steps"] == end
    assert outcome.kept.keys() == {end}
    assert same(outcome.final, plain.kept[end]), "looking changes no bit"
    apart = tb.Duration.of(every).steps(EPOCH)
    assert [row["step"] for row in outcome.history] == sorted({*range(0, end, apart), end})
    assert outcome.summary["end"]["validation_loss"] == outcome.history[-1]["validation_loss"]
    assert all(row == past for row, past in zip(outcome.history[:-1], plain.history, strict=False))
    assert "settled" not in plain.summary


def test_where_they_do_not_settle_it_runs_to_the_end_and_says_so() -> None:
    task = toy_task(recipe={**RECIPE, "steps": "40it"})
    outcome = go(settling(task, window=8), Mask.full(task.build(0)))
    plain = go(task, Mask.full(task.build(0)))
    assert outcome.summary["settled"] is False
    assert outcome.summary["steps"] == 40
    assert outcome.history == plain.history
    assert same(outcome.final, plain.final)


def test_a_training_shorter_than_an_epoch_has_not_settled() -> None:
    task = toy_task(recipe={"steps": "5it"})
    assert go(settling(task), Mask.full(task.build(0))).summary["settled"] is False


@pytest.mark.parametrize("start", [14, 17])
def test_a_later_start_has_its_first_look_at_the_end_of_the_epoch_after_it(start: int) -> None:
    task = toy_task(recipe={**RECIPE, "start": f"{start}it"})
    steps, masks = looks(task, first=start)
    assert steps[0] == 21
    number = drawn_at(masks, 3, 0.05)
    assert number is not None
    outcome = go(settling(task), Mask.full(task.build(0)))
    assert outcome.summary["settled"] is True
    assert outcome.history[-1]["step"] == steps[number]
    assert outcome.summary["steps"] == steps[number] - start


def test_stopped_in_the_middle_it_goes_on_to_the_same_end() -> None:
    task = settling(toy_task(recipe={**RECIPE, "evaluate_every": "1it"}))
    mask = Mask.full(task.build(0))
    calm = go(task, mask)
    end = calm.summary["steps"]
    assert calm.summary["settled"]
    for step in (EPOCH, EPOCH + 1, EPOCH + 2, end - 1, end):  # checkpoints before the end of an epoch, at it, after it
        assert_same(go(task, mask, slot=stopped(task, mask, step).slot()), calm)


def test_ten_epochs_and_more_come_back_in_their_order() -> None:
    task = settling(toy_task(recipe={**RECIPE, "steps": "16ep", "evaluate_every": "1ep"}), window=14, distance=0.0)
    mask = Mask.full(task.build(0))
    saved = stopped(task, mask, 13 * EPOCH).slot().saved
    assert saved is not None
    _, masks = looks(toy_task(recipe={**RECIPE, "steps": "12ep"}))
    assert saved.progress.channels == masks
    assert len(set(masks)) > 2, "they should differ, or their order doesn't show"


@pytest.mark.parametrize("engine", ["masked", "compact", "sparse"])
def test_on_every_engine_under_a_mask(engine: str) -> None:
    task = image_task(recipe={"optimizer": "sgd", "lr": 0.05, "engine": engine, "steps": "90it"})
    mask = tb.prune(tb.score(task.build(0), "magnitude"), 0.5)
    outcome = go(settling(task, window=4, distance=0.0), mask)
    assert outcome.summary["settled"]
    assert outcome.summary["steps"] % 3 == 0
    assert outcome.summary["steps"] < 90
    assert outcome.mask == mask
    reference = go(on(settling(task, window=4, distance=0.0), "masked"), mask)
    assert outcome.summary["steps"] == reference.summary["steps"]
    assert outcome.summary["end"]["test_loss"] == pytest.approx(reference.summary["end"]["test_loss"], rel=1e-4)


def test_an_update_that_takes_the_last_step_of_an_epoch_is_looked_after_too() -> None:
    task = toy_task(recipe={**RECIPE, **changing("rigl", "6it", "7it")})
    mask = tb.prune(tb.score(task.build(0), "magnitude"), 0.5)
    assert go(settling(task, window=2, distance=1.0), mask).summary["steps"] == 2 * EPOCH


def test_divergence_is_a_result() -> None:
    task = toy_task(recipe={"optimizer": "sgd", "lr": 1e30, "steps": "50it", "evaluate_every": "50it"})
    outcome = go(settling(task), Mask.full(task.build(0)))
    assert outcome.status == "diverged"
    assert outcome.summary["settled"] is False
    assert outcome.summary["end"] is None


def test_what_can_never_settle_is_refused_before_anything_is_trained() -> None:
    def watch(done: int, total: int, row: Any) -> None:
        raise AssertionError("nothing should have been trained")

    for task, message in (
        (settling(vector_task()), "this net has none"),
        (settling(image_task(), density=0.01), "every layer keeps a channel"),
    ):
        with pytest.raises(tb.InputError, match=message):
            go(task, Mask.full(task.build(0)), watch=watch)


def test_values_beyond_the_end_are_refused(store: tb.Store) -> None:
    task = settling(toy_task(recipe=RECIPE))
    run = Lab(task, store).train(0)
    end = run.summary["steps"]
    assert end < 140
    assert same(run.at(tb.Duration(end)), run.final)
    with pytest.raises(tb.InputError, match=f"goes from step 0 to {end}, so it has no values at step {end + 1}"):
        run.at(tb.Duration(end + 1))
