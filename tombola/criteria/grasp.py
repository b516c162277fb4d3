"""GraSP: keep what the gradient flow needs (Wang et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tombola.batches import size_of
from tombola.criteria.base import Scores, Traits, Weights, register
from tombola.criteria.gradients import data, loss_of, wanted
from tombola.errors import InputError


@dataclass(frozen=True)
class Grasp:
    """``w (Hg)``: the paper's score ``S = -w (Hg)`` turned round, for the highest ``S`` are what it removes.

    ``g`` is the gradient of the mean loss over all batches with the logits divided by ``temperature``, ``H`` its
    Hessian, both with respect to the prunable weights. To first order a weight's removal changes the squared norm of
    the gradient by ``2 S`` (section 4.1, equation 8). The Hessian-vector product is the gradient of the product of each
    batch's gradient with ``g``, so that both see the same images. Batch normalisation in training mode, as in the
    authors' code, where the scores' sum nearly cancels: compare ranks, not values.
    """

    temperature: float = 200.0
    traits: ClassVar[Traits] = Traits(mode="train")

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"the temperature of grasp must be more than 0, but got {self.temperature!r}")

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model."""
        given, loss = data(weights, "grasp")
        batches = list(given)  # gone through twice
        parameters = list(wanted(weights).values())
        examples = sum(size_of(batch) for batch in batches)
        if not examples:
            raise InputError("grasp got no batches: an iterator gives its batches only once, so pass a list")

        def gradient(batch: Any, again: bool) -> list[Tensor]:
            with _tempered(weights.model, self.temperature):
                value = loss_of(loss, weights.model, batch) * (size_of(batch) / examples)
            found = torch.autograd.grad(value, parameters, create_graph=again, allow_unused=True)
            return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]

        # One batch is gone through once: its gradient serves both as g and as what is differentiated again.
        parts = [gradient(batches[0], True)] if len(batches) == 1 else None
        flow = list(parts[0]) if parts else [torch.zeros_like(p) for p in parameters]
        if not parts:
            for batch in batches:
                for place, part in zip(flow, gradient(batch, False), strict=True):
                    place.add_(part)
        fixed = [g.detach() for g in flow]
        product: list[Tensor] = []
        for batch in batches:
            again = parts.pop() if parts else gradient(batch, True)
            found = _second(again, fixed, parameters)
            product = [sum_ + part for sum_, part in zip(product, found, strict=True)] if product else found
        return {name: w * hg for (name, w), hg in zip(weights.final.items(), product, strict=True)}


def _second(gradients: list[Tensor], fixed: list[Tensor], parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradient of ``<gradients, fixed>``; 0 where a net is linear in a weight."""
    dot = torch.stack([(g * f).sum() for g, f in zip(gradients, fixed, strict=True)]).sum()
    if not dot.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    try:
        if _once_differentiable(dot):
            raise RuntimeError("its backward is marked once_differentiable")
        found = torch.autograd.grad(dot, parameters, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"grasp needs second derivatives, and this net has a part without: {reason}") from error
    return [torch.zeros_like(p) if hg is None else hg for hg, p in zip(found, parameters, strict=True)]


def _once_differentiable(value: Tensor) -> bool:
    """Whether a function that can't be differentiated twice is behind a value.

    Such a function's gradient ends in a node that fails, but leads on to no parameter: asked for the parameters alone,
    torch passes it by and leaves its share out.
    """
    seen: set[Any] = set()
    ahead = [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        ahead.extend(following for following, _ in node.next_functions)
    return False


@contextmanager
def _tempered(net: nn.Module, temperature: float) -> Iterator[None]:
    """Divide the logits by a temperature, in the net itself: a loss may ask more of it than its output."""

    def divide(net: nn.Module, inputs: Any, logits: Any) -> Tensor:
        if not isinstance(logits, Tensor):
            raise InputError(f"grasp divides the logits by its temperature, but the net gave a {type(logits).__name__}")
        return logits / temperature

    hook = net.register_forward_hook(divide)
    try:
        yield
    finally:
        hook.remove()


register("grasp")(Grasp())
