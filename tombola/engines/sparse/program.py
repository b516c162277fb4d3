"""A flat program: the layers of a net in order, what they compute on, and the calls that carry them out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tombola.engines.sparse.convolution import Convolution
from tombola.engines.sparse.elementwise import Sum
from tombola.engines.sparse.layout import room, share, spans
from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import Activation, Call, Floats, Parameter, aligned
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
        activations = list({id(a): a for s in self.steps for a in (*s.inputs, s.output)}.values())
        for activation, value in zip(activations, room([a.size for a in activations]), strict=True):
            activation.value = value
            activation.gradient = aligned(activation.size if id(activation) in trained else 0)
        self._settled = False
        self._let_follow()
        self._summands = self._find_summands()
        self._lay_out()

    def _settle(self) -> None:
        """Give the gradients their places. The arrays that they have had were never touched: they took no memory.

        The output's stays where it is, as others know it already.
        """
        made = {id(s.output): number for number, s in enumerate(self.steps)}
        moved = [s.output for s in self.steps if s.output is not self.output]
        kinds = [(a.channels, a.height, a.width, a.halo) if a.images else number for number, a in enumerate(moved)]
        arrays, held = [a.gradient for a in moved], self.input.gradient
        # As if the input's gradient were wanted in any case: then everything is needed that ever is.
        self.input.gradient = aligned(self.input.size)
        needed = spans(self._backward(), arrays, [len(self.steps) - 1 - made[id(a)] for a in moved])
        self.input.gradient = held
        places = share(needed, kinds)
        sizes = {place: a.size for place, a in zip(places, moved, strict=True)}
        arrays = room([sizes[place] for place in range(len(sizes))])
        for place, activation in zip(places, moved, strict=True):
            activation.gradient = arrays[place]
        self._settled = True

    def _let_follow(self) -> None:
        """Let batch normalisation take its statistics from the convolution before it."""
        made = {id(s.output): s.layer for s in self.steps}
        for step in self.steps:
            source = made.get(id(step.inputs[0]))
            if isinstance(step.layer, BatchNorm) and isinstance(source, Convolution):
                step.layer.follow(source)

    def _users(self, activation: Activation) -> int:
        """How often an activation is read."""
        return sum(a is activation for s in self.steps for a in s.inputs) + (activation is self.output)

    def _find_summands(self) -> dict[int, int]:
        """Sums of what a batch normalisation makes for nobody else: the number of the sum, and that of the other."""
        made = {id(s.output): number for number, s in enumerate(self.steps)}
        found: dict[int, int] = {}
        for number, step in enumerate(self.steps):
            if isinstance(step.layer, Sum):
                norms = [made[id(a)] for a in step.inputs if self._users(a) == 1 and self._is_summand(made.get(id(a)))]
                if norms:
                    found[number] = max(norms)
        return found

    def _is_summand(self, number: int | None) -> bool:
        step = None if number is None else self.steps[number]
        return step is not None and isinstance(step.layer, BatchNorm) and not step.layer.relu

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

    def forward(self, training: bool, evaluating: Collection[int] = ()) -> list[Call]:
        """All calls from the input to the output; ``evaluating`` numbers the steps that don't train although all do.

        A batch normalisation that only makes a summand has no output of its own: the sum is its output.
        """
        calls: list[Call] = []
        summands = set(self._summands.values())
        for number, step in enumerate(self.steps):
            if number in self._summands:
                norm = self._summands[number]
                (more,) = (a for a in step.inputs if a is not self.steps[norm].output)
                mode = training and norm not in evaluating
                calls += self.steps[norm].layer.forward_onto(mode, more, step.output, step.layer.relu)
            elif number not in summands:
                calls += step.layer.forward(training and number not in evaluating)
        return calls

    def backward(self, evaluating: Collection[int] = ()) -> list[Call]:
        """All calls from the output's gradient to the parameters' gradients.

        ``evaluating`` numbers the steps whose forward pass was that of evaluation: it matters to batch normalisation.
        """
        if not self._settled:
            self._settle()
        return [c for calls in self._backward(evaluating) for c in calls]

    def _backward(self, evaluating: Collection[int] = ()) -> list[list[Call]]:
        """The calls of ``backward`` of each step, from the last one to the first."""
        written: set[int] = set()

        def wanted(activation: Activation) -> tuple[bool, bool]:
            accumulate = id(activation) in written
            written.add(id(activation))
            return activation.gradient.size > 0, accumulate

        calls: list[list[Call]] = []
        onto: dict[int, Floats] = {}
        for number, step in reversed(list(enumerate(self.steps))):
            mode: dict[str, Any] = {}
            if number in evaluating and isinstance(step.layer, BatchNorm):
                mode["training"] = False
            flags = [wanted(a) for a in step.inputs]
            if isinstance(step.layer, Sum):
                flags = self._hand_over(number, flags, onto)
            elif id(step.inputs[0]) in onto:
                mode["onto"] = onto.pop(id(step.inputs[0]))
            calls.append(step.layer.backward(*(flag for pair in flags for flag in pair), **mode))
        return calls

    def _hand_over(
        self, number: int, flags: list[tuple[bool, bool]], onto: dict[int, Floats]
    ) -> list[tuple[bool, bool]]:
        """Which inputs of a sum still need the output's gradient, after those that can do without a copy of it.

        That goes for an input that nobody else reads: it takes the output's gradient as its own, for the layer that
        made it only to read. (A sum would hand it on, to be added to.) And for an input to which a convolution adds
        next: it adds to the output's gradient instead, ``onto``, and writes to the input's. Where there are none of
        these, one input may take the output's gradient and have more added to it, as nobody reads that after the sum
        has. The program's own input keeps a place of its own, as that is where its gradient is looked for.
        """
        step, left = self.steps[number], list(flags)
        if step.inputs[0] is step.inputs[1]:
            return left
        made = {id(s.output): s.layer for s in self.steps}
        alike = [
            (i, a)
            for i, ((wanted, accumulate), a) in enumerate(zip(flags, step.inputs, strict=True))
            if wanted and not accumulate and a is not self.input and a.halo == step.output.halo
        ]
        for i, a in alike:
            if self._users(a) == 1 and not a.rectified and not isinstance(made.get(id(a)), Sum):
                a.gradient, left[i] = step.output.gradient, (False, False)
            else:
                following = next((s for s in self.steps[number - 1 :: -1] if any(a is b for b in s.inputs)), step)
                if number > 0 and isinstance(following.layer, Convolution):
                    onto[id(a)], left[i] = step.output.gradient, (False, False)
        for i, a in alike:
            if left == flags and not a.rectified:
                a.gradient, left[i] = step.output.gradient, (False, False)
        return left

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
