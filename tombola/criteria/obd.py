"""Optimal brain damage: the diagonal of the Hessian, and of the Fisher information (LeCun, Denker & Solla 1990)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tombola.batches import size_of, tensors
from tombola.criteria.base import Loss, Scores, Traits, Weights, register
from tombola.criteria.gradients import data, loss_of, wanted
from tombola.errors import InputError, suggestion

MOST_EXACT = 2000
"""Kept weights up to which the exact diagonal is taken: a product with the Hessian for each, for every batch."""
HESSIANS = ("auto", "exact", "hutchinson", "fisher")
_ROOM = 2**22
"""How many numbers of per-example gradients to have in memory at once."""


@dataclass(frozen=True)
class Obd:
    """``h w^2 / 2`` with ``h`` the diagonal of the Hessian of the mean loss over all examples of all batches.

    The paper's saliency: by how much the loss grows to second order without a weight, at a minimum and with no
    curvature across weights. ``hessian`` says how ``h`` is found:

    ``"exact"``
        From a product of the Hessian with each kept weight's unit vector; for at most ``MOST_EXACT`` (2,000) of them.
    ``"hutchinson"``
        The mean of ``v * Hv`` over random signs ``v`` on the kept weights, ``probes`` fresh ones for every batch, from
        ``weights.generator``. Without bias; the variance of an entry is the sum of its row's other squared entries, by
        the number of probes.
    ``"fisher"``
        The mean over examples of the squared gradient of an example's loss: never negative, and for a log-likelihood
        the Hessian's diagonal in expectation, where the model is right. Every tensor of a batch as long as the batch is
        cut into examples. Needs a loss of one example to be what it adds to a batch's mean: batch normalisation in
        training mode is refused.
    ``"auto"``
        Exact for as many kept weights as that can be, else Hutchinson's.

    Where ``h`` is negative, so is the score, and the weight goes before all others. At a minimum there is no such case;
    elsewhere the quadratic model says that the loss falls without that weight, and magnitudes instead of values would
    turn the noise of estimates into importance. Where that isn't wanted, the Fisher information has none.

    Entries that the mask doesn't keep score 0 and stand still. Batch normalisation in evaluation mode.
    """

    hessian: str = "auto"
    probes: int = 32
    traits: ClassVar[Traits] = Traits(mode="eval")

    def __post_init__(self) -> None:
        if self.hessian not in HESSIANS:
            raise InputError(f"unknown hessian {self.hessian!r} for obd.{suggestion(str(self.hessian), HESSIANS)}")
        if not (isinstance(self.probes, int) and self.probes >= 1):
            raise InputError(f"obd takes a whole number of probes, 1 or more, but got {self.probes!r}")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model."""
        given, loss = data(weights, "obd")
        parameters = wanted(weights)
        kept = {name: _kept(weights, name, p) for name, p in parameters.items()}
        diagonal = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        examples = 0
        for batch in given:
            size = size_of(batch)
            for found in self._found(weights, loss, batch, parameters, kept):
                for total, part in zip(diagonal.values(), found, strict=True):
                    total.add_(part.detach(), alpha=size)
            examples += size
        if not examples:
            raise InputError("obd got no batches: an iterator gives its batches only once, so pass a list")
        return {
            name: diagonal[name].mul_(kept[name]).mul_(w.square()).div_(2 * examples)
            for name, w in weights.final.items()
        }

    def _found(
        self,
        weights: Weights,
        loss: Loss,
        batch: Any,
        parameters: dict[str, nn.Parameter],
        kept: dict[str, Tensor],
    ) -> Iterator[list[Tensor]]:
        """Parts that sum to the diagonal for one batch."""
        if self.hessian == "fisher":
            yield from _squares(weights.model, loss, batch, parameters)
            return
        places, own = list(kept.values()), list(parameters.values())
        count = sum(int(k.count_nonzero()) for k in places)
        exact = self.hessian == "exact" or (self.hessian == "auto" and count <= MOST_EXACT)
        if exact and count > MOST_EXACT:
            raise InputError(
                f"obd takes the exact Hessian for at most {MOST_EXACT:,} weights, but {count:,} are kept: "
                "ask for hessian='hutchinson'"
            )
        product = _product(loss_of(loss, weights.model, batch), own)
        for signs in _units(places, own) if exact else _signs(places, own, self.probes, weights.generator):
            yield [s * hs if exact else s * hs / self.probes for s, hs in zip(signs, product(signs), strict=True)]


def _kept(weights: Weights, name: str, parameter: nn.Parameter) -> Tensor:
    if weights.mask is None:
        return torch.ones_like(parameter, dtype=torch.bool)
    return weights.mask[name].to(parameter.device)


