"""The compact engine: dead channels physically removed, the rest trained as the masked engine does.

Exact but for the order of sums in floating point: losses and states equal the masked engine's step by step. Running
statistics of dropped batch-normalisation channels stay as they were at the start.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tombola.engines.compaction import compact
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import MaskedSession, batch_norm_scales, optimizer_over, set_rate
from tombola.engines.tracing import UnsupportedError, trace
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.task import Examples, Task


def supports(model: nn.Module, task: Task, train: Examples) -> str | None:
    """Why the compact engine can't train this net on this task; None where it can. One small batch is tried."""
    try:
        trace(model, Mask({}), _look(model, task, train).inputs)
    except UnsupportedError as error:
        return str(error)
    return None


class CompactSession:
    """One training of the compacted net. What was dropped still decays, where the recipe has weight decay, and dropped
    scales of batch normalisation still shrink, where it penalises them.

    Raises ``UnsupportedError`` where ``supports`` gives a reason.
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        if recipe.trains != "weights":
            raise UnsupportedError(f"it trains weights, but the recipe trains {recipe.trains!r}")
        if recipe.updates is not None:
            raise UnsupportedError("the mask is updated during training, and what is dead now may come alive")
        self._model, self._stale = model.to(recipe.device), False
        self.mask = mask
        mask.apply_(model)
        look = _look(model, task, train)
        self._compaction = compact(model, mask, look.inputs)
        self._inner = MaskedSession(self._compaction.model, self._compaction.mask, task, train, recipe, seed)
        self._task, self._recipe = task, recipe
        # Dead entries get gradients of 0: without weight decay or a penalty no optimiser moves them.
        moved = bool(recipe.weight_decay or recipe.scale_l1)
        dropped = self._compaction.dropped(model.state_dict()) if moved else {}
        self._dropped = {name: nn.Parameter(values) for name, values in dropped.items() if name in look.learning}
        scales = batch_norm_scales(model) if recipe.scale_l1 else {}
        self._scales = [values for name, values in self._dropped.items() if name in scales]
        for values in self._dropped.values():
            values.grad = torch.zeros_like(values)
        self._decay = optimizer_over(self._dropped.values(), recipe) if self._dropped else None

    @property
    def model(self) -> nn.Module:
        """The whole net with its current values: written back when asked for, after a stretch."""
        if self._stale:
            full = self._model.state_dict()
            self._compaction.expand(self._compaction.model.state_dict(), full)
            self._compaction.restore(self._dropped, full)
            self._stale = False
        return self._model

    @property
    def step(self) -> int:
        """The number of the next step."""
        return self._inner.step

    @property
    def layers(self) -> Mapping[str, str]:
        """By weight that lost channels, its shape now and before."""
        small, whole = self._compaction.model.state_dict(), self._compaction.shapes
        return {
            name: f"{'x'.join(map(str, small[name].shape))} of {'x'.join(map(str, shape))}"
            for name, shape in whole.items()
            if name in small and len(shape) > 1 and tuple(small[name].shape) != shape
        }

    @property
    def note(self) -> str:
        """What the masked engine says of its way to run the compact net."""
        return self._inner.note

    seen: Mapping[str, float] = {}

    def stretch(self, steps: int) -> float:
        """Train for ``steps`` steps; the mean training loss over their examples."""
        first = self.step
        loss = self._inner.stretch(steps)
        if self._decay is not None:
            for step in range(first, self.step):
                set_rate(self._decay, self._recipe.lr_at(step, self._inner.steps_per_epoch))
                for scale in self._scales:
                    scale.grad = self._recipe.scale_l1 * scale.detach().sign()
                self._decay.step()
        self._stale = True
        return loss

    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Not on this engine, which has removed what another mask may keep."""
        raise UnsupportedError("a compact net has one mask for good")

    def skip(self) -> None:
        """Go past a step without training."""
        self._inner.skip()

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """The task's loss and metrics over all examples, with the current weights or with another state_dict."""
        small = None if state is None else self._compaction.shrink(state)
        return evaluate(self._task, self._compaction.model, data, small)

    def state(self) -> dict[str, Tensor]:
        """The state of the masked engine: names and shapes of the whole net."""
        state = {f"model.{name}": value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        shapes = self._compaction.shapes
        for entry, value in self._inner.state().items():
            name, _ = _moment(entry)
            if name and value.dim():
                state[entry] = torch.zeros(shapes[name], dtype=value.dtype)
                self._compaction.expand({name: value}, {name: state[entry]})
            elif name or entry == "step":
                state[entry] = value
        for name, values in self._dropped.items():
            moments = {} if self._decay is None else self._decay.state.get(values, {})
            for key, moment in moments.items():
                if isinstance(moment, Tensor) and moment.dim():
                    self._compaction.restore({name: moment}, {name: state[f"optimizer.{name}.{key}"]})
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        values = {n[len("model.") :]: v for n, v in state.items() if n.startswith("model.")}
        self._model.load_state_dict(values)
        self._stale = False
        small = {f"model.{name}": value for name, value in self._compaction.shrink(values).items()}
        small["step"] = state["step"]
        remembered: dict[str, dict[str, Tensor]] = {name: {} for name in self._dropped}
        for entry, value in state.items():
            name, key = _moment(entry)
            if name:
                small[entry] = self._compaction.shrink({name: value})[name] if value.dim() else value
            if name in remembered:
                remembered[name][key] = self._compaction.dropped({name: value})[name] if value.dim() else value.clone()
        self._inner.load(small)
        self._load_dropped(values, list(remembered.values()))

    def _load_dropped(self, values: Mapping[str, Tensor], moments: list[dict[str, Tensor]]) -> None:
        if self._decay is None:
            return
        dropped = self._compaction.dropped(values)
        with torch.no_grad():
            for name, own in self._dropped.items():
                own.copy_(dropped[name])
        groups = self._decay.state_dict()["param_groups"]
        # Torch puts each tensor where this optimiser wants it: Adam's step count on the CPU unless it is fused.
        self._decay.load_state_dict({"state": {i: own for i, own in enumerate(moments) if own}, "param_groups": groups})


def _moment(entry: str) -> tuple[str, str]:
    """The parameter and the key of an optimiser's tensor in a state; two empty strings for any other entry."""
    kind, _, rest = entry.partition(".")
    name, _, key = rest.rpartition(".")
    return (name, key) if kind == "optimizer" else ("", "")


@dataclass(frozen=True)
class _Look:
    inputs: tuple[Tensor, ...]
    """What the loss calls the net with, for a batch of two examples."""
    learning: frozenset[str]
    """The parameters that get a gradient."""


def _look(model: nn.Module, task: Task, train: Examples) -> _Look:
    """Compute the task's loss, metrics and gradients once, on a copy. ``UnsupportedError`` where a compact net's would
    differ: other random draws, or a loss or metric that sees more of the net than its output."""
    own = copy.deepcopy(model).train()
    own.zero_grad(set_to_none=True)
    watched = _Watched(own)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        batch = train.take(torch.arange(min(2, len(train))))
        loss = task.loss(watched, batch)  # type: ignore[arg-type]
        with torch.no_grad():
            task.metrics(watched, batch)  # type: ignore[arg-type]
    if watched.reasons or not watched.inputs:
        raise UnsupportedError(watched.reasons[0] if watched.reasons else "the loss doesn't call the net")
    loss.backward()  # type: ignore[no-untyped-call]
    return _Look(watched.inputs, frozenset(name for name, p in own.named_parameters() if p.grad is not None))


@dataclass
class _Watched:
    """A net for a loss function to call, which notes what a compact net couldn't do as well."""

    net: nn.Module
    inputs: tuple[Tensor, ...] = ()
    reasons: list[str] = field(default_factory=list)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if named or not all(isinstance(value, Tensor) for value in inputs):
            self.reasons.append("the loss or a metric calls the net with more than tensors in order")
        self.inputs = self.inputs or inputs
        if inputs and isinstance(inputs[0], Tensor):
            self.net.to(inputs[0].device)
        before = _random_states(inputs)
        output = self.net(*inputs, **named)
        if any(not torch.equal(a, b) for a, b in zip(before, _random_states(inputs), strict=True)):
            active = [n for n, m in self.net.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p]
            what = f"dropout {active[0]!r} is active" if active else "the net draws random numbers"
            self.reasons.append(f"{what}, and would draw others for fewer channels")
        if not isinstance(output, Tensor):
            self.reasons.append(f"the net's output is a {type(output).__name__}, not one tensor")
        return output

    def __getattr__(self, name: str) -> Any:
        if name != "training":
            self.reasons.append(f"the loss or a metric looks at more than the net's output: {name!r}")
        return getattr(self.net, name)


def _random_states(inputs: tuple[Any, ...]) -> list[Tensor]:
    on_cuda = {value.device for value in inputs if isinstance(value, Tensor) and value.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in on_cuda)]
