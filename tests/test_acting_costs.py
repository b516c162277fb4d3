"""What trainings cost whose data come of acting: the passes of playing, counted while they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_acting import bandit
from test_control_tasks import TINY_A2C, TINY_PPO, tiny
from test_resume import interrupted, resumed
from torch import Tensor, nn
from updating import changing, first_mask, go, spy

import tombola as tb
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.control.data import TrainingGames
from tombola.tasks.control.games import CARTPOLE
from tombola.tasks.control.learning import Rules

DENSE = 2 * (12 * 24 + 24 * 3)
"""Operations of a forward pass of the bandit's net: two a weight."""


def examples_passed(train: TrainingGames, model: nn.Module, recipe: tb.Recipe, steps: int) -> int:
    """How many examples a net sees while the games of so many steps are played."""
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(output)

    handle, playing = model.register_forward_hook(count), train.play(0, recipe)
    for _ in range(steps):
        playing.batch(model)
    handle.remove()
    return seen


@pytest.mark.parametrize(("rules", "batch"), [(TINY_A2C, 20), (TINY_A2C, 5), (TINY_PPO, 20), (TINY_PPO, 40)])
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 9])
def test_passes_of_playing_are_those_that_are_made(rules: Rules, batch: int, steps: int) -> None:
    task = tiny(rules, batch=batch)
    train: Any = task.splits(0).train
    assert train.forward_passes(steps, task.recipe) == examples_passed(train, task.build(0), task.recipe, steps)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(0, 50), st.integers(0, 50))
def test_stretches_add_up(games: int, length: int, passes: int, first: int, more: int) -> None:
    train = TrainingGames(CARTPOLE, Rules(games=games, length=length, passes=passes), 100)
    recipe = tb.Recipe(batch=games)
    times = train.forward_passes(first + more, recipe) / (games * length + games)
    assert times == int(times)
    # Steps that train on every move ``passes`` times are played for once, before the first of them.
    assert (times - 1) * length * passes < first + more <= times * length * passes


def test_a_step_is_three_passes_of_its_batch_and_one_of_playing() -> None:
    task = bandit()
    for mask in (Mask.full(task.build(0)), first_mask(task, 0.3, "set")):
        assert go(task, mask, keep=[3, 17]).summary["flops"] == (3 + 1) * 2 * mask.kept * 32 * 60


def test_games_are_played_at_the_density_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    task = bandit(recipe=changing("gradual", "7it", "40it", density=0.2))
    updates = spy(monkeypatch, "gradual")
    found = go(task, first_mask(task, None, "gradual")).summary["flops"]
    kept = [DENSE // 2, *(update.change.mask.kept for update in updates)]
    lengths = [7, 7, 7, 7, 7, 25]
    assert found == (3 + 1) * 2 * 32 * sum(n * steps for n, steps in zip(kept, lengths, strict=True))


def test_a_resume_and_an_older_record_cost_the_same(tmp_path: Path) -> None:
    task = tiny(TINY_PPO, steps="11it")
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task, store, 6)
        run, _ = resumed(task, store)
        straight = Lab(task, calm).train(0)
        found = run.summary["flops"]
        assert found == straight.summary["flops"] == straight.lab.training_flops(straight)
        # Four steps pass twice over 40 moves in batches of 20: so 11 steps have three times of playing.
        assert found == 2 * straight.mask.kept * (3 * 11 * 20 + 3 * (40 + 4))


def test_a_later_start_plays_anew() -> None:
    task = tiny(TINY_PPO, start="3it", steps="11it")
    mask = Mask.full(task.build(0))
    assert go(task, mask).summary["flops"] == 2 * mask.kept * (3 * 8 * 20 + 2 * (40 + 4))
