"""Replicates: several trainings of one task and recipe in one pass, each with its own seed, start, mask and data order.

Weights, buffers, masks and batches of all replicates are stacked along a new first dimension, and one vectorised step
(``torch.vmap``) trains them all. The optimisers work entry by entry, so one over the stacked weights is exactly one for
each replicate. A small net leaves most of a GPU idle; a pass over many of them costs little more than one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from tombola.batches import size_of
from tombola.engines.evaluation import evaluate
from tombola.engines.graphs import Result, StepGraph, random_states
from tombola.engines.masked import epoch_order, optimizer_over, set_rate, step_device
from tombola.errors import InputError, TombolaError
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.acting import acts
from tombola.tasks.task import Examples, Loss, Task


@dataclass(frozen=True)
class Place:
    """A training's place in a pass: ``number``, from 0, ``of`` so many.

    The last bits of its results depend on both, as the order of a sum may, but not on who has the other places.
    """

    number: int
    of: int


class ReplicatedSession:
    """Several trainings in one pass. Replicate i has what ``MaskedSession`` has for its seed, to float tolerance.

    ``models`` hold the starting values and belong to the session from now on. ``train`` is what all replicates train on
    or, where the seeds' validation parts differ, a list with equally many examples for each.

    Raises ``InputError`` where the replicates don't fit together, and where a net can't be trained in one pass with
    others: it draws random numbers (dropout), or does what ``torch.vmap`` can't (take a Python number out of a tensor).
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        masks: Sequence[Mask],
        task: Task,
        train: Examples | list[Examples] | tuple[Examples, ...],
        recipe: Recipe,
        seeds: Sequence[int],
    ) -> None:
        _check_recipe(recipe)
        self.train = list(train) if isinstance(train, (list, tuple)) else [train] * len(models)
        self.task, self.recipe, self.seeds, self.masks = task, recipe, tuple(seeds), tuple(masks)
        self.models = [model.to(recipe.device).train() for model in models]
        _check_alike(self.models, masks, self.train, self.seeds)
        for model, mask in zip(self.models, masks, strict=True):
            mask.apply_(model)
        self._loss = _Loss(self.models[0], task.loss)
        self._parameters: dict[str, Tensor]
        self._buffers: dict[str, Tensor]
        self._parameters, self._buffers = stack_module_state(self.models)
        self._keep = _stacked_masks(self._parameters, masks)
        self.optimizer = optimizer_over(self._parameters.values(), recipe)
        self.steps_per_epoch = recipe.steps_per_epoch(len(self.train[0]))
        self.step = recipe.start.steps(self.steps_per_epoch)
        self._order: tuple[int, tuple[Tensor, ...]] = (-1, ())
        on_cuda = torch.device(recipe.device).type == "cuda"
        self._graph = StepGraph(min(recipe.batch, len(self.train[0]))) if on_cuda else None
        self._check_net()

    @property
    def note(self) -> str:
        """On CUDA, once a step has been taken: that steps are recorded as a CUDA graph, or why not. Else empty."""
        return "" if self._graph is None else self._graph.note

    def stretch(self, steps: int) -> list[float]:
        """Train all replicates for ``steps`` steps; for each, the mean training loss over its examples."""
        self._loss.train()
        totals = torch.zeros(len(self.models), dtype=torch.float64, device=self.recipe.device)
        seen = 0
        for _ in range(steps):
            set_rate(self.optimizer, self.recipe.lr_at(self.step, self.steps_per_epoch))
            index = self._index(self.step)
            losses, size = self.advance(index) if self._graph is None else self._graph.advance(self, index)
            totals.add_(losses, alpha=size)
            seen += size
            self.step += 1
        self._check_zeros()
        return [float(total) / max(seen, 1) for total in totals.tolist()]

    def advance(self, index: Tensor) -> Result:
        """Train replicate i on the examples ``index[i]`` at the optimiser's present rate; the losses, and the size of
        one replicate's batch."""
        batch, size = self._take(index)
        losses = self._losses(self._buffers, batch)
        for parameter in self._parameters.values():
            parameter.grad = None
        losses.sum().backward()  # type: ignore[no-untyped-call]
        gradients = [(self._parameters[name].grad, keep) for name, keep in self._keep.items()]
        masked = [(gradient, keep) for gradient, keep in gradients if gradient is not None]
        if masked:
            torch._foreach_mul_([g for g, _ in masked], [keep for _, keep in masked])
        self.optimizer.step()
        return losses.detach(), size

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, stacked, by name."""
        moments = {f"{name}.{key}": value for name, key, value in self._moments()}
        return self._parameters | self._buffers | {f"optimizer.{name}": value for name, value in moments.items()}

    def model(self, replicate: int) -> nn.Module:
        """The net of one replicate with its current weights, as they stay until it is asked for again."""
        model = self.models[replicate]
        with torch.no_grad():
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                value.copy_(self._stacked(name)[replicate])
        return model

    def state(self, replicate: int) -> dict[str, Tensor]:
        """The common state of one replicate, in the names and shapes of ``MaskedSession``, which can go on from it."""
        values = self.model(replicate).state_dict()
        state = {f"model.{name}": value.detach().cpu().clone() for name, value in values.items()}
        for name, key, value in self._moments():
            own = value if key == "step" else value[replicate]
            state[f"optimizer.{name}.{key}"] = own.detach().cpu().clone()
        state["step"] = torch.tensor(self.step)
        return state

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from the states of all replicates, taken at one step; ``InputError`` where they are not."""
        steps = [int(state["step"]) for state in states]
        if len(steps) != len(self.models) or len(set(steps)) != 1:
            raise InputError(f"{len(self.models)} replicates go on from as many states of one step, but got {steps}")
        names = [name.removeprefix("model.") for name in states[0] if name.startswith("model.")]
        held = {f"optimizer.{name}.{key}": moment for name, key, moment in self._moments()}
        with torch.no_grad():
            for name in names:
                if name in self._parameters or name in self._buffers:  # else a second name of a shared weight
                    self._stacked(name).copy_(torch.stack([state[f"model.{name}"] for state in states]))
            for full, moment in held.items():
                moment.copy_(_joined(states, full)) if full in states[0] else moment.zero_()
        for name, parameter in self._parameters.items():
            prefix = f"optimizer.{name}."
            for full in states[0]:
                if full.startswith(prefix) and full not in held:
                    key = full.removeprefix(prefix)
                    where = step_device(self.optimizer, parameter) if key == "step" else parameter.device
                    self.optimizer.state[parameter][key] = _joined(states, full).clone().to(where)
        self.step = steps[0]

    def _moments(self) -> list[tuple[str, str, Tensor]]:
        """The optimiser's tensors: parameter, key, value. Adam's step count is one for all replicates."""
        return [
            (name, key, value)
            for name, parameter in self._parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        ]

    def _stacked(self, name: str) -> Tensor:
        return self._parameters[name] if name in self._parameters else self._buffers[name]

    def _index(self, step: int) -> Tensor:
        """The examples of one step, replicates x batch."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            orders = [epoch_order(s, epoch, t, self.recipe.order) for s, t in zip(self.seeds, self.train, strict=True)]
            stacked = torch.stack(orders).to(self.recipe.device)
            self._order = (epoch, torch.split(stacked, self.recipe.batch, dim=1))
        return self._order[1][position]

    def _take(self, index: Tensor) -> tuple[Any, int]:
        """The stacked batches, and the size of one."""
        batches = [train.take(own) for train, own in zip(self.train, index, strict=True)]
        return _stack(batches), size_of(batches[0])

    def _losses(self, buffers: Mapping[str, Tensor], batch: Any, randomness: str = "error") -> Tensor:
        """Each replicate's loss, shape (replicates,). Buffers are updated in place."""

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Any:
            values = {f"model.{name}": value for name, value in (parameters | buffers).items()}
            return functional_call(self._loss, values, (batch,))

        losses: Tensor = vmap(loss, randomness=randomness)(self._parameters, dict(buffers), batch)
        return losses

    def _check_net(self) -> None:
        """Try the first batch, without a trace, so that a net that won't go is refused before the training begins."""
        device = torch.device(self.recipe.device)
        copies = {name: buffer.clone() for name, buffer in self._buffers.items()}
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else ()):
            before = random_states(device)
            try:
                losses = self._losses(copies, self._take(self._index(self.step))[0], randomness="different")
            except (RuntimeError, ValueError, TypeError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"this net can't be trained as replicates in one pass: {reason}") from error
            if not all(map(torch.equal, before, random_states(device))):
                raise InputError(
                    "this net can't be trained as replicates in one pass: it draws random numbers (dropout), "
                    "which would differ from those of each seed alone"
                )
        if losses.shape != (len(self.models),):
            raise InputError(f"the loss must be a scalar, but has shape {tuple(losses.shape[1:])}")

    def _check_zeros(self) -> None:
        for name, keep in self._keep.items():
            value = self._parameters[name].detach().flatten(1)
            moved = (value * keep.flatten(1) != value).any(dim=1) & value.isfinite().all(dim=1)
            if bool(moved.any()):
                raise TombolaError(
                    f"pruned weights of {name!r} moved away from zero at step {self.step}: this is a defect"
                )


