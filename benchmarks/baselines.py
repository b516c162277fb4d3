"""What Tombola is compared with: training steps as one writes them in PyTorch, with masks multiplied into the weights.

Three forms, for any net of linear and 2-D convolutional layers: an eager loop with the optimiser as torch makes it by
default, the same with the fused one, and a step that ``torch.compile`` turns into compiled code as a whole: batch
statistics, gradients and update. Data lie in memory, normalised beforehand, so that a batch is two ``index_select``.
Eager loops also come in the channels-last layout and with bfloat16 by autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tombola as tb
from tombola.tasks.task import Examples

Loop = Callable[[int], object]
"""Takes so many training steps."""
Tensors = dict[str, Tensor]


class MultipliedByMask(nn.Module):
    """A layer that multiplies its weight by a mask in every forward pass."""

    mask: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, mask: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask.to(layer.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight * self.mask
        if isinstance(self.layer, nn.Conv2d):
            y: Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
            return y
        return F.linear(x, weight, self.layer.bias)


def with_masks(model: nn.Module, mask: tb.Mask) -> nn.Module:
    """A copy of the net whose layers multiply their weights by the mask."""
    masked = copy.deepcopy(model)
    for name, module in list(masked.named_modules()):
        if f"{name}.weight" in mask and isinstance(module, (nn.Linear, nn.Conv2d)):
            parent, _, own = name.rpartition(".")
            setattr(masked.get_submodule(parent), own, MultipliedByMask(module, mask[f"{name}.weight"]))
    return masked


@dataclass(frozen=True)
class Normalised:
    """Examples as floats, ready to be taken by index."""

    x: Tensor
    y: Tensor
    channels_last: bool = False

    @classmethod
    def of(cls, data: Examples, most: int | None = None) -> Normalised:
        """The first ``most`` examples, or all."""
        x, y = data.take(torch.arange(len(data) if most is None else min(most, len(data))))
        return cls(x, y)

    def as_channels_last(self) -> Normalised:
        """The same images stored channel by channel last: taking a batch changes no layout."""
        return Normalised(self.x.permute(0, 2, 3, 1).contiguous(), self.y, channels_last=True)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A batch (1-D int64 index)."""
        x = self.x.index_select(0, index)
        return x.permute(0, 3, 1, 2) if self.channels_last else x, self.y.index_select(0, index)


def eager(
    model: nn.Module,
    mask: tb.Mask,
    data: Normalised,
    recipe: tb.Recipe,
    *,
    fused: bool = False,
    bfloat16: bool = False,
) -> Loop:
    """An ordinary eager loop on a copy of the net."""
    net = with_masks(model, mask).train()
    if data.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(net, recipe, fused=fused)

    def steps(count: int) -> None:
        for index in torch.randint(len(data.y), (count, recipe.batch)):
            x, y = data.take(index)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return steps


def make_optimizer(net: nn.Module, recipe: tb.Recipe, *, fused: bool) -> torch.optim.Optimizer:
    """Adam or SGD, as torch makes it by default or fused."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=fused or None
        )
    return torch.optim.Adam(net.parameters(), recipe.lr, recipe.betas, recipe.eps, fused=fused or None)


class Compiled:
    """A whole step of Adam or SGD through ``torch.compile``: one program for all masks of one net.

    The first step compiles, which takes many seconds and a C++ compiler; without one it raises ``RuntimeError``.
    """

    def __init__(self, model: nn.Module, recipe: tb.Recipe) -> None:
        self.model, self.recipe = copy.deepcopy(model).train(), recipe
        self._step = torch.compile(self._uncompiled())

    def loop(self, mask: tb.Mask, data: Normalised) -> Loop:
        """Steps under a mask, from the net's values."""
        parameters = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        masks = {name: kept.to(torch.float32) for name, kept in mask.items()}
        first, second = ({name: torch.zeros_like(p) for name, p in parameters.items()} for _ in range(2))
        taken = torch.zeros(())

        def steps(count: int) -> None:
            for index in torch.randint(len(data.y), (count, self.recipe.batch)):
                self._step(parameters, buffers, masks, first, second, taken, *data.take(index))

        return steps

    def _uncompiled(self) -> Callable[..., Tensor]:
        model, recipe = self.model, self.recipe
        update = _sgd if recipe.optimizer == "sgd" else _adam

        def step(
            parameters: Tensors,
            buffers: Tensors,
            masks: Tensors,
            first: Tensors,
            second: Tensors,
            taken: Tensor,
            x: Tensor,
            y: Tensor,
        ) -> Tensor:
            # Running statistics change in the forward pass, so they have to be arguments of what is differentiated.
            def loss_of(values: Tensors, running: Tensors) -> Tensor:
                masked = {name: value * masks[name] if name in masks else value for name, value in values.items()}
                out: Tensor = torch.func.functional_call(model, (masked, running), (x,))
                return F.cross_entropy(out, y)

            loss: Tensor
            gradients, loss = torch.func.grad_and_value(loss_of)(parameters, buffers)
            taken.add_(1)
            for name, value in parameters.items():
                update(recipe, value, gradients[name], first[name], second[name], taken)
            return loss

        return step


def _sgd(recipe: tb.Recipe, value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, taken: Tensor) -> None:
    first.mul_(recipe.momentum).add_(gradient + recipe.weight_decay * value)
    value.sub_(recipe.lr * first)


def _adam(recipe: tb.Recipe, value: Tensor, gradient: Tensor, first: Tensor, second: Tensor, taken: Tensor) -> None:
    beta_1, beta_2 = recipe.betas
    first.lerp_(gradient, 1 - beta_1)
    second.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
    root = (second / (1 - beta_2**taken)).sqrt()
    value.sub_(recipe.lr / (1 - beta_1**taken) * first / (root + recipe.eps))


def compiled(model: nn.Module, recipe: tb.Recipe, data: Normalised) -> Compiled | None:
    """A compiled step, tried once; None, and a line saying so, where there is no C++ compiler."""
    made = Compiled(model, recipe)
    try:
        made.loop(tb.Mask.full(model), data)(1)
    except RuntimeError as error:  # torch raises a subclass of it for whatever fails in compiling
        print(f"torch.compile is left out: {str(error).strip().partition(chr(10))[0]}\n")
        return None
    return made


@torch.no_grad()
def evaluate(net: nn.Module, data: Normalised, batch: int = 1000) -> tuple[float, float]:
    """Mean loss and accuracy over all examples, in evaluation mode."""
    net.eval()
    loss, right = 0.0, 0
    for first in range(0, len(data.y), batch):
        x, y = data.x[first : first + batch], data.y[first : first + batch]
        out = net(x)
        loss += float(F.cross_entropy(out, y, reduction="sum"))
        right += int((out.argmax(dim=1) == y).sum())
    net.train()
    return loss / len(data.y), right / len(data.y)
