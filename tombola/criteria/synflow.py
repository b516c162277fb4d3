"""SynFlow: synaptic flow, which needs no data (Tanaka et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tombola.batches import tensors
from tombola.criteria.base import Scores, Traits, Weights, register
from tombola.criteria.gradients import iterable, wanted
from tombola.criteria.unfolded import Unfolded
from tombola.errors import InputError


@dataclass(frozen=True)
class SynFlow:
    """``|w dR/dw|`` with ``R`` the sum of the outputs for an input of ones, every parameter and buffer replaced by its
    absolute value (equation 5 and the authors' code; biases and the entries of batch normalisation included).

    In evaluation mode and float64: float32 overflows from ResNet-32 on. Of the batches only the input's shape is used.
    Meant to be repeated: pruned in 100 rounds, each scored anew (``prune_at_init``), it never empties a layer before
    the others (theorem 3) unless one round takes as much as a layer's whole flow, so rounds are put in between there.
    """

    traits: ClassVar[Traits] = Traits(mode="eval", rounds=100, cautious=True, data_free=True)

    def __call__(self, weights: Weights) -> Scores:
        """The scores of one model, float64."""
        parameters = list(wanted(weights).values())
        shape, device = _input_shape(weights), parameters[0].device
        with torch.no_grad():
            weights.model.double()
            positive = set(parameters) if weights.room else set()  # since the round that began to fill the room
            for value in (*weights.model.parameters(), *weights.model.buffers()):
                if value.dtype != torch.bool and value not in positive:
                    value.abs_()
        flow = _output(weights.model, torch.ones(shape, dtype=torch.float64, device=device)).sum()
        if not bool(flow.isfinite()):
            raise InputError(
                "the flow through the net is not finite: some weight isn't, "
                "or they are too large together even for float64 and must be scaled down"
            )
        return _products(flow, dict(zip(weights.final, parameters, strict=True)), weights.room)


def _output(model: nn.Module, ones: Tensor) -> Tensor:
    """What the net makes of its input; ``InputError`` where it can't, or gives no tensor computed from the weights."""
    try:
        with Unfolded():
            output = model(ones)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"synflow gives the net one input of ones, of shape {tuple(ones.shape)} and type float64, "
            f"and the net doesn't take it: {reason}"
        ) from error
    if not isinstance(output, Tensor) or not output.requires_grad:
        got = "one without weights in it" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(f"synflow sums a net's outputs, a tensor computed from the weights, but this one gave {got}")
    return output


def _products(flow: Tensor, parameters: dict[str, nn.Parameter], room: dict[str, Tensor]) -> Scores:
    """``|weight * gradient|``, each as soon as the gradient is there and in its memory. Only then the last round's is
    let go, for the next layer's gradient to take its place: fresh memory costs more than the product."""
    hooks, found = [], Scores()
    for name, parameter in parameters.items():

        def take(reached: Tensor, name: str = name) -> None:
            assert reached.grad is not None
            found[name] = room[name] = reached.grad.mul_(reached.detach()).abs_()
            reached.grad = None

        hooks.append(parameter.register_post_accumulate_grad_hook(take))  # type: ignore[no-untyped-call]
    try:
        flow.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    for name in parameters.keys() - found.keys():  # the outputs don't depend on it
        room[name] = torch.zeros_like(parameters[name], requires_grad=False)
    return {name: room[name] for name in parameters}


def _input_shape(weights: Weights) -> tuple[int, ...]:
    """One example of the inputs: the first tensor of the first batch, with a first dimension of 1."""
    for batch in () if weights.batches is None else iterable(weights.batches):
        if (found := tensors(batch)) and found[0].dim():
            return (1, *found[0].shape[1:])
    raise InputError(
        "synflow uses no data, but must know the shape of the input: pass batches=, e.g. [torch.empty(1, 3, 32, 32)]"
    )


register("synflow")(SynFlow())
