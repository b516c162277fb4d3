"""Games under way, side by side: every game has a seed of its own, and can be played again by its moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tombola.tasks.control.games import Flags, Game, Numbers

SeedOf = Callable[[int, int], int]


@dataclass(frozen=True)
class Moved:
    """What one move at each table has come to.

    ``seen`` is what each game shows after it, before another begins where it is over; ``rewards`` are the game's own.
    A game is ``over`` by its rules or ``broken_off`` at the limit of its moves.
    """

    seen: Tensor
    rewards: Numbers
    over: Flags
    broken_off: Flags

    @property
    def ended(self) -> Flags:
        """Where another game begins."""
        return self.over | self.broken_off


class Tables:
    """So many games at a time. Where one ends, the next begins: ``seed_of(table, number)`` is the seed of each.

    ``seen`` is what they show now, (tables, ...).
    """

    def __init__(self, game: Game, number: int, seed_of: SeedOf) -> None:
        self.game, self.seed_of = game, seed_of
        self._tables = game.tables(number)
        self._load([0] * number, [[] for _ in range(number)])

    def move(self, actions: Numbers) -> Moved:
        """Move once at each table, and begin another game where one has ended."""
        seen, rewards, over, broken_off, _ = self._tables.step(actions)
        moved = Moved(_tensor(seen), np.array(rewards, np.float64), np.array(over), np.array(broken_off))
        for played, action in zip(self._played, actions.tolist(), strict=True):
            played.append(action)
        self.seen = moved.seen
        if moved.ended.any():
            for table in np.flatnonzero(moved.ended).tolist():
                self.numbers[table] += 1
                self._played[table] = []
            self.seen = self._begin(moved.ended)
        return moved

    def close(self) -> None:
        """Give back what the games hold."""
        self._tables.close()

    def state(self) -> dict[str, Tensor]:
        """For each table the number of its game, how many moves that is old, and these, one after the other."""
        moves = [action for played in self._played for action in played]
        return {
            "numbers": torch.tensor(self.numbers),
            "lengths": torch.tensor([len(played) for played in self._played]),
            "moves": torch.tensor(moves, dtype=torch.uint8),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Play the games of a ``state`` again, to where they were."""
        lengths = state["lengths"].tolist()
        self._load(state["numbers"].tolist(), [part.tolist() for part in torch.split(state["moves"], lengths)])

    def _load(self, numbers: Sequence[int], played: Sequence[Sequence[int]]) -> None:
        """All tables move together, so a shorter game begins later; what is played there before is nobody's."""
        self.numbers, self._played = list(numbers), [list(moves) for moves in played]
        longest = max(len(moves) for moves in played)
        late = np.array([longest - len(moves) for moves in played])
        seen = self._begin(np.ones(len(late), bool))
        idle = np.zeros(len(late), bool)
        for tick in range(longest + 1):
            beginning = (late == tick) if tick else np.zeros(len(late), bool)
            if (beginning | idle).any():
                seen = self._begin(beginning | idle)
            if tick == longest:
                break
            actions = [moves[tick - first] if tick >= first else 0 for moves, first in zip(played, late, strict=True)]
            seen, _, over, broken_off, _ = self._tables.step(np.array(actions))
            seen, idle = _tensor(seen), over | broken_off
        self.seen = seen

    def _begin(self, which: Flags) -> Tensor:
        seeds = [self.seed_of(table, number) for table, number in enumerate(self.numbers)]
        return _tensor(self.game.begin(self._tables, which, seeds))


def _tensor(seen: Numbers) -> Tensor:
    """What is seen as a tensor of its own: environments write into one place again and again."""
    return torch.from_numpy(np.array(seen))
