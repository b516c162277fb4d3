"""The games of a training under way: played by the net as it is, and handed out in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.recipe import Recipe
from tombola.tasks.control.games import Game, game_seed
from tombola.tasks.control.learning import Moves, Rules, advantages, flat, moves_of
from tombola.tasks.control.tables import Moved, Tables

LAST = 100
"""Games whose mean return is told of in the history."""


class Playing:
    """The games of one training: the ``Play`` of ``tombola.tasks.acting``.

    Raises ``InputError`` where the recipe's batches don't part the moves of a time of playing evenly.
    """

    def __init__(self, game: Game, rules: Rules, seed: int, recipe: Recipe) -> None:
        if rules.moves % recipe.batch:
            raise InputError(
                f"batch must divide the {rules.moves:,} moves that are played between two times of training "
                f"({rules.games:,} games x {rules.length}), but got {recipe.batch:,}"
            )
        self.game, self.rules, self.batch_size, self.device = game, rules, recipe.batch, recipe.device
        again = ("draw", recipe.order) if recipe.order else ()
        self.tables = Tables(game, rules.games, partial(_seed_of, seed, again))
        self._sums = np.zeros(rules.games)
        self._returns: deque[float] = deque(maxlen=LAST)
        self._moves: Moves | None = None
        self._order = torch.empty(0, dtype=torch.int64)
        self._next = 0

    def batch(self, model: nn.Module) -> Moves:
        """The next batch: of moves that are there, or of new ones where all have been handed out."""
        if self._moves is None or self._next == len(self._order):
            self._moves = self._play(model)
            self._order = torch.cat([torch.randperm(self.rules.moves) for _ in range(self.rules.passes)])
            self._next = 0
        index = self._order[self._next : self._next + self.batch_size]
        self._next += len(index)
        return moves_of(self._moves, index.to(self.device))

    @torch.no_grad()
    def _play(self, model: nn.Module) -> Moves:
        """``length`` moves of each game, by the net as it is."""
        seen, actions, chosen, values, following, rewards, ended = [], [], [], [], [], [], []
        for _ in range(self.rules.length):
            shown = self.tables.seen.to(self.device)
            out = model(shown)
            policy = torch.distributions.Categorical(logits=out[:, :-1], validate_args=False)
            action = policy.sample()  # type: ignore[no-untyped-call]
            moved = self.tables.move(action.cpu().numpy())
            self._count(moved)
            seen.append(shown)
            actions.append(action)
            chosen.append(policy.log_prob(action))  # type: ignore[no-untyped-call]
            values.append(out[:, -1])
            following.append(self._broken_off_values(model, moved))
            rewards.append(torch.from_numpy(self.game.learnt(moved.rewards)).float())
            ended.append(torch.from_numpy(moved.ended))
        values.append(model(self.tables.seen.to(self.device))[:, -1])
        over = torch.stack(ended).to(self.device)
        after = torch.where(over, torch.stack(following), torch.stack(values[1:]))
        given, value = torch.stack(rewards).to(self.device), torch.stack(values[:-1])
        advantage = advantages(given, value, after, over, self.rules.discount, self.rules.smoothing)
        parts = Moves(torch.stack(seen), torch.stack(actions), torch.stack(chosen), advantage, advantage + value)
        return self.rules.prepared(flat(parts))

    def _broken_off_values(self, model: nn.Module, moved: Moved) -> Tensor:
        """The values of what games showed last that were broken off; 0 elsewhere, (games,)."""
        values = torch.zeros(self.rules.games, device=self.device)
        where = torch.from_numpy(moved.broken_off & ~moved.over)
        if bool(where.any()):
            values[where.to(self.device)] = model(moved.seen[where].to(self.device))[:, -1]
        return values

    def _count(self, moved: Moved) -> None:
        self._sums += moved.rewards
        for table in np.flatnonzero(moved.ended).tolist():
            self._returns.append(float(self._sums[table]))
        self._sums[moved.ended] = 0

    @property
    def seen(self) -> Mapping[str, float]:
        """The mean return of the last hundred games that have ended; NaN before the first."""
        return {"return": float(np.mean(self._returns)) if self._returns else float("nan")}

    def state(self) -> dict[str, Tensor]:
        """The games by their seeds and moves; returns; and the moves played, where some are still to be trained on."""
        state = {f"tables.{name}": value for name, value in self.tables.state().items()}
        state |= {"sums": torch.from_numpy(self._sums.copy()), "returns": torch.tensor(self._returns).double()}
        if self._moves is not None and self._next < len(self._order):
            state |= {f"moves.{name}": part.cpu().clone() for name, part in self._moves._asdict().items()}
            state |= {"order": self._order.clone(), "next": torch.tensor(self._next)}
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state``: the games are played again to where they were."""
        self.tables.load({n[len("tables.") :]: v for n, v in state.items() if n.startswith("tables.")})
        self._sums = state["sums"].numpy().copy()
        self._returns = deque(state["returns"].tolist(), maxlen=LAST)
        self._moves = None
        if "order" in state:
            self._moves = Moves(*(state[f"moves.{name}"].to(self.device) for name in Moves._fields))
            self._order, self._next = state["order"], int(state["next"])


def _seed_of(seed: int, again: tuple[str | int, ...], table: int, number: int) -> int:
    return game_seed(seed, table, number, *again)
