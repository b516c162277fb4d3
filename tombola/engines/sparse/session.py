"""The sparse engine: a training in compiled code whose work is proportional to the kept weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tombola.engines.compaction import compact
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import epoch_order
from tombola.engines.remasking import remasked
from tombola.engines.sparse.gather import Source
from tombola.engines.sparse.loss import CrossEntropy
from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import CORRECT, LOSS, TILE, Activation, padded
from tombola.engines.sparse.program import Program, put, take
from tombola.engines.sparse.run import Table, as_float
from tombola.engines.sparse.translate import translate
from tombola.engines.sparse.update import Optimizer
from tombola.engines.tracing import UnsupportedError, trace
from tombola.mask import Mask
from tombola.recipe import Recipe
from tombola.tasks.data.augment import Augmented
from tombola.tasks.memory import InMemory, in_memory
from tombola.tasks.task import Examples, Task, accuracy, cross_entropy

_AT_ONCE = 1 << 25
"""Bytes of augmented images that are made at once."""


class SparseSession:
    """One training on the kept weights alone; the same meaning, state and data order as on the masked engine.

    Raises ``UnsupportedError``, saying what, where the net, the loss, the data or the device can't be expressed.
    """

    def __init__(self, model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe, seed: int) -> None:
        self.task, self.recipe, self.seed, self.train = task, recipe, seed, train
        self._model, self.mask = model, mask
        mask.apply_(model)
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        data = _held(train)
        self.program = plan_program(model, mask, task, train, recipe)
        self.program.read(model.state_dict())
        self._features = data.rows.shape[1]
        self.steps_per_epoch = recipe.steps_per_epoch(len(train))
        self.step = recipe.start.steps(self.steps_per_epoch)
        self._updates = 0
        self._moments = {name: np.zeros_like(self.program.value) for name in Optimizer.state_names(recipe)}
        optimizer = Optimizer(recipe, self.program.value, self.program.gradient, self._moments)
        data = _room(data, recipe.batch) if isinstance(train, Augmented) else data
        source, loss = Source(data, self.program.input, self.program.columns), CrossEntropy(self.program.output, data.y)
        self._varied = _Varied(train, source, data.y, recipe.batch) if isinstance(train, Augmented) else None
        self._training = Table(
            [
                source.batch(),
                *self.program.forward(training=True),
                loss.training(),
                *self.program.backward(),
                optimizer.update(),
            ]
        )
        self._judging: dict[int, tuple[Examples, Table | None]] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self._current = True

    @property
    def layers(self) -> dict[str, str]:
        """By layer, its size after compaction, what is kept of it, and its kernels."""
        return {s.where: s.layer.told for s in self.program.steps if hasattr(s.layer, "told")}

    @property
    def model(self) -> nn.Module:
        """The net with its current weights; what is pruned is exactly 0."""
        if not self._current:
            with torch.no_grad():
                self.program.write(dict(self._model.state_dict()))
            self._current = True
        return self._model

    seen: Mapping[str, float] = {}

    def stretch(self, steps: int) -> float:
        """Train for ``steps`` steps, those of one epoch in one piece; the mean training loss over their examples."""
        total, seen, left = 0.0, 0, steps
        self._current = False
        while left:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            count = min(left, self.steps_per_epoch - position)
            loss, examples = self._train_on(self._indices(epoch), position, count)
            total, seen, left = total + loss, seen + examples, left - count
        return total / max(seen, 1)

    def remask(self, mask: Mask, values: Mapping[str, Tensor] | None = None) -> None:
        """Go on under another mask (see ``MaskedSession.remask``): the program is made anew, from its indices on."""
        mask.parameters(self._model)  # refuses what doesn't fit
        state = remasked(self.state(), mask, values)
        self.__init__(self.model, mask, self.task, self.train, self.recipe, self.seed)  # type: ignore[misc]
        self.load(state)

    def skip(self) -> None:
        """Go past a step without training."""
        self.step += 1

    def _train_on(self, order: NDArray[np.int64], position: int, steps: int) -> tuple[float, int]:
        """The sum of the losses over the examples, and their number."""
        if self._varied is None:
            return self._run(order[position * self.recipe.batch : (position + steps) * self.recipe.batch], steps)
        total, seen = 0.0, 0
        for first in range(position, position + steps, self._varied.steps):
            count = min(self._varied.steps, position + steps - first)
            index = order[first * self.recipe.batch : (first + count) * self.recipe.batch]
            loss, examples = self._run(self._varied.made(index), count)
            total, seen = total + loss, seen + examples
        return total, seen

    def _run(self, part: NDArray[np.int64], steps: int) -> tuple[float, int]:
        batch = self.recipe.batch
        counts = np.full(steps, batch, dtype=np.int64)
        counts[-1] = len(part) - batch * (steps - 1)
        rates = np.array(self.recipe.rates(self.step, steps, self.steps_per_epoch))
        updates = np.arange(self._updates + 1, self._updates + steps + 1, dtype=np.float64)
        beta_1, beta_2 = self.recipe.betas
        corrections = np.stack([1 - beta_1**updates, np.sqrt(1 - beta_2**updates)], axis=1)
        frame = self._training.run(part, counts, rates, corrections, threads=self.recipe.threads)
        self.step += steps
        self._updates += steps
        return as_float(frame[LOSS // 8]), len(part)

    def _indices(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch: the permutation that the masked engine draws, cut to whole steps."""
        if self._order[0] != epoch:
            order = epoch_order(self.seed, epoch, self.train, self.recipe.order).numpy()
            self._order = (epoch, order[: self.steps_per_epoch * self.recipe.batch])
        return self._order[1]

    def evaluate(self, data: Examples, state: Mapping[str, Tensor] | None = None) -> dict[str, float]:
        """Loss and metrics over all examples in evaluation mode, of the current weights or of another state.

        In torch where the examples aren't like those of the training, not in memory or with labels of no output, and
        where the net normalises by the statistics of whatever batches it is judged in.
        """
        if id(data) not in self._judging:
            self._judging[id(data)] = (data, self._judge(data))
        table = self._judging[id(data)][1]
        if table is None:
            return evaluate(self.task, self.model, data, state)
        if state is not None:
            now = self.program.value.copy(), {n: a.copy() for n, a in self.program.buffers.items()}
            self.program.read(state)
            values = self.evaluate(data)
            self.program.value[:] = now[0]
            for name, array in self.program.buffers.items():
                array[...] = now[1][name]
            return values
        order = np.arange(len(data), dtype=np.int64)
        capacity = self.program.input.examples
        counts = np.full(-(-len(data) // capacity), capacity, dtype=np.int64)
        counts[-1] = len(data) - capacity * (len(counts) - 1)
        frame = table.run(order, counts, threads=self.recipe.threads)
        return {"loss": as_float(frame[LOSS // 8]) / len(data), "accuracy": int(frame[CORRECT // 8]) / len(data)}

    def _judge(self, data: Examples) -> Table | None:
        """The calls that judge these examples; None where torch must."""
        held = None if _normalises_by_batches(self._model) else in_memory(data)
        if (
            held is None
            or held.rows.shape[1] != self._features
            or _strange_label(held, self.program.output) is not None
        ):
            return None
        source = Source(held, self.program.input, self.program.columns)
        loss = CrossEntropy(self.program.output, held.y)
        return Table([source.batch(), *self.program.forward(training=False), loss.evaluation()])

    def state(self) -> dict[str, Tensor]:
        """The common state: the model's state_dict, the optimiser's tensors in the model's shapes, and the step.

        The optimiser has tensors from the first update on, as in torch.
        """
        model = self.model.state_dict()
        state = {f"model.{name}": value.detach().clone() for name, value in model.items()}
        state["step"] = torch.tensor(self.step)
        if not self._updates:
            return state
        for parameter, place in zip(self.program.parameters, self.program.places, strict=True):
            for key, numbers in self._moments.items():
                name = f"optimizer.{parameter.name}.{key}"
                # What compaction dropped of a parameter is held apart: both parts go into one tensor.
                put(numbers[place], parameter, state.setdefault(name, torch.zeros_like(model[parameter.name])))
            if self.recipe.optimizer != "sgd":
                state[f"optimizer.{parameter.name}.step"] = torch.tensor(float(self._updates))
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state()``."""
        values = {name[len("model.") :]: value for name, value in state.items() if name.startswith("model.")}
        self._model.load_state_dict(values)
        self.program.read(values)
        for parameter, place in zip(self.program.parameters, self.program.places, strict=True):
            for key, numbers in self._moments.items():
                moment = state.get(f"optimizer.{parameter.name}.{key}")
                if moment is None:
                    numbers[place] = 0
                else:
                    take(moment, parameter, numbers[place])
        updates = [int(value) for name, value in state.items() if name.startswith("optimizer.") and not value.dim()]
        # SGD counts nothing: it only matters whether there was an update.
        self._updates = max(updates, default=int(any(name.startswith("optimizer.") for name in state)))
        self.step, self._current = int(state["step"]), True


def _room(data: InMemory, batch: int) -> InMemory:
    """Room for the examples of some steps in place of the data."""
    features = data.rows.shape[1]
    count = batch * max(1, _AT_ONCE // (batch * features))
    return replace(data, rows=np.zeros((count, features), data.rows.dtype), y=np.zeros(count, np.int64))


class _Varied:
    """Augmented images, made for some steps at a time into arrays that compiled code reads as it reads any data."""

    def __init__(self, train: Augmented, source: Source, y: NDArray[np.int64], batch: int) -> None:
        self._train, self._source, self._y = train, source, y
        self.steps = len(y) // batch

    def made(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make the images of a varied index; where they lie."""
        count = len(index)
        self._source.put(self._train.rows(torch.from_numpy(index)).reshape(count, -1).numpy())
        self._y[:count] = self._train.plain.y.numpy()[index % len(self._train)]
        return np.arange(count, dtype=np.int64)


def plan_program(model: nn.Module, mask: Mask, task: Task, train: Examples, recipe: Recipe) -> Program:
    """The program of the compacted net, whose parameters know their places in the whole net; of the whole net where its
    mask is updated on the way.

    With weight decay it also holds what compaction dropped: its gradients stay 0, but it decays.

    Raises ``UnsupportedError``, saying what, where net, loss, data or device can't be expressed.
    """
    if recipe.trains != "weights":
        raise UnsupportedError(f"sparse kernels train weights, but the recipe trains {recipe.trains!r}")
    if recipe.optimizer == "rmsprop":
        raise UnsupportedError("sparse kernels have sgd, adam and adamw, but the optimizer is 'rmsprop'")
    if recipe.scale_l1:
        raise UnsupportedError("sparse kernels have no penalty on the scales of batch normalisation (scale_l1)")
    if recipe.precision != "float32":
        raise UnsupportedError(f"sparse kernels compute in float32, but the recipe's precision is {recipe.precision!r}")
    if task.loss is not cross_entropy:
        raise UnsupportedError("the loss isn't tombola.tasks.cross_entropy")
    if task.metrics is not accuracy or task.conclude is not None:
        raise UnsupportedError("the metrics aren't tombola.tasks.accuracy")
    if torch.device(recipe.device).type != "cpu":
        raise UnsupportedError(f"the device is {recipe.device!r}, and sparse kernels run on the CPU")
    frozen = next((name for name, parameter in model.named_parameters() if not parameter.requires_grad), None)
    if frozen is not None:
        raise UnsupportedError(f"parameter {frozen!r} is frozen (requires_grad is False)")
    held = _held(train)
    program = _translated(model, mask, train, recipe)
    if min(recipe.batch, len(train)) == 1 and any(isinstance(s.layer, BatchNorm) for s in program.steps):
        raise UnsupportedError("batch normalisation of batches of one example")
    strange = _strange_label(held, program.output)
    if strange is not None:
        raise UnsupportedError(f"the label {strange} is none of the net's {program.output.channels} outputs")
    return program


def _translated(model: nn.Module, mask: Mask, train: Examples, recipe: Recipe) -> Program:
    example = train.take(torch.zeros(2, dtype=torch.int64))[0]
    capacity = max(TILE, padded(min(recipe.batch, len(train))))
    if recipe.updates is not None:  # a dead unit goes on by its moments, and the next mask may bring it back
        return translate(trace(model, mask, example), mask, capacity)
    try:
        compaction = compact(model, mask, example)
        program = translate(trace(compaction.model, compaction.mask, example), compaction.mask, capacity)
    except UnsupportedError:  # a cut that no layer can read around: the whole net, then, if that can be expressed
        return translate(trace(model, mask, example), mask, capacity)
    state = model.state_dict()
    places = {name: torch.arange(value.numel()).reshape(value.shape) for name, value in state.items()}
    program.place({name: value.flatten().numpy() for name, value in compaction.shrink(places).items()})
    if recipe.weight_decay:
        program.add_idle({name: value.numpy() for name, value in compaction.dropped(places).items()})
    return program


def _held(data: Examples) -> InMemory:
    held = in_memory(data)
    if held is None:
        raise UnsupportedError("the data aren't held in memory as labelled tensors (x uint8 or float32, y int64)")
    return held


def _strange_label(data: InMemory, output: Activation) -> int | None:
    """A label that is no output's number; kernels use labels as places, so that none may slip through."""
    strange = data.y[(data.y < 0) | (data.y >= output.channels)]
    return int(strange[0]) if len(strange) else None


def _normalises_by_batches(model: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None for m in model.modules())
