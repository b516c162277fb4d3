"""Optimal brain damage: the diagonal of the Hessian, and of the Fisher information (LeCun, Denker & Solla 1990)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tombola.batches import size_of, tensors
from tombola.criteria.base import Loss, Scores, Traits, Weights, register
from tombola.criteria.gradients import data, loss_of, wanted
from tombola.criteria.kfac import logits_of
from tombola.errors import InputError, suggestion

MOST_EXACT = 2000
"""Weights up to which the exact diagonal is taken: a product with the Hessian for each, for every batch."""
HESSIANS = ("auto", "exact", "gauss_newton", "hutchinson", "fisher")
Terms = Callable[[nn.Module, Any], Tensor]
"""Of a model and one example: the numbers whose squared gradients are summed."""
_ROOM = 2**22
"""How many numbers of per-example gradients to have in memory at once."""


@dataclass(frozen=True)
class Obd:
    """``h w^2 / 2`` with ``h`` the diagonal of the Hessian of the mean loss over all examples of all batches.

    The paper's saliency: by how much the loss grows to second order without a weight, at a minimum and with no
    curvature across weights. ``hessian`` says how ``h`` is found:

    ``"exact"``
        From a product of the Hessian with each kept weight's unit vector; for at most ``MOST_EXACT`` (2,000) of them.
        Of a large net that few of whose weights are kept, that still takes hours on thousands of examples.
    ``"gauss_newton"``
        The diagonal of ``J' (diag(p) - p p') J``, with ``J`` the derivatives of the logits and ``p`` the probabilities
        that they give: what the Hessian of a cross-entropy is without the curvature of the net itself, and the Fisher
        information with labels from the model's own distribution. Never negative. Found as the mean over examples of
        ``sum_c p_c (d log p_c / dw)^2``, for up to ``classes`` classes; with more, each example draws ``samples``
        labels from ``weights.generator`` in place of that sum. The model's output, of shape (examples, classes), is
        taken for the logits (logarithms of probabilities are logits too), and the loss does no more than pass the
        batches through the model. Examples are cut, and batch normalisation is refused, as for ``"fisher"``.
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
        Exact for nets with at most ``MOST_EXACT`` weights, pruned ones too, so that a ladder has one kind of Hessian
        from its first round to its last; else Gauss-Newton; Hutchinson's where that is not the loss's:
        where the model's output is no logits, where the loss of the first batch does not bend in them as the mean
        cross-entropy does (another loss, weighted classes), or where batch normalisation is by the batch's statistics.

    Where ``h`` is negative, so is the score, and the weight goes before all others. At a minimum there is no such case;
    elsewhere the quadratic model says that the loss falls without that weight, and magnitudes instead of values would
    turn the noise of estimates into importance. Where that isn't wanted, Gauss-Newton has none: LeCun et al. take it
    for that reason (as the Levenberg-Marquardt approximation), and neglect the terms between different units besides.

    Entries that the mask doesn't keep score 0 and stand still. Batch normalisation in evaluation mode.
    """

    hessian: str = "auto"
    probes: int = 32
    classes: int = 20
    samples: int = 1
    traits: ClassVar[Traits] = Traits(mode="eval")

    def __post_init__(self) -> None:
        if self.hessian not in HESSIANS:
            raise InputError(f"unknown hessian {self.hessian!r} for obd.{suggestion(str(self.hessian), HESSIANS)}")
        for what in ("probes", "classes", "samples"):
            number = getattr(self, what)
            if not (isinstance(number, int) and number >= 1):
                raise InputError(f"obd takes a whole number of {what}, 1 or more, but got {number!r}")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model."""
        given, loss = data(weights, "obd")
        parameters = wanted(weights)
        kept = {name: _kept(weights, name, p) for name, p in parameters.items()}
        diagonal = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        hessian, examples = self.hessian, 0
        for batch in given:
            size = size_of(batch)
            if hessian == "auto":
                hessian = _fitting(weights.model, loss, batch, sum(p.numel() for p in parameters.values()))
            for found in self._found(hessian, weights, loss, batch, parameters, kept):
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
        hessian: str,
        weights: Weights,
        loss: Loss,
        batch: Any,
        parameters: dict[str, nn.Parameter],
        kept: dict[str, Tensor],
    ) -> Iterator[list[Tensor]]:
        """Parts that sum to the diagonal for one batch."""
        model = weights.model
        if hessian == "fisher":
            yield from _squares(model, lambda net, example: loss_of(loss, net, example)[None], batch, parameters)
            return
        if hessian == "gauss_newton":
            labels = _drawn(model, loss, batch, self.classes, self.samples, weights.generator)
            yield from _squares(model, _likelihoods(loss), (batch, labels), parameters)
            return
        exact, count = hessian == "exact", _count(kept)
        if exact and count > MOST_EXACT:
            raise InputError(
                f"obd takes the exact Hessian for at most {MOST_EXACT:,} weights, but {count:,} are kept: "
                "ask for hessian='gauss_newton' or 'hutchinson'"
            )
        places, own = list(kept.values()), list(parameters.values())
        product = _product(loss_of(loss, model, batch), own)
        for signs in _units(places, own) if exact else _signs(places, own, self.probes, weights.generator):
            yield [s * hs if exact else s * hs / self.probes for s, hs in zip(signs, product(signs), strict=True)]


