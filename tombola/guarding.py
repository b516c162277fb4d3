"""The guard: any training loop, pruned weights stay exactly zero."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.mask import Mask


class Guard:
    """Keeps every pruned weight of a model at exactly 0.0 while an optimiser trains it.

    On entry the pruned weights are set to zero, and so is what the optimiser already remembers of them (momentum,
    Adam's moments). From then on a pruned weight's gradient is cleared as soon as it is accumulated, so that gradient
    clipping, loss scaling and norms see the kept weights only, and the weight itself is cleared after every step,
    whatever the optimiser did to it (weight decay, decoupled or not, averaging, a moment restored from a checkpoint).
    Kept weights train as they would if pruned gradients were zeroed by hand; layers kept whole are left alone. Frozen
    weights may be unfrozen under guard.

    It registers hooks on the parameters and the optimiser and nothing else: names, ``state_dict``, ``deepcopy`` and
    saving are those of the bare model; a copy is not guarded. Works as a context manager, or until ``remove()``.
    On a CPU, prefer optimisers with ``fused=True``: torch's plain Adam slows down on exact zeros.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, mask: Mask) -> None:
        self.mask = mask
        if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
            raise InputError(
                "LBFGS remembers all weights as one vector, the pruned ones included: "
                "guard it before its first step, or build a new one for the new mask"
            )
        covered = mask.parameters(model)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        strangers = [name for name, p in covered.items() if p.requires_grad and id(p) not in trained]
        if strangers:
            raise InputError(
                f"the optimizer doesn't train {strangers[0]!r}, which the mask covers: build it from this model"
            )
        self._pruned = [(p, _Gone(mask[name], p)) for name, p in covered.items() if not bool(mask[name].all())]
        _clear(self._pruned, optimizer.state)
        self._handles: list[Any] = [_on_gradient(parameter, gone) for parameter, gone in self._pruned]
        self._handles.append(optimizer.register_step_post_hook(self._after_step))

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gone in self._pruned:
            gone.clear(parameter)

    def remove(self) -> None:
        """Stop guarding; the weights stay as they are. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def guard(model: nn.Module, optimizer: torch.optim.Optimizer, mask: Mask) -> Guard:
    """Guard a training loop of your own: ``with tb.guard(model, optimizer, mask): ...``. See ``Guard``.

    Raises ``InputError`` where the mask doesn't fit the model or the optimizer trains other parameters.
    """
    return Guard(model, optimizer, mask)


class _Gone:
    """The pruned entries of one parameter, to be cleared in it and in tensors of its shape."""

    def __init__(self, kept: Tensor, parameter: Tensor) -> None:
        self.entries = ~kept.to(parameter.device)
        # All bits of a kept entry, none of a pruned one: "and" with a tensor's own bits gives +0.0, or the value as it
        # was, of infinities and NaN too, at a fraction of the cost of a masked fill.
        self.bits = None
        if parameter.element_size() in _INTEGERS:
            self.bits = (~self.entries).to(_INTEGERS[parameter.element_size()]).neg_()

    def clear(self, values: Tensor | None) -> None:
        """Set the pruned entries of ``values`` to +0.0, in place."""
        if values is None:
            return
        if values.is_sparse:  # the rows that a batch looked up in an embedding
            values._values().masked_fill_(self.entries[tuple(values._indices())], 0.0)
        elif self.bits is not None and (values.element_size(), values.device) == (
            self.bits.element_size(),
            self.bits.device,
        ):
            values.view(self.bits.dtype).bitwise_and_(self.bits)
        else:
            values.masked_fill_(self.entries.to(values.device), 0.0)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _on_gradient(parameter: nn.Parameter, gone: _Gone) -> Any:
    """Clear the pruned entries of each gradient as it is accumulated; the handle of the hook that does it."""

    @torch.no_grad()
    def clear(parameter: Tensor) -> None:
        gone.clear(parameter.grad)

    # Torch takes the hook only where a gradient is wanted, and keeps it when that changes.
    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)
    handle = parameter.register_post_accumulate_grad_hook(clear)  # type: ignore[no-untyped-call]
    if frozen:
        parameter.requires_grad_(False)
    return handle


@torch.no_grad()
def _clear(pruned: list[tuple[nn.Parameter, _Gone]], state: Mapping[Tensor, Any]) -> None:
    """Zero the pruned entries of the weights, their gradients and every state tensor of their shape."""
    for parameter, gone in pruned:
        gone.clear(parameter)
        gone.clear(parameter.grad)
        for value in state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                gone.clear(value)
