"""Games by their rules: gymnasium's, and those of the Atari 2600 by ALE. What is random in one is said by its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tombola.extras import ATARI, BOX2D, GYMNASIUM, Extra
from tombola.seeds import stream_seed

Numbers = NDArray[Any]
Flags = NDArray[np.bool_]
MOST_SEED = 2**31
"""Seeds of games are smaller: ALE takes no larger ones."""


def game_seed(seed: int, *names: str | int) -> int:
    """The seed of one game, from the stream ``games`` of a seed."""
    return stream_seed(seed, "games", *names) % MOST_SEED


@dataclass(frozen=True)
class Game:
    """A game with few actions. ``shape`` is what is seen of it, ``limit`` the moves after which it is broken off.

    ``scale`` is what a reward is multiplied by to learn from, after it is ``clipped`` to -1 to 1 where that is asked
    for. Returns are told of in the game's own rewards.
    """

    id: str
    shape: tuple[int, ...]
    actions: int
    limit: int
    scale: float = 0.01
    clipped: bool = False

    extra: Extra = GYMNASIUM

    @property
    def seen_as(self) -> torch.dtype:
        """The type of what is seen."""
        return torch.float32

    def check(self) -> None:
        """``InputError`` where what it needs isn't installed."""
        self.extra.require(self.id)

    def tables(self, number: int) -> Any:
        """So many of them as a vector environment of gymnasium that begins no game by itself."""
        import gymnasium
        from gymnasium.vector import AutoresetMode, SyncVectorEnv

        self.check()
        make = partial(gymnasium.make, self.id, max_episode_steps=self.limit, disable_env_checker=True)
        return SyncVectorEnv([make] * number, copy=False, autoreset_mode=AutoresetMode.DISABLED)

    def begin(self, tables: Any, which: Flags, seeds: Sequence[int]) -> Numbers:
        """Begin new games with these seeds, one for each table, at some of the tables; what is seen at all of them."""
        seen: Numbers = tables.reset(seed=list(seeds), options={"reset_mask": which})[0]
        return seen

    def learnt(self, rewards: Numbers) -> Numbers:
        """Rewards as they are learnt from."""
        given: Numbers = self.scale * (np.clip(rewards, -1, 1) if self.clipped else rewards)
        return given


@dataclass(frozen=True)
class AtariGame(Game):
    """A game of the Atari 2600, named as its cartridge, by the vector environment of ALE.

    It prepares frames as gymnasium's ``AtariPreprocessing`` and ``FrameStackObservation`` do, on ``torch``'s number of
    threads: every action for four frames, the brighter of the last two, grey, 105x80 pixels, four of them stacked. A
    game begins with up to 30 idle frames; an action is repeated with probability 1/4 (Machado et al. 2018), by the
    seed. It ends with the last life.
    """

    extra: Extra = ATARI

    @property
    def seen_as(self) -> torch.dtype:
        """The type of what is seen."""
        return torch.uint8

    def tables(self, number: int) -> Any:
        """So many of them as a vector environment."""
        self.check()
        import ale_py
        from ale_py.vector_env import AtariVectorEnv

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        return AtariVectorEnv(
            self.id,
            number,
            num_threads=min(number, torch.get_num_threads()),
            max_num_frames_per_episode=4 * self.limit,
            repeat_action_probability=0.25,
            img_height=self.shape[1],
            img_width=self.shape[2],
            reward_clipping=False,
        )

    def begin(self, tables: Any, which: Flags, seeds: Sequence[int]) -> Numbers:
        """Begin new games with these seeds, one for each table, at some of the tables; what is seen at all of them."""
        seen: Numbers = tables.reset(seed=np.array(seeds)[which], options={"reset_mask": which})[0]
        return seen


def atari(id: str, actions: int) -> Game:
    """A game of the Atari 2600 as it is learnt by Yu et al. (2020): rewards clipped to -1 to 1."""
    return AtariGame(id, (4, 105, 80), actions, 27_000, scale=1.0, clipped=True)


CARTPOLE = Game("CartPole-v1", (4,), 2, 200)
ACROBOT = Game("Acrobot-v1", (6,), 3, 500)
LUNARLANDER = Game("LunarLander-v3", (8,), 4, 1000, extra=BOX2D)
