"""A flat program: the layers of a net in order, what they compute on, and the calls that carry them out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tombola.engines.sparse.elementwise import Sum
from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import Activation, Call, Parameter, aligned
from tombola.engines.sparse.update import WIDTH


@dataclass
class Step:
    """One layer of a program, and the activations it reads and writes."""

    layer: Any
    inputs: tuple[Activation, ...]
    output: Activation
    where: str


class Program:
    """The operations of a net, in order, on activations for up to ``batch`` examples.

    ``input`` is to be filled by a gather; ``output`` holds the logits (tiled). ``parameters`` share one array of values
    and one of gradients, so that one call updates them all.
    """

    def __init__(
        self, input: Activation, output: Activation, steps: list[Step], columns: NDArray[np.int64] | None = None
    ) -> None:
        self.input, self.output, self.steps, self.columns = input, output, steps, columns
        self.parameters: list[Parameter] = [p for s in steps for p in getattr(s.layer, "parameters", [])]
        self.buffers: dict[str, NDArray[Any]] = {
            name: array for s in steps for name, array in getattr(s.layer, "buffers", {}).items()
        }
        self._buffer_places: dict[str, NDArray[np.int64]] = {}
        trained = {id(s.output) for s in self.steps}
        for activation in {id(a): a for s in self.steps for a in (*s.inputs, s.output)}.values():
            activation.allocate(gradient=id(activation) in trained)
        self._lay_out()

    def place(self, places: Mapping[str, NDArray[np.int64]]) -> None:
        """Tell where each entry of the parameters and buffers lies in the flattened tensors of the whole net."""
        for parameter in self.parameters:
            whole = places[parameter.name]
            parameter.order = whole if parameter.order is None else whole[parameter.order]
        self._buffer_places = {name: places[name] for name in self.buffers}

    def add_idle(self, places: Mapping[str, NDArray[np.int64]]) -> None:
        """Hold further entries of parameters, which no call reads and whose gradients stay 0."""
        for name, order in places.items():
            self.parameters.append(Parameter(name, aligned(len(order)), aligned(len(order)), order))
        self._lay_out()

    def _lay_out(self) -> None:
        """Parameters one after the other in one array, each from a multiple of the update's width on."""
        starts = np.cumsum([0] + [-(-len(p.value) // WIDTH) * WIDTH for p in self.parameters])
        self.value, self.gradient = aligned(int(starts[-1])), aligned(int(starts[-1]))
        self.places = [slice(int(a), int(a) + len(p.value)) for a, p in zip(starts, self.parameters, strict=False)]
        for parameter, place in zip(self.parameters, self.places, strict=True):
            parameter.value, parameter.gradient = self.value[place], self.gradient[place]

    def forward(self, training: bool) -> list[Call]:
        """All calls from the input to the output."""
        return [c for s in self.steps for c in s.layer.forward(training)]

    def backward(self, evaluating: Collection[int] = ()) -> list[Call]:
        """All calls from the output's gradient to the parameters' gradients.

        ``evaluating`` numbers the steps whose forward pass was that of evaluation: it matters to batch normalisation.
        """
        written: set[int] = set()

        def wanted(activation: Activation) -> tuple[bool, bool]:
            accumulate = id(activation) in written
            written.add(id(activation))
            return activation.gradient.size > 0, accumulate

        calls: list[Call] = []
        for number, step in reversed(list(enumerate(self.steps))):
            mode = {"training": False} if number in evaluating and isinstance(step.layer, BatchNorm) else {}
            flags = [wanted(a) for a in step.inputs]
            if isinstance(step.layer, Sum):
                flags = _hand_over(step, flags, self.input)
            calls += step.layer.backward(*(flag for pair in flags for flag in pair), **mode)
        return calls

    def read(self, state: Mapping[str, Tensor]) -> None:
        """Take values of parameters and buffers from a state_dict of the net."""
        for parameter in self.parameters:
            take(state[parameter.name], parameter, parameter.value)
        for name, array in self.buffers.items():
            whole = state[name].detach().cpu().reshape(-1).numpy()
            array.reshape(-1)[:] = whole[self._buffer_places[name]] if name in self._buffer_places else whole

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Put values of parameters and buffers into the tensors of a state_dict; what is pruned isn't touched."""
        for parameter in self.parameters:
            put(parameter.value, parameter, state[parameter.name])
        for name, array in self.buffers.items():
            whole = state[name].detach().view(-1).numpy()
            whole[self._buffer_places.get(name, slice(None))] = array.reshape(-1)


def _hand_over(step: Step, flags: list[tuple[bool, bool]], source: Activation) -> list[tuple[bool, bool]]:
    """Let one input of a sum take the output's gradient as its own, where the two are the same numbers.

    The program's own input, ``source``, keeps a place of its own, as that is where its gradient is looked for. Nobody
    reads the output's gradient after the sum has, so that whatever is added to it later does no harm.
    """
    for i, ((wanted, accumulate), a) in enumerate(zip(flags, step.inputs, strict=True)):
        alone = a is not source and sum(a is other for other in step.inputs) == 1
        if wanted and not accumulate and alone and not a.rectified and a.halo == step.output.halo:
            a.gradient = step.output.gradient
            return [*flags[:i], (False, False), *flags[i + 1 :]]
    return flags


def take(full: Tensor, parameter: Parameter, numbers: NDArray[Any]) -> None:
    """Fill a parameter's numbers from the tensor in the net's shape."""
    flat = full.detach().cpu().reshape(-1).numpy()
    numbers[:] = flat if parameter.order is None else flat[parameter.order]


def put(numbers: NDArray[Any], parameter: Parameter, full: Tensor) -> None:
    """Write a parameter's numbers to their places in a contiguous tensor of the net's shape, on the CPU."""
    flat = full.detach().view(-1).numpy()
    if parameter.order is None:
        flat[:] = numbers
    else:
        flat[parameter.order] = numbers
