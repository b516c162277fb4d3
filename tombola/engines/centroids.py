"""Trained weight sharing: the weights of a layer take few values, the centroids, and training moves those.

Source: Han, Mao and Dally 2016, "Deep Compression", section 3.3: the gradient of a centroid is the sum of the gradients
of its members.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tombola.engines.masked import MaskedSession, optimizer_over
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.task import Examples, Task

MOST_CENTROIDS = 4096
"""Distinct values of a layer beyond which its weights don't count as shared."""


class CentroidSession(MaskedSession):
    """Training of shared values on dense tensors.

    Every distinct value among the kept entries of a covered parameter that wants a gradient is a centroid, and the
    entries that have it at the start are its members for ever: all of them have the same bits after every step, and
    stay apart from the members of a centroid that comes to the same value. Biases, normalisation and whatever the mask
    doesn't cover train as usual. The recipe's optimiser moves centroids as it moves weights; so weight decay acts once
    on a centroid, not once for each member.

    Raises ``InputError`` where a parameter has more than 4096 distinct values.
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        super().__init__(model, mask, task, train, recipe, seed)
        weights = {name: p for name, p in mask.parameters(model).items() if p.requires_grad and bool(mask[name].any())}
        self._share({name: _membership(name, p, mask[name]) for name, p in weights.items()})

    def _share(self, membership: Mapping[str, Tensor]) -> None:
        """Cluster the weights as told, with the present values, and with moments yet to be made."""
        self._clusters = {n: _Clusters(self.model.get_parameter(n), members) for n, members in membership.items()}
        self._trained = dict(self.model.named_parameters())
        self._trained |= {name: clusters.values for name, clusters in self._clusters.items()}
        self.optimizer = optimizer_over(self._trained.values(), self.recipe)
        self._graph = self._new_graph()

    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Refused with ``InputError``: a weight that returns would belong to no centroid."""
        raise InputError("a training of centroids keeps its clusters, and can't go on under another mask")

    def _train_on(self, batch: object) -> Tensor:
        loss = self._backward(batch)
        for clusters in self._clusters.values():
            clusters.sum_up()
        self.optimizer.step()
        for clusters in self._clusters.values():
            clusters.hand_out()
        return loss

    def state(self) -> dict[str, Tensor]:
        """As of ``MaskedSession``, but that the optimiser has tensors of the centroids, in their order; and
        ``clusters.NAME``: by weight, the number of its centroid from 1 on, 0 where it is pruned (int16)."""
        state = super().state()
        for name, clusters in self._clusters.items():
            state[f"clusters.{name}"] = clusters.membership.cpu().to(torch.int16)
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return super().tensors() | {f"centroids.{name}": clusters.values for name, clusters in self._clusters.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        # Two centroids may have come to one value: only the state knows which weights belong to which.
        membership = {name: state[f"clusters.{name}"] for name in self._clusters}
        if any(not torch.equal(clusters.membership.cpu(), membership[n]) for n, clusters in self._clusters.items()):
            self._share(membership)
        super().load(state)
        for clusters in self._clusters.values():
            clusters.read()


class _Clusters:
    """One weight tensor, its centroids (1-D), and which of them each weight belongs to: 1 to k, or 0 if pruned."""

    def __init__(self, weight: nn.Parameter, membership: Tensor) -> None:
        self.weight = weight
        self.membership = membership.to(weight.device, torch.int64)
        flat = self.membership.flatten()
        counts = torch.bincount(flat)
        self._sizes = counts[1:]
        # In a fixed order: sums by atomic additions would have other bits each time on a GPU.
        self._members = flat.argsort(stable=True)[int(counts[0]) :]
        self._firsts = self._members[self._sizes.cumsum(0) - self._sizes]
        self.values = nn.Parameter(weight.detach().flatten()[self._firsts])
        self._nothing = torch.zeros(1, dtype=weight.dtype, device=weight.device)

    @torch.no_grad()
    def sum_up(self) -> None:
        """Give each centroid the sum of its members' gradients, added up in float64."""
        if self.weight.grad is None:
            self.values.grad = None
            return
        gradients = self.weight.grad.flatten().index_select(0, self._members).double()
        self.values.grad = torch.segment_reduce(gradients, "sum", lengths=self._sizes, unsafe=True).to(self.values)

    @torch.no_grad()
    def hand_out(self) -> None:
        """Give each member the value of its centroid."""
        values = torch.cat([self._nothing, self.values])
        self.weight.copy_(values.index_select(0, self.membership.flatten()).view_as(self.weight))

    @torch.no_grad()
    def read(self) -> None:
        """Take the values of the centroids from the weights."""
        self.values.copy_(self.weight.flatten()[self._firsts])


def _membership(name: str, weight: Tensor, kept: Tensor) -> Tensor:
    """By weight, the number of its value among the distinct kept ones in ascending order, from 1; 0 if pruned."""
    values, number = weight.detach().cpu()[kept].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if len(values) > MOST_CENTROIDS:
        raise InputError(
            f"training centroids needs weights that share their values, {MOST_CENTROIDS} of them at most in a layer, "
            f"but {name!r} starts with {len(values)}: share the weights first"
        )
    membership = torch.zeros(kept.shape, dtype=torch.int16)
    membership[kept] = (number + 1).to(torch.int16)
    return membership
