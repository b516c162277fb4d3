"""Curvature: the top eigenvalues of the Hessian of the loss, restricted to the kept weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tombola.batches import size_of
from tombola.criteria import Loss
from tombola.criteria.base import untouched
from tombola.criteria.gradients import loss_of
from tombola.diagnostics.trajectory import holding
from tombola.errors import InputError
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.task import State

Row = dict[str, Any]
Product = Callable[[Tensor], Tensor]

TOLERANCE = 1e-3
MOST_PRODUCTS = 300
_BASIS = 24  # vectors in memory at once, beside those found


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The largest eigenvalues of a Hessian, the most positive first."""

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    """``|Hv - value v|`` for the unit vector v of each, as measured: within that distance of the value there is an
    eigenvalue of the Hessian."""
    converged: bool
    """Whether every residual is at most the tolerance times its own value, or as small as rounding lets it be."""
    products: int
    """Products of the Hessian with a vector that were taken."""
    loss: float
    """The loss whose Hessian it is."""
    vectors: Tensor
    """Row i is the unit vector of value i: (count, kept), float64, the kept weights in the mask's order, row-major."""


def top_eigenvalues(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    mask: Mask | None = None,
    count: int = 1,
    *,
    mode: str | None = "train",
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
    generator: torch.Generator | None = None,
) -> Eigenvalues:
    """The ``count`` largest eigenvalues of the Hessian of the mean loss over all examples; the model comes back bit
    for bit.

    Rows and columns are those of the kept weights alone: biases, normalisation parameters and pruned weights stand
    still. A product with a vector is the gradient of the gradient's product with it, so that no Hessian is ever formed;
    sums over batches and all that follows are float64. The method is Lanczos' with full orthogonalisation and thick
    restarts (Wu & Simon 2000), from a random vector for each eigenvalue. Where a net is piecewise linear, its kinks
    don't count.

    Parameters
    ----------
    model, batches, loss, mask, mode
        As for ``gradient_flow``. Several batches give the Hessian of the mean over all their examples.
    count
        How many eigenvalues, 1 or more and at most as many as there are kept weights.
    tolerance
        Residual to reach, relative to the eigenvalue. What is below 1e-6 (float32) or 1e-12 (float64) of the largest
        magnitude of an eigenvalue, which may be a negative one, counts as rounding.
    most
        Products to take for one eigenvalue before giving up, 1 or more; the result then says that it has not converged.
    generator
        Draws the vectors to begin with; default: one with torch's default seed.

    Raises ``InputError`` for what ``gradient_flow`` refuses, a count that can't be, a net with a part without second
    derivatives, and one whose second derivatives are not finite.
    """
    if not tolerance > 0 or most < 1:
        raise InputError(f"tolerance must be above 0 and most 1 or more, but got {tolerance!r} and {most!r}")
    with _hessian(model, batches, loss, mask, mode) as hessian:
        if not 1 <= count <= hessian.size:
            raise InputError(
                f"count must be from 1 to the {hessian.size:,} weights that are kept, but got {count!r}: "
                "the Hessian has no more eigenvalues"
            )
        generator = torch.Generator() if generator is None else generator
        search = _Lanczos(hessian, hessian.size, hessian.place, hessian.rounding, generator)
        values, vectors, residuals = search.top(count, tolerance, most)
        converged = all(r <= search.allowed(v, tolerance) for v, r in zip(values, residuals, strict=True))
        products, found = search.products, hessian.loss
    return Eigenvalues(tuple(values), tuple(residuals), converged, products, found, vectors.cpu())