def _fitting(model: nn.Module, loss: Loss, batch: Any, count: int) -> str:
    """What ``"auto"`` is for a net of this many weights, by the first batch."""
    if count <= MOST_EXACT:
        return "exact"
    return "gauss_newton" if not _mixing(model) and _bends_as_cross_entropy(model, loss, batch) else "hutchinson"


def _count(kept: Mapping[str, Tensor]) -> int:
    return sum(int(k.count_nonzero()) for k in kept.values())


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


# The likelihood of labels.


@contextmanager
def _outputs(model: nn.Module, change: Callable[[Any], Any] = lambda output: None) -> Iterator[list[Any]]:
    """What a model gives whenever it is called; its callers get what ``change`` makes of that, if that isn't None."""
    found: list[Any] = []

    def hook(net: nn.Module, args: Any, output: Any) -> Any:
        found.append(output)
        return change(output)

    hooked = model.register_forward_hook(hook)
    try:
        yield found
    finally:
        hooked.remove()


def _bends_as_cross_entropy(model: nn.Module, loss: Loss, batch: Any) -> bool:
    """Whether the model's output is logits, and the loss's second derivatives in them the mean cross-entropy's."""
    leaf: list[Tensor] = []

    def normalised(output: Any) -> Any:
        if not isinstance(output, Tensor) or output.dim() != 2:
            return None
        # Nothing changes for a loss of logits, and for one of logarithms of probabilities: these are both.
        leaf.append(output.detach().requires_grad_())
        return leaf[-1].log_softmax(1)

    with _outputs(model, normalised) as given:
        try:
            value = loss(model, batch)
            logits = logits_of(given, size_of(batch), "obd")
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            ramp = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device).expand_as(logits)
            (bent,) = torch.autograd.grad(slope, leaf, ramp)
        except (InputError, RuntimeError, ValueError, TypeError):
            return False  # a loss that fails for other reasons does so again, plainly
    chances = logits.detach().softmax(1)
    expected = chances * (ramp - (chances * ramp).sum(1, keepdim=True)) / len(logits)
    return torch.allclose(bent, expected, rtol=1e-2, atol=1e-5 / len(logits))


def _drawn(
    model: nn.Module, loss: Loss, batch: Any, classes: int, samples: int, generator: torch.Generator
) -> Tensor | None:
    """Labels from the model's distribution, (examples, samples); None where classes are few enough to take them all."""
    with _outputs(model) as given:
        loss(model, batch)
    logits = logits_of(given, size_of(batch), "obd")
    if logits.shape[1] <= classes:
        return None
    chances = logits.detach().softmax(1)
    if not bool(chances.isfinite().all()):
        raise InputError("labels can't be drawn from outputs that are not finite: are the weights?")
    return torch.multinomial(chances.cpu(), samples, replacement=True, generator=generator).to(chances.device)


