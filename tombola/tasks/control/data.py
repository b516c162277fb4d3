"""The data of games: training games, which the net plays itself, and those it is judged by, given by their seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tombola.recipe import Recipe
from tombola.seeds import stream
from tombola.tasks.control.games import Game, game_seed
from tombola.tasks.control.learning import Moves, Rules, advantages, flat, moves_of
from tombola.tasks.control.playing import Playing
from tombola.tasks.control.tables import Tables

UNTAUGHT = 32
"""Moves that are made in a game of the policy that knows nothing."""
AT_ONCE = 128
"""Games that the policy that knows nothing plays side by side, at most."""
SIDE_BY_SIDE = 16
"""Games that are played side by side to their ends: with more, most tables would wait for the longest game."""


@dataclass(frozen=True)
class TrainingGames:
    """Games to train in: the ``Acting`` of ``tombola.tasks.acting``. ``number`` is how many moves an epoch trains on.

    As examples they are moves of a policy that chooses any action with the same probability: example i is move
    ``i % 32`` of the games from game ``i // 32`` on, which begin anew where they end.
    """

    game: Game
    rules: Rules
    number: int
    device: str = "cpu"

    def __len__(self) -> int:
        return self.number

    def play(self, seed: int, recipe: Recipe) -> Playing:
        """Games for a training of a seed, from their beginning."""
        return Playing(self.game, self.rules, seed, recipe)

    def forward_passes(self, steps: int, recipe: Recipe) -> int:
        """One for each move, and one for what each game shows after its last before the net is trained. The values of
        games that are broken off aren't counted: how many there will be isn't known."""
        times = math.ceil(steps * recipe.batch / (self.rules.passes * self.rules.moves))
        return times * (self.rules.moves + self.rules.games)

    def take(self, index: Tensor) -> Moves:
        """Moves of a policy that knows nothing, with the returns of what it did within 32 moves."""
        index = index.cpu()
        games, place = torch.unique(index // UNTAUGHT, return_inverse=True)
        parts = [self._untaught(some) for some in torch.split(games, AT_ONCE)]
        found = moves_of(
            Moves(*(torch.cat(part) for part in zip(*parts, strict=True))), place * UNTAUGHT + index % UNTAUGHT
        )
        return Moves(*(part.to(self.device) for part in found))

    def _untaught(self, games: Tensor) -> Moves:
        """All moves of some games, game by game."""
        numbers = games.tolist()
        tables = Tables(self.game, len(numbers), lambda table, number: game_seed(0, "untaught", numbers[table], number))
        choices = [
            torch.randint(self.game.actions, (UNTAUGHT,), generator=stream(0, "untaught", number)) for number in numbers
        ]
        action = torch.stack(choices, dim=1)
        seen, rewards, ended = [], [], []
        for own in action:
            seen.append(tables.seen)
            moved = tables.move(own.numpy())
            rewards.append(torch.from_numpy(self.game.learnt(moved.rewards)).float())
            ended.append(torch.from_numpy(moved.ended))
        tables.close()
        nothing = torch.zeros(UNTAUGHT, len(numbers))
        gained = advantages(torch.stack(rewards), nothing, nothing, torch.stack(ended), self.rules.discount, 1.0)
        even = torch.full_like(gained, -float(np.log(self.game.actions)))
        return flat(Moves(*(part.transpose(0, 1) for part in (torch.stack(seen), action, even, gained, gained))))

    def batches(self, size: int) -> Iterator[Moves]:
        """An epoch's number of such moves."""
        for part in torch.split(torch.arange(self.number), size):
            yield self.take(part)

    def to(self, device: str) -> TrainingGames:
        """The same games for a net on ``device``."""
        return TrainingGames(self.game, self.rules, self.number, device)

    @property
    def digest(self) -> str:
        """A checksum of the rules of playing and learning."""
        return hashlib.sha256(f"{self.game} {self.rules} {self.number}".encode()).hexdigest()


@dataclass(frozen=True)
class JudgingGames:
    """Games to be judged by. A batch is their seeds, (N,) int64; who plays them is the metric's business."""

    game: Game
    seeds: Tensor

    @classmethod
    def of(cls, game: Game, number: int, seed: int, part: str) -> JudgingGames:
        """So many games of a part of a seed."""
        return cls(game, torch.tensor([game_seed(seed, part, i) for i in range(number)]))

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, index: Tensor) -> Tensor:
        """The seeds of some games."""
        return self.seeds[index.cpu()]

    def batches(self, size: int) -> Iterator[Tensor]:
        """The seeds of all games."""
        return iter(torch.split(self.seeds, size))

    def to(self, device: str) -> JudgingGames:
        """The same games: seeds stay where they are."""
        return self

    @property
    def digest(self) -> str:
        """A checksum of the game and the seeds."""
        return hashlib.sha256(f"{self.game} ".encode() + self.seeds.numpy().tobytes()).hexdigest()


class _Queue:
    """Which of so many games is played where: whatever table is free takes the next, or one of them again when all are
    taken."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds, self.taken = seeds, dict[tuple[int, int], int]()

    def __call__(self, table: int, number: int) -> int:
        return self.seeds[self.game(table, number) % len(self.seeds)]

    def game(self, table: int, number: int) -> int:
        """The place in the queue of a table's game."""
        return self.taken.setdefault((table, number), len(self.taken))


@torch.no_grad()
def returns(game: Game, model: nn.Module, seeds: Tensor) -> Tensor:
    """The returns of games, (N,) float64, played to their ends by a net that chooses actions as its policy says.

    Which it chooses is drawn from a stream of the first seed: the same games by the same net end the same. Tables
    that none of them is left for go on without the net.
    """
    device, number = next(model.parameters()).device, min(len(seeds), SIDE_BY_SIDE)
    queue = _Queue(seeds.tolist())
    tables, generator = Tables(game, number, queue), stream(int(seeds[0]), "moves")
    sums, found = np.zeros(number), np.full(len(seeds), np.nan)
    while np.isnan(found).any():
        playing = np.array([queue.game(table, own) for table, own in enumerate(tables.numbers)])
        counted = torch.from_numpy(playing < len(found))  # the net's work where a game decides something
        chances = model(tables.seen[counted].to(device))[:, :-1].softmax(dim=1).cumsum(dim=1).cpu()
        drawn = torch.rand(number, 1, generator=generator)[counted]
        action = torch.zeros(number, dtype=torch.int64)
        action[counted] = (chances < drawn).sum(dim=1).clamp(max=game.actions - 1)
        moved = tables.move(action.numpy())
        sums += moved.rewards
        for table in np.flatnonzero(moved.ended).tolist():
            if playing[table] < len(found):
                found[playing[table]] = sums[table]
            sums[table] = 0
    tables.close()
    return torch.from_numpy(found)


def judged(game: Game, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The mean return of a batch of games, and as the loss its negative."""
    mean = returns(game, model, batch).mean()
    return {"loss": -mean, "return": mean}