def curvature_rows(
    lab: Lab,
    seed: int,
    mask: Mask | None,
    states: Mapping[int, State],
    batches: Sequence[Any],
    count: int = 1,
    mode: str | None = "train",
    **limits: Any,
) -> list[Row]:
    """The top eigenvalues of a net at several states of its training: a row for each step and ``number`` (from 1, the
    largest), with ``eigenvalue``, ``residual``, ``converged``, ``products`` and ``loss``.

    ``states`` are state_dicts by step, as ``trajectory.states`` gives them, and ``limits`` are ``tolerance`` and
    ``most``. Raises as ``top_eigenvalues``.
    """
    rows = []
    for step, state in states.items():
        net = holding(lab, seed, state)
        found = top_eigenvalues(net, batches, lab.task.loss, mask, count, mode=mode, **limits)
        about = {"converged": found.converged, "products": found.products, "loss": found.loss}
        for number, (value, residual) in enumerate(zip(found.values, found.residuals, strict=True), start=1):
            rows.append({"step": step, "number": number, "eigenvalue": value, "residual": residual, **about})
    return rows


@contextmanager
def _hessian(
    model: nn.Module, batches: Iterable[Any], loss: Loss, mask: Mask | None, mode: str | None
) -> Iterator[_Hessian]:
    mask = Mask.full(model) if mask is None else mask
    covered = mask.parameters(model)
    with untouched(model, mode):
        mask.apply_(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in covered.values():
            parameter.requires_grad_(True)
        yield _Hessian(model, list(batches), loss, covered, mask)


class _Hessian:
    """Multiplies vectors over the kept weights (float64) by the Hessian of the mean loss."""

    def __init__(
        self, model: nn.Module, batches: list[Any], loss: Loss, covered: Mapping[str, nn.Parameter], mask: Mask
    ) -> None:
        self._model, self._batches, self._loss = model, batches, loss
        self._parameters = list(covered.values())
        self._kept = [mask[name].to(p.device) for name, p in covered.items()]
        self._examples = sum(size_of(batch) for batch in batches)
        if not self._examples:
            raise InputError("curvature got no batches: an iterator gives its batches only once, so pass a list")
        self.size, self.loss = mask.kept, 0.0
        device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self.place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self._sizes = [int(kept.sum()) for kept in self._kept]
        self.rounding = max([8 * torch.finfo(p.dtype).eps for p in self._parameters] + [1e-12])
        """The error of a product, roughly, relative to the largest one."""

    def __call__(self, vector: Tensor) -> Tensor:
        """The product; notes the loss by the way. ``InputError`` where it isn't finite."""
        direction = self._spread(vector)
        total, self.loss = torch.zeros(self.size, dtype=torch.float64, device=self.place), 0.0
        for batch in self._batches:
            value = loss_of(self._loss, self._model, batch)
            share = size_of(batch) / self._examples
            total.add_(self._gathered(self._second(value, direction)), alpha=share)
            self.loss += share * float(value.detach())
        if not bool(total.isfinite().all()):
            raise InputError("the second derivatives of the loss are not finite: are the weights?")
        return total

    def _spread(self, vector: Tensor) -> list[Tensor]:
        """The vector's entries at their weights' places, 0 elsewhere."""
        parts = []
        for piece, p, kept in zip(torch.split(vector, self._sizes), self._parameters, self._kept, strict=True):
            parts.append(torch.zeros_like(p).masked_scatter_(kept, piece.to(p.device, p.dtype)))
        return parts

    def _gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t[kept].to(self.place).double() for t, kept in zip(tensors, self._kept, strict=True)])

    def _second(self, value: Tensor, direction: list[Tensor]) -> list[Tensor]:
        """The gradient of the gradient's product with a direction; 0 where the loss is linear in a weight."""
        try:
            found = torch.autograd.grad(value, self._parameters, create_graph=True, allow_unused=True)
            bent = [(g, d) for g, d in zip(found, direction, strict=True) if g is not None and g.requires_grad]
            if bent:
                # To every leaf of the graph, so that a part without second derivatives is not passed by.
                gradients, directions = zip(*bent, strict=True)
                torch.autograd.backward(gradients, directions)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"curvature needs second derivatives, and this net has a part without: {reason}"
            ) from error
        second = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        return second


