"""Learning from games by hand: advantages, losses, games that are played again, batches, and what judges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tombola as tb
from tombola.tasks.control import data as control_data
from tombola.tasks.control.data import JudgingGames, TrainingGames, judged, returns
from tombola.tasks.control.games import ACROBOT, CARTPOLE, LUNARLANDER, Game, game_seed
from tombola.tasks.control.learning import A2C, PPO, Moves, Rules, advantages
from tombola.tasks.control.playing import Playing
from tombola.tasks.control.tables import Tables

GAMES = [CARTPOLE, ACROBOT, LUNARLANDER]
SEEN = torch.tensor([[0.5, -1.0], [2.0, 0.25], [-0.5, 1.5]])


class Fixed(nn.Module):
    """Two actions, of which the second has this logit more, and a value."""

    def __init__(self, logit: float = 0.0, value: float = 0.0, actions: int = 2) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.tensor([0.0] * (actions - 1) + [logit, value]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out.expand(len(x), -1)


def slope(loss: Tensor, net: Fixed) -> Tensor:
    return torch.autograd.grad(loss, net.out)[0]


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers)[:, None]


def test_advantages_of_three_moves_by_hand() -> None:
    rewards, values, following = column(1.0, 2.0, 3.0), column(0.5, 1.0, 1.5), column(1.0, 1.5, 4.0)
    alive = torch.zeros(3, 1, dtype=torch.bool)
    found = advantages(rewards, values, following, alive, 0.5, 1.0)
    assert found.flatten().tolist() == [1 + 1 + 0.75 + 0.5 - 0.5, 2 + 1.5 + 1 - 1, 3 + 2 - 1.5]
    found = advantages(rewards, values, following, alive, 0.5, 0.5)
    surprises = [1.0, 1.75, 3.5]
    assert found.flatten().tolist() == [1 + 1.75 / 4 + 3.5 / 16, 1.75 + 3.5 / 4, 3.5]
    assert advantages(rewards, values, following, alive, 0.5, 0.0).flatten().tolist() == surprises


def test_what_comes_after_an_end_is_no_consequence() -> None:
    rewards, values, following = column(1.0, 2.0, 3.0), column(0.5, 1.0, 1.5), column(1.0, 0.0, 4.0)
    ended = torch.tensor([[False], [True], [False]])
    found = advantages(rewards, values, following, ended, 0.5, 1.0)
    assert found.flatten().tolist() == [1 + 1 - 0.5, 2 - 1, 3 + 2 - 1.5]


@given(st.data())
def test_with_smoothing_1_they_are_the_returns_of_n_steps_minus_the_values(data: Any) -> None:
    moves = data.draw(st.integers(1, 8))
    numbers = st.lists(st.floats(-2, 2, width=32), min_size=moves, max_size=moves)
    rewards, values, last = (data.draw(numbers) for _ in range(3))
    ended = data.draw(st.lists(st.booleans(), min_size=moves, max_size=moves))
    following = [0.0 if over else nearest for over, nearest in zip(ended, [*values[1:], last[0]], strict=True)]
    found = advantages(column(*rewards), column(*values), column(*following), torch.tensor(ended)[:, None], 0.9, 1.0)
    for move in range(moves):
        end = next((t for t in range(move, moves) if ended[t]), moves - 1)
        n_steps = sum(0.9 ** (t - move) * rewards[t] for t in range(move, end + 1))
        n_steps += 0.9 ** (end + 1 - move) * following[end]
        assert float(found[move]) == pytest.approx(n_steps - values[move], abs=1e-4)


def batch(**changes: Any) -> Moves:
    own = {
        "seen": SEEN,
        "action": torch.tensor([0, 1, 1]),
        "log_chosen": torch.tensor([0.5, 0.25, 0.75]).log(),
        "advantage": torch.tensor([1.0, -2.0, 3.0]),
        "target": torch.tensor([1.0, 2.0, 4.0]),
    }
    return Moves(**(own | changes))


def by_hand(rules: Rules, gains: Sequence[float], p: float, value: float) -> float:
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    errors = [(target - value) ** 2 for target in (1.0, 2.0, 4.0)]
    return rules.value * sum(errors) / 3 - sum(gains) / 3 - rules.entropy * entropy


def test_the_loss_of_a2c_by_hand() -> None:
    p, rules = 1 / (1 + math.exp(-0.3)), A2C(games=1, length=3, entropy=0.05, value=0.25)
    gains = [math.log(1 - p), -2 * math.log(p), 3 * math.log(p)]
    assert float(rules.loss(Fixed(0.3, 1.5), batch()).detach()) == pytest.approx(
        by_hand(rules, gains, p, 1.5), rel=1e-5
    )


def test_the_weight_of_a_move_is_its_ratio_and_bounded() -> None:
    net, rules = Fixed(0.3, 1.5), A2C(games=1, length=3, entropy=0.0, value=0.0, most_ratio=1.5)
    p = 1 / (1 + math.exp(-0.3))
    gains = [(1 - p) / 0.5 * math.log(1 - p), -2 * 1.5 * math.log(p), 3 * p / 0.75 * math.log(p)]
    assert p / 0.25 > 1.5
    loss = rules.loss(net, batch())
    assert float(loss.detach()) == pytest.approx(-sum(gains) / 3, rel=1e-5)
    expected = (-(1 - p) / 0.5 * p - 2 * 1.5 * (1 - p) + 3 * p / 0.75 * (1 - p)) / 3
    assert float(slope(loss, net)[1]) == pytest.approx(-expected, rel=1e-5), "the ratio is a weight, and learns nothing"


def test_advantages_are_clipped_where_that_is_asked_for() -> None:
    moves = batch()
    assert A2C(games=1, length=3).prepared(moves) is moves
    clipped = A2C(games=1, length=3, most_advantage=1.0).prepared(moves)
    assert clipped.advantage.tolist() == [1, -1, 1]
    assert clipped.target is moves.target


def test_ppo_brings_advantages_to_mean_0_and_deviation_1() -> None:
    own = PPO(games=1, length=3).prepared(batch()).advantage
    assert float(own.mean()) == pytest.approx(0, abs=1e-6)
    assert float(own.std()) == pytest.approx(1, rel=1e-5)


def test_the_loss_of_ppo_by_hand() -> None:
    p, rules = 1 / (1 + math.exp(-0.3)), PPO(games=1, length=3, entropy=0.05, value=0.25)
    ratios = [(1 - p) / 0.5, p / 0.25, p / 0.75]
    assert 0.8 < ratios[0] < 1.2 < ratios[1]
    assert ratios[2] < 0.8
    gains = [ratios[0], -2 * ratios[1], 3 * ratios[2]]  # the lesser of both: a loss isn't clipped, nor is what lags
    assert float(rules.loss(Fixed(0.3, 1.5), batch()).detach()) == pytest.approx(
        by_hand(rules, gains, p, 1.5), rel=1e-5
    )


@pytest.mark.parametrize(("before", "advantage", "moves"), [(0.25, 1.0, False), (0.25, -1.0, True), (0.5, 1.0, True)])
def test_ppo_pays_nothing_beyond_its_clip(before: float, advantage: float, moves: bool) -> None:
    net, rules = Fixed(0.3), PPO(games=1, length=1, entropy=0.0, value=0.0)
    one = Moves(SEEN[:1], torch.tensor([1]), torch.tensor([before]).log(), torch.tensor([advantage]), torch.zeros(1))
    assert bool(slope(rules.loss(net, one), net)[:2].any()) == moves


def test_at_the_first_batch_ppo_and_a2c_go_the_same_way() -> None:
    net, every = Fixed(0.3, 1.5), (A2C(games=1, length=3), PPO(games=1, length=3))
    now = net(SEEN)[:, :-1].log_softmax(dim=1).gather(1, batch().action[:, None])[:, 0].detach()
    one, other = (slope(rules.loss(net, batch(log_chosen=now)), net) for rules in every)
    assert torch.allclose(one, other, atol=1e-6)


def some_moves(game: Game, tables: int, count: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(game.actions, size=tables) for _ in range(count)]


@pytest.mark.parametrize("game", [CARTPOLE, ACROBOT, LUNARLANDER])
def test_games_are_those_of_gymnasium(game: Game) -> None:
    game = replace(game, limit=60)
    tables = Tables(game, 3, lambda table, number: 100 * table + number)
    envs, number = [gymnasium.make(game.id, max_episode_steps=60) for _ in range(3)], [0, 0, 0]
    for table, env in enumerate(envs):
        env.reset(seed=100 * table)
    for actions in some_moves(game, 3, 150):
        moved = tables.move(actions)
        for table, env in enumerate(envs):
            seen, reward, over, broken_off, _ = env.step(int(actions[table]))
            assert np.array_equal(moved.seen[table].numpy(), seen)
            assert moved.rewards[table] == reward
            assert (moved.over[table], moved.broken_off[table]) == (over, broken_off)
            if over or broken_off:
                number[table] += 1
                seen, _ = env.reset(seed=100 * table + number[table])
            assert np.array_equal(tables.seen[table].numpy(), seen)
    assert tables.numbers == number
    assert max(number) > 0


@pytest.mark.parametrize("game", [CARTPOLE, replace(ACROBOT, limit=47), LUNARLANDER], ids=lambda game: game.id)
@pytest.mark.parametrize("count", [0, 130])
def test_games_are_played_again_to_where_they_were(game: Game, count: int) -> None:
    def seed_of(table: int, number: int) -> int:
        return game_seed(5, table, number)

    tables = Tables(game, 4, seed_of)
    for actions in some_moves(game, 4, count):
        tables.move(actions)
    state = tables.state()
    other = Tables(game, 4, seed_of)
    for actions in some_moves(game, 4, 21, seed=2):  # it has had other games before
        other.move(actions)
    other.load(state)
    assert torch.equal(other.seen, tables.seen)
    assert all(torch.equal(value, other.state()[name]) for name, value in state.items())
    for actions in some_moves(game, 4, 60, seed=1):
        one, two = tables.move(actions), other.move(actions)
        assert torch.equal(one.seen, two.seen)
        assert torch.equal(tables.seen, other.seen)
        assert np.array_equal(one.rewards, two.rewards)
        assert np.array_equal(one.ended, two.ended)
    assert count == 0 or len(set(state["lengths"].tolist())) > 1 or game.id == ACROBOT.id, "games of unlike age"


@pytest.mark.parametrize("limit", [7, 200])
def test_a_game_that_is_broken_off_is_worth_what_it_showed_last(limit: int) -> None:
    game, rules = replace(CARTPOLE, limit=limit), A2C(games=3, length=40, discount=0.9)
    playing = Playing(game, rules, 0, tb.Recipe(batch=120))
    twin = Tables(game, 3, lambda table, number: game_seed(0, table, number))
    found = playing._play(Fixed(0.0, 7.0))
    actions, targets = found.action.reshape(40, 3), found.target.reshape(40, 3)
    expected, broken, over = torch.full((3,), 7.0), 0, 0
    history = [twin.move(own.numpy()) for own in actions]
    for moved, target in reversed(list(zip(history, targets, strict=True))):
        for table in range(3):
            if moved.over[table]:
                expected[table], over = 0.0, over + 1
            elif moved.broken_off[table]:
                expected[table], broken = 7.0, broken + 1
        expected = 0.01 + 0.9 * expected
        assert torch.allclose(target, expected, atol=1e-5)
    assert (broken > 0, over > 0) == ((limit == 7), (limit == 200))


def test_batches_part_what_was_played_and_pass_over_it() -> None:
    rules = PPO(games=3, length=4, passes=2)
    playing, net = Playing(CARTPOLE, rules, 0, tb.Recipe(batch=6)), Fixed()
    torch.manual_seed(0)
    batches = [playing.batch(net) for _ in range(4)]
    for one_pass in (batches[:2], batches[2:]):
        rows = sorted(tuple(row) for part in one_pass for row in part.seen.tolist())
        assert len(rows) == len(set(rows)) == 12
    assert not torch.equal(batches[0].seen, batches[2].seen), "each pass in an order of its own"
    fresh = playing.batch(net)
    assert not {tuple(r) for r in fresh.seen.tolist()} & {tuple(r) for part in batches for r in part.seen.tolist()}


def test_the_history_tells_of_the_last_hundred_games() -> None:
    playing = Playing(replace(CARTPOLE, limit=3), A2C(games=2, length=7), 0, tb.Recipe(batch=14))
    assert math.isnan(playing.seen["return"])
    playing.batch(Fixed())
    assert playing.seen == {"return": 3.0}
    playing._returns.extend(range(1000))
    assert playing.seen == {"return": sum(range(900, 1000)) / 100}


@pytest.mark.parametrize("rules", [A2C(games=2, length=6), PPO(games=2, length=6, passes=2, smoothing=0.9)])
@pytest.mark.parametrize("game", [CARTPOLE, replace(LUNARLANDER, limit=15)], ids=lambda game: game.id)
@pytest.mark.parametrize("after", [0, 4, 9])
def test_a_training_under_way_goes_on_where_it_was(game: Game, rules: Any, after: int) -> None:
    recipe, net = tb.Recipe(batch=3), Fixed(0.2, 0.1, game.actions)

    def played(playing: Playing, first: int, count: int) -> list[Moves]:
        found = []
        for step in range(first, first + count):
            torch.manual_seed(step)
            found.append(playing.batch(net))
        return found

    straight, stopped = (Playing(game, rules, 3, recipe) for _ in range(2))
    wanted = played(straight, 0, after + 9)[after:]
    played(stopped, 0, after)
    state = {name: value.clone() for name, value in stopped.state().items()}
    again = Playing(game, rules, 3, recipe)
    played(again, 50, 5)  # of another past
    again.load(state)
    for one, two in zip(wanted, played(again, after, 9), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert again.seen == pytest.approx(straight.seen, nan_ok=True)


def test_examples_depend_on_their_index_alone() -> None:
    games = TrainingGames(CARTPOLE, A2C(games=2, length=6, discount=0.5), 1000)
    assert len(games) == 1000
    many = games.take(torch.tensor([40, 3, 999, 40, 63]))
    for place, number in enumerate((40, 3, 999, 40, 63)):
        assert all(
            torch.equal(a[place : place + 1], b) for a, b in zip(many, games.take(torch.tensor([number])), strict=True)
        )
    assert torch.equal(many.log_chosen, torch.full((5,), -math.log(2)))
    assert torch.equal(many.advantage, many.target)
    assert float(many.target[4]) == pytest.approx(0.01), "the last of the 32 moves of its game"
    assert float(many.target[0]) == pytest.approx(sum(0.01 * 0.5**k for k in range(24)), rel=1e-2)
    assert sum(len(part.action) for part in games.batches(300)) == 1000
    assert games.digest != TrainingGames(CARTPOLE, A2C(games=2, length=7), 1000).digest


def one_by_one(game: Game, seeds: Sequence[int], action: int) -> list[float]:
    """The returns of games in which there is but one action."""
    env, found = gymnasium.make(game.id, max_episode_steps=game.limit), []
    for seed in seeds:
        env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            _, reward, over, broken_off, _ = env.step(action)
            total, ended = total + float(reward), over or broken_off
        found.append(total)
    return found


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_every_game_that_judges_counts_once(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(control_data, "SIDE_BY_SIDE", at_once)
    games = JudgingGames.of(LUNARLANDER, 7, 0, "test")
    found = returns(LUNARLANDER, Fixed(100.0, actions=4), games.seeds)
    assert found.tolist() == one_by_one(LUNARLANDER, games.seeds.tolist(), 3)


def test_the_same_games_by_the_same_net_end_the_same() -> None:
    games, before = JudgingGames.of(CARTPOLE, 20, 0, "validation"), torch.get_rng_state()
    first, again = (returns(CARTPOLE, Fixed(), games.seeds) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
    assert len(set(first.tolist())) > 5
    others = JudgingGames.of(CARTPOLE, 20, 1, "validation")
    assert games.digest != others.digest
    assert not set(games.seeds.tolist()) & set(others.seeds.tolist())
    metrics = judged(CARTPOLE, Fixed(), games.seeds)
    assert float(metrics["return"]) == -float(metrics["loss"]) == pytest.approx(float(first.mean()))


def test_actions_are_chosen_as_often_as_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    move = Tables.move

    def counted(self: Tables, actions: Any) -> Any:
        chosen.extend(actions.tolist())
        return move(self, actions)

    monkeypatch.setattr(Tables, "move", counted)
    returns(CARTPOLE, Fixed(math.log(3)), JudgingGames.of(CARTPOLE, 100, 0, "test").seeds)
    share = sum(chosen) / len(chosen)
    assert abs(share - 0.75) < 5 * math.sqrt(0.1875 / len(chosen))