def _units(kept: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """The unit vector of every kept weight, in the same memory one after the other."""
    vectors = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    for places, vector in zip(kept, vectors, strict=True):
        for place in places.nonzero().tolist():
            vector[tuple(place)] = 1
            yield vectors
            vector[tuple(place)] = 0


def _signs(
    kept: Sequence[Tensor], parameters: Sequence[nn.Parameter], probes: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """Random signs on the kept weights, 0 elsewhere."""
    for _ in range(probes):
        drawn = [torch.randint(2, p.shape, generator=generator, device=generator.device) * 2 - 1 for p in parameters]
        yield [d.to(p.device, p.dtype) * k for d, p, k in zip(drawn, parameters, kept, strict=True)]


def _product(value: Tensor, parameters: list[nn.Parameter]) -> Callable[[list[Tensor]], list[Tensor]]:
    """What multiplies vectors over the parameters by the Hessian of a loss."""
    gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    bent = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]

    def times(vectors: list[Tensor]) -> list[Tensor]:
        try:
            if bent:  # else the loss is linear in every weight
                # To every leaf of the graph, so that a part without second derivatives is not passed by.
                torch.autograd.backward([gradients[i] for i in bent], [vectors[i] for i in bent], retain_graph=True)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"obd needs second derivatives, and this net has a part without: {reason}") from error
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

    return times


# Gradients example by example.


def _squares(model: nn.Module, loss: Loss, batch: Any, parameters: dict[str, nn.Parameter]) -> Iterator[list[Tensor]]:
    """Parts that sum to the mean of the squared gradients of the examples' losses."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise InputError(
                "obd's Fisher information takes gradients example by example, but batch normalisation by the batch's "
                "own statistics mixes them: score with mode='eval', and let it track its running statistics"
            )
    size = size_of(batch)
    own = [t.dim() > 0 and len(t) == size for t in tensors(batch)]
    step = max(1, _ROOM // max(1, sum(p.numel() for p in parameters.values())))
    # One by itself first: a loss that fails, or is none, fails plainly.
    spans, together = [range(min(1, size)), *(range(n, min(n + step, size)) for n in range(1, size, step))], True
    for number, span in enumerate(spans):
        parts = (_taken(batch, own, range(n, n + 1)) for n in span)
        found = None
        if number and together:
            found = _together(model, loss, _taken(batch, own, span), own, parameters)
            together = found is not None
        for squares in _singly(model, loss, parts, parameters) if found is None else [found]:
            yield [square / size for square in squares]


def _singly(
    model: nn.Module, loss: Loss, examples: Iterable[Any], parameters: dict[str, nn.Parameter]
) -> Iterator[list[Tensor]]:
    """The squared gradients of one example after the other."""
    for example in examples:
        found = torch.autograd.grad(loss_of(loss, model, example), list(parameters.values()), allow_unused=True)
        yield [
            torch.zeros_like(p) if g is None else g.square() for g, p in zip(found, parameters.values(), strict=True)
        ]


class _Objective(nn.Module):
    """A loss as a module, so that its model's parameters can be given to it, and it still sees the model itself."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.training = model.training
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def _together(
    model: nn.Module, loss: Loss, batch: Any, own: list[bool], parameters: dict[str, nn.Parameter]
) -> list[Tensor] | None:
    """The sum of the squared gradients of a batch's examples, taken at once; None where torch can't.

    It can't where the way through the net depends on the data, say, or for operations that it has no rule for.
    ``own`` says of which of the batch's tensors each example has its own entry.
    """
    objective = _Objective(model, loss)

    def one(values: dict[str, Tensor], *parts: Tensor) -> Tensor:
        example = iter([part[None] if cut else part for part, cut in zip(parts, own, strict=True)])
        result: Tensor = torch.func.functional_call(objective, values, (_each(batch, lambda _: next(example)),))
        return result

    values = {f"model.{name}": p.detach() for name, p in parameters.items()}
    dims = (None, *(0 if cut else None for cut in own))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that it takes one by one
            gradients = torch.func.vmap(torch.func.grad(one), in_dims=dims)(values, *tensors(batch))
    except (RuntimeError, ValueError, TypeError):
        return None
    return [gradients[name].square().sum(0) for name in values]


def _taken(batch: Any, own: list[bool], span: range) -> Any:
    """Some examples of a batch, in its form."""
    cut = iter(own)
    return _each(batch, lambda t: t[span.start : span.stop] if next(cut) else t)


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch of the same form with each of its tensors changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _each(part, change) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_each(part, change) for part in batch))
    return type(batch)(_each(part, change) for part in batch) if isinstance(batch, (tuple, list)) else batch


register("obd")(Obd())
register("obd_fisher")(Obd(hessian="fisher"))