def _likelihoods(loss: Loss) -> Terms:
    """Of an example and its drawn labels: the numbers whose squared gradients sum to the expectation over labels of
    the squared gradient of a label's log-likelihood."""

    def terms(model: nn.Module, example: Any) -> Tensor:
        batch, labels = example
        with _outputs(model) as given:
            loss(model, batch)
        likelihood = logits_of(given, 1, "obd").log_softmax(1)[0]
        if labels is None:
            return likelihood.detach().exp().sqrt() * likelihood
        return likelihood.gather(0, labels[0]) / math.sqrt(labels.shape[1])

    return terms


# Gradients example by example.


def _mixing(model: nn.Module) -> bool:
    """Whether examples of a batch change each other's outputs."""
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in model.modules())


def _squares(model: nn.Module, terms: Terms, batch: Any, parameters: dict[str, nn.Parameter]) -> Iterator[list[Tensor]]:
    """Parts that sum to the mean over examples of the squared gradients of their terms."""
    if _mixing(model):
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
            found = _together(model, terms, _taken(batch, own, span), own, parameters)
            together = found is not None
        for squares in _singly(model, terms, parts, parameters) if found is None else [found]:
            yield [square / size for square in squares]


def _singly(
    model: nn.Module, terms: Terms, examples: Iterable[Any], parameters: dict[str, nn.Parameter]
) -> Iterator[list[Tensor]]:
    """The squared gradients of one example's terms after the other."""
    own = list(parameters.values())
    for example in examples:
        values = terms(model, example)
        for place, value in enumerate(values):
            last = place == len(values) - 1
            found = torch.autograd.grad(value, own, retain_graph=not last, allow_unused=True)
            yield [torch.zeros_like(p) if g is None else g.square() for g, p in zip(found, own, strict=True)]


class _Objective(nn.Module):
    """Terms as a module, so that their model's parameters can be given to it, and they still see the model itself."""

    def __init__(self, model: nn.Module, terms: Terms) -> None:
        super().__init__()
        self.training = model.training
        self.model, self.terms = model, terms

    def forward(self, example: Any) -> Tensor:
        return self.terms(self.model, example)


def _together(
    model: nn.Module, terms: Terms, batch: Any, own: list[bool], parameters: dict[str, nn.Parameter]
) -> list[Tensor] | None:
    """The sum of the squared gradients of the terms of a batch's examples, taken at once; None where torch can't.

    It can't where the way through the net depends on the data, say, or for operations that it has no rule for.
    ``own`` says of which of the batch's tensors each example has its own entry.
    """
    objective = _Objective(model, terms)
    values = {f"model.{name}": p.detach() for name, p in parameters.items()}

    def one(*parts: Tensor) -> dict[str, Tensor]:
        cut = iter([part[None] if each else part for part, each in zip(parts, own, strict=True)])
        example = _each(batch, lambda _: next(cut))
        found, back = torch.func.vjp(lambda v: torch.func.functional_call(objective, v, (example,)), values)[:2]
        total: dict[str, Tensor] = {}
        for unit in torch.eye(len(found), dtype=found.dtype, device=found.device):
            (gradients,) = back(unit)
            for name, gradient in gradients.items():
                total[name] = total[name].add_(gradient.square()) if name in total else gradient.square()
        return total

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that it takes one by one
            squares = torch.func.vmap(one, in_dims=tuple(0 if each else None for each in own))(*tensors(batch))
    except (RuntimeError, ValueError, TypeError):
        return None
    return [squares[name].sum(0) for name in values]


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
register("obd_hutchinson")(Obd(hessian="hutchinson"))
