"""The tasks of control: those of Yu et al. (2020), section 4.2, with A2C, and the classic ones with PPO too."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tombola.durations import Duration
from tombola.recipe import Recipe
from tombola.tasks.control.data import JudgingGames, TrainingGames, judged
from tombola.tasks.control.games import ACROBOT, CARTPOLE, LUNARLANDER, Game, atari
from tombola.tasks.control.learning import A2C, PPO, Rules
from tombola.tasks.data.download import Progress
from tombola.tasks.models import conv_policy, mlp_policy
from tombola.tasks.task import LoadSplits, Splits, Task

_EPOCH = Duration(1, "ep")
_A2C = A2C(games=32, length=4, entropy=0.0)
_PPO = PPO(games=8, length=128, passes=4, smoothing=0.95)
_ATARI = A2C(games=1024, length=6, most_ratio=1.5, most_advantage=1.0)


def game_splits(game: Game, rules: Rules, moves: int, judging: int) -> LoadSplits:
    """Games to train in, ``moves`` an epoch, and as many to select by and half as many again to be judged by.

    Those that select are the seed's own; those that judge are the same for every seed.
    """

    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        game.check()
        train = TrainingGames(game, rules, moves * rules.passes)
        return Splits(
            train, JudgingGames.of(game, judging, seed, "validation"), JudgingGames.of(game, 2 * judging, 0, "test")
        )

    return splits


def _classic(
    name: str, game: Game, about: str, *, width: int, moves: int, judging: int, margin: float, ppo: int
) -> tuple[Task, Task]:
    """The task of a game by A2C, in 20 epochs of so many ``moves``, and by PPO, in ``ppo`` of them."""
    model = partial(mlp_policy, game.shape[0], width, game.actions)

    def task(name: str, rules: Rules, recipe: Recipe, how: str) -> Task:
        return Task(
            name=name,
            model=model,
            scaled=model,
            load=game_splits(game, rules, moves, judging),
            extra=game.extra,
            input_shape=game.shape,
            loss=rules.loss,
            metrics=partial(judged, game),
            metric="return",
            recipe=recipe,
            allocation="global",
            rounds=20,
            margin=margin,
            description=f"MLP of 3 layers of {width} {about} ({game.id}), {how}",
        )

    a2c = Recipe(steps=Duration(20, "ep"), batch=128, optimizer="rmsprop", lr=1e-4, evaluate_every=_EPOCH)
    quick = Recipe(steps=Duration(ppo, "ep"), batch=256, optimizer="adam", lr=3e-4, evaluate_every=_EPOCH)
    return (
        task(name, _A2C, a2c, "A2C, the recipe of Yu et al. (2020)"),
        task(f"{name}-ppo", _PPO, quick, f"PPO, {ppo} epochs"),
    )


def _atari(name: str, id: str, actions: int) -> Task:
    model = partial(conv_policy, actions)
    game = atari(id, actions)
    return Task(
        name=f"atari-{name}",
        model=model,
        scaled=model,
        load=game_splits(game, _ATARI, 1000 * 768, 16),
        extra=game.extra,
        input_shape=game.shape,
        loss=_ATARI.loss,
        metrics=partial(judged, game),
        metric="return",
        recipe=Recipe(steps=Duration(25, "ep"), batch=768, optimizer="adam", lr=1e-3, eps=1e-3, evaluate_every=_EPOCH),
        allocation="global",
        rounds=20,
        margin=0.0,
        description=f"{name} on the Atari 2600, four convolutions, A2C, the recipe of Yu et al. (2020), for many cores",
    )


CLASSIC = (
    *_classic("cartpole", CARTPOLE, "balances a pole", width=128, moves=32_000, judging=100, margin=10.0, ppo=5),
    *_classic("acrobot", ACROBOT, "swings up", width=256, moves=32_000, judging=100, margin=5.0, ppo=5),
    *_classic(
        "lunarlander", LUNARLANDER, "lands on the moon", width=256, moves=160_000, judging=50, margin=20.0, ppo=6
    ),
)
ATARI = (
    _atari("assault", "assault", 7),
    _atari("berzerk", "berzerk", 18),
    _atari("breakout", "breakout", 4),
    _atari("centipede", "centipede", 18),
    _atari("kangaroo", "kangaroo", 18),
    _atari("krull", "krull", 18),
    _atari("qbert", "qbert", 6),
    _atari("seaquest", "seaquest", 18),
    _atari("space-invaders", "space_invaders", 6),
)
CONTROL = (*CLASSIC, *ATARI)