class Replicate:
    """One replicate of a session as the training loop sees it: all of ``Session`` but what moves it on."""

    def __init__(self, session: ReplicatedSession, number: int) -> None:
        self._session, self._number = session, number

    @property
    def model(self) -> nn.Module:
        """The net with its current weights."""
        return self._session.model(self._number)

    @property
    def step(self) -> int:
        """The number of the next step in the recipe's schedule and data order."""
        return self._session.step

    @property
    def mask(self) -> Mask:
        """What is kept."""
        return self._session.masks[self._number]

    seen: Mapping[str, float] = {}

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The task's loss and metrics over all examples, with the current weights or with another state_dict."""
        return evaluate(self._session.task, self.model, data, state)

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on from here, as of ``MaskedSession``."""
        return self._session.state(self._number)


class _Loss(nn.Module):
    """The task's loss as a module, so that whatever the loss asks of the net it finds one replicate's weights there."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(self.model, batch)


def _check_recipe(recipe: Recipe) -> None:
    if recipe.updates is not None or recipe.until_settled is not None:
        raise InputError("each net's mask goes its own way, and so must its training")
    plain = Recipe()
    for name in ("trains", "scale_l1", "precision"):
        if (value := getattr(recipe, name)) != getattr(plain, name):
            raise InputError(
                f"nets trained in one pass have {name} {getattr(plain, name)!r}, but the recipe's is {value!r}: "
                "train them one by one"
            )


