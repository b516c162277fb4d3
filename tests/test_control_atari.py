"""Games of the Atari 2600: what a net sees of them, and that sticky actions are played again as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tombola as tb
from tombola.mask import prunable
from tombola.tasks.control.data import TrainingGames
from tombola.tasks.control.games import atari, game_seed
from tombola.tasks.control.learning import A2C
from tombola.tasks.control.playing import Playing
from tombola.tasks.control.tables import Tables
from tombola.tasks.control.tasks import ATARI
from tombola.tasks.models import conv_policy

BREAKOUT = atari("breakout", 4)


def seed_of(table: int, number: int) -> int:
    return game_seed(5, table, number)


def test_a_game_is_played_again_sticky_actions_and_all() -> None:
    rng = np.random.default_rng(0)
    tables = Tables(BREAKOUT, 2, seed_of)
    assert tables.seen.shape == (2, 4, 105, 80)
    assert tables.seen.dtype == torch.uint8
    before = tables.seen
    after = tables.move(np.array([1, 1])).seen
    assert torch.equal(after[:, :3], before[:, 1:]), "four frames stacked, the newest last"
    while tables.numbers == [0, 0]:
        tables.move(rng.integers(4, size=2))
    state = tables.state()
    assert len(set(state["lengths"].tolist())) == 2
    other = Tables(BREAKOUT, 2, seed_of)
    for _ in range(21):
        other.move(rng.integers(4, size=2))  # it has had other moves before
    other.load(state)
    assert torch.equal(other.seen, tables.seen)
    assert all(torch.equal(value, other.state()[name]) for name, value in state.items())
    for _ in range(60):
        actions = rng.integers(4, size=2)
        one, two = tables.move(actions), other.move(actions)
        assert torch.equal(one.seen, two.seen)
        assert np.array_equal(one.rewards, two.rewards)


def test_rewards_are_clipped_to_learn_from() -> None:
    assert BREAKOUT.learnt(np.array([7.0, -3.0, 0.5])).tolist() == [1, -1, 0.5]


def test_the_net_is_that_of_the_paper() -> None:
    net = conv_policy(18)
    kept = {name: tuple(p.shape) for name, p in prunable(net).items()}
    assert list(kept.values()) == [
        (64, 4, 5, 5),
        (64, 64, 5, 5),
        (64, 64, 3, 3),
        (64, 64, 3, 3),
        (512, 1920),
        (512, 512),
        (18, 512),
        (1, 512),
    ]
    frames = torch.randint(256, (2, 4, 105, 80), dtype=torch.uint8)
    assert net(frames).shape == (2, 19)
    assert torch.allclose(net(frames), net(frames.float()))
    assert prunable(conv_policy(18, 0.5))["body.fc1.weight"].shape == (256, 960)


@pytest.mark.parametrize("task", ATARI, ids=lambda task: task.name)
def test_every_task_can_be_drawn_from(task: tb.Task) -> None:
    assert tb.get_task(task.name) is task
    splits = task.splits(0)
    train: Any = splits.train
    assert isinstance(train, TrainingGames)
    assert train.rules.moves % task.recipe.batch == 0
    assert task.recipe.steps_per_epoch(len(train)) == 1000
    envs = train.game.tables(1)
    assert envs.single_action_space.n == train.game.actions
    with torch.device("meta"):
        assert task.model()(torch.empty(1, *train.game.shape)).shape == (1, train.game.actions + 1)


def test_a_training_goes_on_amid_what_was_played() -> None:
    rules, net = A2C(games=2, length=6, most_ratio=1.5, most_advantage=1.0), conv_policy(4, 0.1)
    straight = Playing(BREAKOUT, rules, 3, tb.Recipe(batch=6))
    for step in range(3):
        torch.manual_seed(step)
        assert bool(rules.loss(net, straight.batch(net)).isfinite())
    state = {name: value.clone() for name, value in straight.state().items()}
    assert state["next"] == 6
    assert state["moves.seen"].shape == (12, 4, 105, 80)
    assert float(state["moves.advantage"].abs().max()) <= 1
    again = Playing(BREAKOUT, rules, 3, tb.Recipe(batch=6))
    again.load(state)
    for step in range(3, 6):
        torch.manual_seed(step)
        one = straight.batch(net)
        torch.manual_seed(step)
        two = again.batch(net)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
