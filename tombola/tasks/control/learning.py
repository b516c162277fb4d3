"""Learning from one's own games: advantages of moves, and the losses of A2C and PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Moves(NamedTuple):
    """A batch of moves: what was seen, (N, ...), and for each move, (N,), the action, the logarithm of the probability
    that it was chosen with, how much better it was than expected, and the return that the value should have told."""

    seen: Tensor
    action: Tensor
    log_chosen: Tensor
    advantage: Tensor
    target: Tensor


def advantages(
    rewards: Tensor, values: Tensor, following: Tensor, ended: Tensor, discount: float, smoothing: float
) -> Tensor:
    """How much better moves were than their values said, (moves, games) like all that is given.

    ``following`` is the value of what came after a move: 0 where the game was over, but the value of what was seen last
    where it was broken off, as its end was none of the rules'. ``ended`` says after which moves another game begins.
    The sum over later moves fades by ``discount * smoothing`` (generalised advantage estimation, Schulman et al. 2016);
    with ``smoothing`` 1 it is the return of all that is there, minus the value.
    """
    surprise = rewards + discount * following - values
    found, later = torch.empty_like(rewards), torch.zeros_like(rewards[0])
    for move in reversed(range(len(rewards))):
        later = surprise[move] + discount * smoothing * torch.where(ended[move], 0.0, later)
        found[move] = later
    return found


@dataclass(frozen=True)
class Rules:
    """How a net learns from its games; the learning rate and all that is the optimiser's are the recipe's.

    ``games`` at a time are played for ``length`` moves each; then the net is trained on these moves in batches at
    random, ``passes`` times on each move, and plays on. ``entropy`` and ``value`` are the weights of the policy's
    entropy and of the squared error of the value.
    """

    games: int
    length: int
    passes: int = 1
    discount: float = 0.99
    smoothing: float = 1.0
    entropy: float = 0.01
    value: float = 0.5

    @property
    def moves(self) -> int:
        """Moves that are played between two times of training."""
        return self.games * self.length

    def prepared(self, moves: Moves) -> Moves:
        """All moves of one time of playing, before they are cut into batches."""
        return moves

    def loss(self, model: nn.Module, batch: Moves) -> Tensor:
        """The mean loss of a batch."""
        batch = Moves(*batch)
        out: Tensor = model(batch.seen)
        log_policy, value = out[:, :-1].log_softmax(dim=1), out[:, -1]
        log_chosen = log_policy.gather(1, batch.action[:, None])[:, 0]
        entropy = -(log_policy.exp() * log_policy).sum(dim=1).mean()
        gain = self.gain(log_chosen, batch)
        error = (batch.target - value).square().mean()
        return self.value * error - gain.mean() - self.entropy * entropy

    def gain(self, log_chosen: Tensor, batch: Moves) -> Tensor:
        """What the policy gains by each move, (N,), to first order."""
        raise NotImplementedError


@dataclass(frozen=True)
class A2C(Rules):
    """Advantage actor-critic (Mnih et al. 2016), all games in step.

    Where a time of playing gives several batches, ``most_ratio`` bounds the weight of moves that the net, as it is by
    then, would make more often than when it made them; advantages are clipped to ``most_advantage`` on both sides.
    """

    most_ratio: float | None = None
    most_advantage: float | None = None

    def prepared(self, moves: Moves) -> Moves:
        """The moves with their advantages clipped."""
        if self.most_advantage is None:
            return moves
        return moves._replace(advantage=moves.advantage.clamp(-self.most_advantage, self.most_advantage))

    def gain(self, log_chosen: Tensor, batch: Moves) -> Tensor:
        """The logarithm of each move's probability times its advantage and its weight."""
        weighted = batch.advantage
        if self.most_ratio is not None:
            weighted = weighted * (log_chosen.detach() - batch.log_chosen).exp().clamp(max=self.most_ratio)
        return weighted * log_chosen


@dataclass(frozen=True)
class PPO(Rules):
    """Proximal policy optimisation (Schulman et al. 2017): a ratio beyond 1 - ``clip`` to 1 + ``clip`` pays no more.

    Advantages are brought to mean 0 and standard deviation 1 over all moves of a time of playing.
    """

    clip: float = 0.2

    def prepared(self, moves: Moves) -> Moves:
        """The moves with their advantages normalised."""
        own = moves.advantage
        return moves._replace(advantage=(own - own.mean()) / (own.std() + 1e-8))

    def gain(self, log_chosen: Tensor, batch: Moves) -> Tensor:
        """The ratio of each move's probabilities, now and then, times its advantage; the lesser of clipped and not."""
        ratio = (log_chosen - batch.log_chosen).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        return torch.minimum(ratio * batch.advantage, clipped * batch.advantage)


def moves_of(parts: Moves, index: Tensor) -> Moves:
    """Some moves of many."""
    return Moves(*(part[index] for part in parts))


def flat(parts: Moves) -> Moves:
    """Moves of (moves, games) as one row of them."""
    return Moves(*(part.flatten(0, 1) for part in parts))
