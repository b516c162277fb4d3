"""The tasks of control as a whole: learning, tickets with controls, resuming, and what they refuse."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import interrupted, resumed
from toy import drawn, same

import tombola as tb
from tombola.audits.controls.corruption import corrupted
from tombola.durations import Duration
from tombola.engines import Plan, open_session
from tombola.lab import Lab
from tombola.mask import Mask, prunable
from tombola.tasks.control.data import TrainingGames
from tombola.tasks.control.games import CARTPOLE, Game
from tombola.tasks.control.learning import A2C, PPO, Rules
from tombola.tasks.control.tasks import CLASSIC, game_splits

WEIGHTS = {"cartpole": 33_664, "acrobot": 133_632, "lunarlander": 134_400}
TINY_A2C = A2C(games=4, length=5)
TINY_PPO = PPO(games=4, length=10, passes=2, smoothing=0.9)


def tiny(rules: Rules = TINY_A2C, game: Game = CARTPOLE, judging: int = 4, **recipe: Any) -> tb.Task:
    """CartPole with little of everything."""
    changes = {"steps": "12it", "batch": 20, "evaluate_every": "2it", "optimizer": "rmsprop", "lr": 1e-3} | recipe
    return replace(
        tb.get_task("cartpole"),
        load=game_splits(game, rules, 80, judging),
        loss=rules.loss,
        recipe=tb.Recipe(**changes),
        name="tiny",
    )


@pytest.mark.parametrize("task", CLASSIC, ids=lambda task: task.name)
def test_every_task_can_be_drawn_from_as_it_stands(task: tb.Task) -> None:
    assert tb.get_task(task.name) is task
    splits = task.splits(0)
    train: Any = splits.train
    assert isinstance(train, TrainingGames)
    assert train.rules.moves % task.recipe.batch == 0
    model = task.build(0)
    assert sum(p.numel() for p in prunable(model).values()) == WEIGHTS[task.name.removesuffix("-ppo")]
    found = train.take(torch.tensor([0, 70]))
    assert found.seen.shape == (2, *train.game.shape)
    assert model(found.seen).shape == (2, train.game.actions + 1)
    assert math.isfinite(float(task.loss(model, found).detach()))
    envs = train.game.tables(1)
    assert envs.single_action_space.n == train.game.actions
    assert envs.envs[0].spec.max_episode_steps == train.game.limit
    other = task.splits(1)
    assert splits.test is not None
    assert other.test is not None
    assert len(splits.test) == 2 * len(splits.validation)
    assert splits.test.digest == other.test.digest
    assert splits.validation.digest != other.validation.digest
    tb.cost(model, example=found.seen)


def test_an_epoch_is_the_papers_number_of_games_in_moves() -> None:
    for name, games, moves in (("cartpole", 160, 200), ("acrobot", 320, 100), ("lunarlander", 640, 250)):
        for task in (tb.get_task(name), tb.get_task(f"{name}-ppo")):
            train: Any = task.splits(0).train
            updates = task.recipe.steps_per_epoch(len(train))
            assert updates * task.recipe.batch == games * moves * train.rules.passes


def test_a_short_training_balances_longer_than_chance() -> None:
    rules = PPO(games=8, length=64, passes=4, smoothing=0.95)
    task = tiny(rules, judging=20, steps="240it", batch=64, evaluate_every="240it", optimizer="adam", lr=1e-3)
    model, splits = task.build(0), task.splits(0)
    session = open_session(Plan("masked", ""), model, Mask.full(model), task, splits.train, task.recipe, 0)
    before = session.evaluate(splits.validation)["return"]
    session.stretch(240)
    assert before < 40
    assert session.evaluate(splits.validation)["return"] > 80
    assert session.seen["return"] > before


@pytest.mark.parametrize(("rules", "batch"), [(TINY_A2C, 20), (TINY_A2C, 5), (TINY_PPO, 20)])
def test_a_resume_goes_on_with_the_games_under_way(tmp_path: Path, rules: Rules, batch: int) -> None:
    task = tiny(rules, batch=batch)
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task, store, 6)
        run, steps = resumed(task, store)
        assert steps == [6, 8, 10, 12]
        straight = Lab(task, calm).train(0)
        assert same(run.final, straight.final)
        assert run.history == straight.history
        assert "acting" in run.summary["engine_reason"]
        assert run.history[0]["train_return"] is None
        assert run.history[-1]["train_return"] > 1


def test_a_ticket_is_drawn_rewound_and_has_controls(tmp_path: Path) -> None:
    options = {"rounds": 2, "survivors": "rewind", "back_to": "1ep", "controls": ["reinit", "shuffled"]}
    with tb.Store(tmp_path) as store:
        found = drawn(store, tiny(), **options)
        last = found.rounds[-1]
        assert last.mask.density == pytest.approx(0.64, abs=1e-4)
        dense = found.rounds[0].run
        assert (dense.metric("stop", "test") or 0) > 5
        for name, kept in last.mask.items():
            assert not bool(last.run.final[name][~kept].any())
            assert torch.equal(last.run.start[name], dense.at(Duration(1, "ep"))[name] * kept)
        assert {row["arm"] for row in found.rows()} == {"ticket", "reinit", "shuffled"}


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_what_prunes_before_training_scores_on_games_of_chance(tmp_path: Path, method: str) -> None:
    with tb.Store(tmp_path) as store:
        found = drawn(store, tiny(steps="2it"), method=method, densities=[0.3])
        assert found.rounds[-1].mask.density == pytest.approx(0.3, abs=1e-3)


def test_a_loop_of_ones_own_is_guarded() -> None:
    task = tiny()
    model, train = task.build(0), task.splits(0).train
    mask = tb.prune(tb.score(model, "magnitude"), 0.2)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    games: Any = train
    playing = games.play(0, task.recipe)
    with tb.guard(model, optimizer, mask):
        for _ in range(3):
            optimizer.zero_grad()
            task.loss(model, playing.batch(model)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert all(not bool(model.get_parameter(name)[~kept].any()) for name, kept in mask.items())


@pytest.mark.parametrize("engine", ["sparse", "compact"])
def test_engines_that_need_data_beforehand_are_refused(tmp_path: Path, engine: str) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match="its data come of acting; use engine auto"):
        Lab(tiny(engine=engine), store).train(0)


def test_rules_that_need_a_batch_beforehand_are_refused(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match="rigl need the gradients of a batch before"):
        drawn(store, tiny(), method="rigl", densities=[0.3], update_every="2it")


@pytest.mark.parametrize("name", ["random_labels", "shuffled_pixels", "half_data"])
def test_controls_on_spoilt_data_say_why_they_cannot_be(name: str) -> None:
    with pytest.raises(tb.InputError, match=f"'{name}' spoils data that are there before the training, but these come"):
        corrupted(tiny().splits(0), name, 0, 0)


def test_batches_that_leave_a_rest_are_refused(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match=r"batch must divide the 20 moves .* got 16"):
        Lab(tiny(batch=16), store).train(0)


@pytest.mark.parametrize(
    ("task", "package"), [("cartpole", "gymnasium"), ("lunarlander", "Box2D"), ("atari-krull", "ale_py")]
)
def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, task: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tb.InputError, match=rf"{package}.*; run pip install 'tombola\[rl\]'"):
        tb.get_task(task).splits(0)


def test_the_tasks_are_listed_without_their_packages() -> None:
    code = (
        "import sys, tombola.tasks; tombola.tasks.get_task('atari-krull').build(0);"
        "sys.exit(any(m.split('.')[0] in ('gymnasium', 'ale_py', 'Box2D') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