def _check_alike(
    models: Sequence[nn.Module], masks: Sequence[Mask], train: Sequence[Examples], seeds: Sequence[int]
) -> None:
    counts = {"models": len(models), "masks": len(masks), "training sets": len(train), "seeds": len(seeds)}
    if len(set(counts.values())) != 1 or not models:
        given = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise InputError(f"replicates need a model, a mask, training data and a seed each, but got {given}")
    if any(map(acts, train)):
        raise InputError(
            "data that come of acting are each net's own, and so must be its training: train them one by one"
        )
    lengths = [len(examples) for examples in train]
    if len(set(lengths)) != 1:
        raise InputError(f"replicates must train on equally many examples, but got {lengths}")
    for number, model in enumerate(models[1:], start=1):
        if _structure(model) != _structure(models[0]):
            raise InputError(f"replicates must be nets of one structure, but net {number} differs from net 0")


def _structure(model: nn.Module) -> list[Any]:
    named = (*model.named_parameters(), *model.named_buffers())
    modules = [(name, type(module)) for name, module in model.named_modules()]
    return [modules, *((name, value.shape, value.dtype, value.requires_grad) for name, value in named)]


def _stacked_masks(parameters: Mapping[str, Tensor], masks: Sequence[Mask]) -> dict[str, Tensor]:
    """For each parameter that any mask takes something from, what is kept: 1 and 0, replicates first."""
    stacked = {}
    for name, parameter in parameters.items():
        whole = torch.ones(parameter.shape[1:], dtype=torch.bool)
        keep = torch.stack([mask.get(name, whole) for mask in masks])
        if not bool(keep.all()):
            stacked[name] = keep.to(parameter.device, parameter.dtype)
    return stacked


def _joined(states: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """One of the optimiser's tensors for all replicates."""
    return states[0][name] if name.endswith(".step") else torch.stack([state[name] for state in states])


def _stack(batches: Sequence[Any]) -> Any:
    """Batches of one form as one, their tensors stacked."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.stack(list(batches))
    if isinstance(first, Mapping):
        return {key: _stack([batch[key] for batch in batches]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_stack(parts) for parts in zip(*batches, strict=True))
    raise InputError(f"a batch of replicates must be made of tensors, but holds a {type(first).__name__}")