class _Lanczos:
    """The largest eigenvalues of a symmetric operator, from products with it, one after the other.

    Each is looked for where those before are not: all vectors are orthogonal to the ones that were found. So one that
    occurs several times is found several times, which a single sequence of products can't do.
    """

    def __init__(
        self, times: Product, size: int, place: torch.device, rounding: float, generator: torch.Generator
    ) -> None:
        self._times, self._size, self._place, self._generator = times, size, place, generator
        self._rounding = rounding
        self.products = 0
        self.largest = 0.0
        """The largest magnitude of an approximate eigenvalue so far."""

    def allowed(self, value: float, tolerance: float) -> float:
        """The residual that will do for a value."""
        return tolerance * abs(value) + self._rounding * self.largest

    def top(self, count: int, tolerance: float, most: int) -> tuple[list[float], Tensor, list[float]]:
        """The ``count`` largest values, their unit vectors as rows, and their residuals."""
        vectors = torch.zeros(0, self._size, dtype=torch.float64, device=self._place)
        for _ in range(count):
            # What follows mixes them, and with them their residuals.
            found = self._next(vectors, tolerance / math.sqrt(count), most)
            vectors = torch.cat([vectors, found[None]])
        # The best values and vectors that their span holds: an error of one is no longer in the others' residuals.
        products = torch.stack([self._product(vector) for vector in vectors])
        inner = (vectors @ products.T).cpu()
        values, turns = torch.linalg.eigh((inner + inner.T) / 2)
        turned = turns.T.flip(0).to(self._place)
        vectors, products, values = turned @ vectors, turned @ products, values.flip(0)
        residuals = (products - values.to(self._place)[:, None] * vectors).norm(dim=1)
        return values.tolist(), vectors, residuals.tolist()

    def _next(self, found: Tensor, tolerance: float, most: int) -> Tensor:
        """The unit vector of the largest eigenvalue beside the ``found`` ones.

        ``basis`` has orthonormal rows V, and ``inner`` is V H V'. Products are orthogonalised against every row, twice.
        A full basis is replaced by the best half, the vectors of the largest eigenvalues of ``inner``, and grows on.
        """
        free = self._size - len(found)
        width = min(free, _BASIS)
        basis = torch.zeros(width, self._size, dtype=torch.float64, device=self._place)
        inner = torch.zeros(width, width, dtype=torch.float64)
        drawn = torch.randn(self._size, dtype=torch.float64, generator=self._generator).to(self._place)
        new, used, last = _unit(_reduced(drawn, found)[0]), 0, self.products + most
        while True:
            basis[used] = new
            rest, along = _reduced(_reduced(self._product(new), found)[0], basis[: used + 1])
            inner[used, : used + 1] = inner[: used + 1, used] = along.cpu()
            used += 1
            values, turns = torch.linalg.eigh(inner[:used, :used])
            self.largest = max(self.largest, float(values.abs().max()))
            # The last row of an eigenvector of the small matrix, times the length of what is left: its residual.
            residual = float(rest.norm()) * abs(float(turns[-1, -1]))
            enough = residual <= self.allowed(float(values[-1]), tolerance)
            if enough or used == free or self.products >= last:
                return _unit(_reduced(_mixed(basis[:used], turns[:, -1:])[0], found)[0])
            if used == width:
                kept = turns[:, used // 2 :]
                basis[: kept.shape[1]] = _mixed(basis, kept)
                inner.zero_()
                used, kept_values = kept.shape[1], values[used // 2 :]
                inner[:used, :used] = kept_values.diag()
            # Again, for what is left may be little more than rounding.
            new = _unit(_reduced(_reduced(_unit(rest), found)[0], basis[:used])[0])

    def _product(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self._times(vector)


def _mixed(basis: Tensor, columns: Tensor) -> Tensor:
    """The combinations of the basis's rows with these columns of coefficients."""
    made: Tensor = columns.T.to(basis.device) @ basis
    return made


def _reduced(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The vector less its part along the orthonormal rows of a basis, and that part's coordinates."""
    along = basis @ vector
    rest = vector - along @ basis
    again = basis @ rest
    return rest - again @ basis, along + again


def _unit(vector: Tensor) -> Tensor:
    made: Tensor = vector / vector.norm()
    return made
