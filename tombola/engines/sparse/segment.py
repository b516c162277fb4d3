"""A stretch of a net as one differentiable operation of torch: its batches in and out in torch's layout.

Between a forward pass and its backward pass the activations lie in the memory of a program. So every pass that is to be
differentiated has a *room* of its own, a program with its memory, until its backward pass is over or can't come any
more. The rooms of a segment compute with the same parameters and buffers: those of the module, wherever in memory they
are. How large a room is depends on nothing but the size of the batch, so the bits don't depend on what was run before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tombola.engines.sparse.elementwise import read_rows, write_rows
from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import COUNT, FRAME_SLOTS, TILE, Call, aligned
from tombola.engines.sparse.program import Program
from tombola.engines.sparse.run import run_once
from tombola.engines.sparse.stretches import Stretch
from tombola.engines.sparse.translate import translate
from tombola.errors import InputError, TombolaError
from tombola.mask import Mask

_PIECE, _PIECE_OF_IMAGES = 256, 64
"""Examples that are evaluated at a time where nothing is to be differentiated: few enough to stay in the cache."""

Modes = tuple[bool, ...]
"""For each batch normalisation of a segment whether it takes the statistics of the batch."""
Slot = tuple[dict[str, Any], str]
"""Where a module keeps a parameter or a buffer: it may be replaced by another tensor there."""


class Bound:
    """Calls ready to run, of which the first reads a batch and the last may write one, on tensors of the module."""

    def __init__(self, calls: list[Call], own: Sequence[NDArray[Any]]) -> None:
        """``own`` are the arrays of the program that the module's tensors stand in for."""
        packed = [c.packed() for c in calls]
        starts = np.cumsum([0, *map(len, packed)])
        self.calls, self.args, self.last = calls, np.concatenate(packed), int(starts[-2])
        base = self.args.ctypes.data
        self.rows = np.array(
            [(c.kernel.address, base + 8 * at) for c, at in zip(calls, starts, strict=False)], np.int64
        )
        places = [
            np.flatnonzero((self.args >= a.ctypes.data) & (self.args < a.ctypes.data + a.nbytes) & (a.nbytes > 0))
            for a in own
        ]
        self._places = np.concatenate([np.zeros(0, np.int64), *places])
        self._which = np.repeat(np.arange(len(own)), [len(p) for p in places])
        self._offsets = self.args[self._places] - np.array([a.ctypes.data for a in own], np.int64)[self._which]
        self._at: tuple[int, ...] = ()

    def run(self, frame: int, at: tuple[int, ...], first: int, last: int) -> None:
        """Run the calls on tensors at these addresses; ``first`` is where a batch is read, ``last`` where one goes."""
        if at != self._at:
            self.args[self._places] = np.array(at, np.int64)[self._which] + self._offsets
            self._at = at
        self.args[0] = first
        if last:
            self.args[self.last] = last
        run_once(self.rows, frame, 0, 1)


class Room:
    """A program of a segment, and its memory for one pass."""

    def __init__(self, program: Program, order: Sequence[NDArray[np.int64] | None]) -> None:
        """``order`` is that of the parameters' numbers in the module: kernels for this size may want another."""
        self.program, self.uses = program, 0
        self._normal = [n for n, step in enumerate(program.steps) if isinstance(step.layer, BatchNorm)]
        self._frame = np.zeros(FRAME_SLOTS, np.int64)
        self._frame_at = self._frame.ctypes.data
        self._gradient = torch.from_numpy(program.gradient)
        edges = [edge for place in program.places for edge in (place.start, place.stop)]
        self._sizes = np.diff([*edges, len(program.gradient)]).tolist()
        self._moved = {
            number: torch.from_numpy(np.argsort(theirs)[np.searchsorted(np.sort(theirs), parameter.order)])
            for number, (parameter, theirs) in enumerate(zip(program.parameters, order, strict=True))
            if parameter.order is not None and theirs is not None and not np.array_equal(parameter.order, theirs)
        }
        self._tables: dict[Modes | tuple[Modes, bool], Bound] = {}

    def forward(
        self, x: int, y: int, count: int, modes: Modes, parameters: Sequence[Tensor], at: tuple[int, ...]
    ) -> None:
        """Compute the outputs of the ``count`` examples at address ``x``, to address ``y``."""
        self._frame[COUNT // 8] = count
        for number, source in self._moved.items():
            torch.index_select(
                parameters[number].detach(), 0, source, out=torch.from_numpy(self.program.parameters[number].value)
            )
        if modes not in self._tables:
            layers = self.program.forward(True, self._evaluating(modes))
            self._tables[modes] = self._bound(
                [read_rows(0, self.program.input), *layers, write_rows(0, self.program.output)]
            )
        self._tables[modes].run(self._frame_at, at, x, y)

    def backward(self, dy: int, dx: int, modes: Modes, at: tuple[int, ...]) -> list[Tensor]:
        """The gradients of the parameters; those of the input go to address ``dx``, unless that is 0."""
        if (modes, dx != 0) not in self._tables:
            self._tables[modes, dx != 0] = self._backward_table(modes, dx != 0)
        self._tables[modes, dx != 0].run(self._frame_at, at, dy, dx)
        gradients = list(self._gradient.clone().split_with_sizes(self._sizes)[::2])
        for number, source in self._moved.items():
            gradients[number] = torch.empty_like(gradients[number]).index_copy_(0, source, gradients[number])
        return gradients

    def _backward_table(self, modes: Modes, of_input: bool) -> Bound:
        x, y = self.program.input, self.program.output
        if of_input and not x.gradient.size:
            x.gradient = aligned(x.size)
        held, x.gradient = x.gradient, x.gradient if of_input else np.empty(0, np.float32)
        layers = self.program.backward(self._evaluating(modes))
        x.gradient = held
        written = [write_rows(0, x, gradient=True)] if of_input else []
        return self._bound([read_rows(0, y, gradient=True), *layers, *written])

    def _evaluating(self, modes: Modes) -> list[int]:
        return [number for number, mode in zip(self._normal, modes, strict=True) if not mode]

    def _bound(self, calls: list[Call]) -> Bound:
        own: list[NDArray[Any]] = [
            np.empty(0) if number in self._moved else p.value for number, p in enumerate(self.program.parameters)
        ]
        return Bound(calls, own + list(self.program.buffers.values()))


class Segment(nn.Module):
    """Runs a stretch on the kept weights. Its parameters and buffers are those of ``owner``, under the same names.

    A parameter of which the mask keeps a part is one-dimensional there, in the order that ``order`` gives by name.
    """

    def __init__(self, stretch: Stretch, mask: Mask, owner: nn.Module) -> None:
        super().__init__()
        self._stretch, self._mask = stretch, mask
        self._free: dict[int, list[Room]] = {}
        self._lock = threading.RLock()  # a pass that is given up comes back at any time, even within _take
        program = self._translated(TILE)
        self.order = {p.name: p.order for p in program.parameters}
        self._images = any(s.output.images for s in program.steps)
        norms = [s for s in program.steps if isinstance(s.layer, BatchNorm)]
        self._least = min((s.output.height * s.output.width for s in norms), default=2)
        self._norms = tuple(owner.get_submodule(s.where) for s in norms)
        self._parameters_at = [_slot(owner, name, "_parameters") for name in self.order]
        self._buffers_at = [_slot(owner, name, "_buffers") for name in program.buffers]
        self._sizes = [len(p.value) for p in program.parameters]
        self._checked: tuple[int, ...] = ()
        shapes = stretch.traced.shapes
        *_, result = stretch.traced.module.graph.nodes
        self._shapes = (
            tuple(shapes[next(iter(stretch.traced.module.graph.nodes))][1:]),
            tuple(shapes[result.args[0]][1:]),
        )

    @property
    def modes(self) -> Modes:
        """Which of the batch normalisations take the statistics of the batch."""
        return tuple(m.training or not m.track_running_stats for m in self._norms)

    def forward(self, x: Tensor) -> Tensor:
        """The stretch's value for a batch: (N, ...), float32 on the CPU."""
        self._check(x)
        x, parameters = x.contiguous(), [tensors[name] for tensors, name in self._parameters_at]
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
            return _Pass.apply(self, x, *parameters)  # type: ignore[no-untyped-call]
        return self._evaluate(x, parameters)

    def addresses(self, parameters: Sequence[Tensor]) -> tuple[int, ...]:
        """Where the module's parameters and buffers are now."""
        buffers = [tensors[name] for tensors, name in self._buffers_at]
        at = tuple(t.data_ptr() for t in (*parameters, *buffers))
        if at != self._checked:
            for name, tensor, size in zip(self.order, parameters, self._sizes, strict=True):
                _check_tensor(name, tensor, size)
            self._checked = at
        return at

    def empty(self, examples: int) -> Tensor:
        """Room for the values of a batch."""
        return torch.empty((examples, *self._shapes[1]))

    def take(self, examples: int) -> Room:
        """A room for a batch, for one pass: ``leave`` it afterwards."""
        capacity = TILE << max(0, (examples - 1).bit_length() - 6)
        with self._lock:
            free = self._free.setdefault(capacity, [])
            room = free.pop() if free else None
        if room is None:
            room = Room(self._translated(capacity), list(self.order.values()))
        room.uses += 1
        return room

    def take_again(self, room: Room, uses: int) -> None:
        """Take the room of an earlier pass, where nothing has used it since."""
        with self._lock:
            free = self._free[room.program.input.examples]
            if room.uses != uses or not any(room is other for other in free):
                raise TombolaError(
                    "a second backward pass through the same forward pass came after another forward pass, which has "
                    "used its memory: do all backward passes first, or repeat the forward pass"
                )
            free.remove(room)

    def leave(self, room: Room) -> None:
        """Give a room back."""
        with self._lock:
            self._free[room.program.input.examples].append(room)

    def _evaluate(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        at, modes, y = self.addresses(parameters), self.modes, self.empty(len(x))
        piece = len(x) if any(modes) else _PIECE_OF_IMAGES if self._images else _PIECE
        width_in, width_out = (4 * prod(shape) for shape in self._shapes)
        for first in range(0, len(x), piece):
            count = min(piece, len(x) - first)
            room = self.take(count)
            room.forward(
                x.data_ptr() + first * width_in, y.data_ptr() + first * width_out, count, modes, parameters, at
            )
            self.leave(room)
        return y

    def _translated(self, examples: int) -> Program:
        return translate(self._stretch.traced, self._mask, examples, images=True)

    def _check(self, x: Tensor) -> None:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise InputError(f"a compiled net takes float32 tensors on the CPU, but got {x.dtype} on {x.device}")
        if tuple(x.shape[1:]) != self._shapes[0] or not len(x):
            shape = ", ".join(map(str, self._shapes[0]))
            raise InputError(f"the net was compiled for inputs of shape (N, {shape}), N > 0, but got {tuple(x.shape)}")
        if len(x) * self._least == 1 and any(self.modes):
            raise InputError(
                "batch normalisation of a single value per channel: train with more examples a batch, or use eval()"
            )


class _Pass(torch.autograd.Function):
    """A forward pass and its backward pass."""

    @staticmethod
    def forward(ctx: Any, segment: Segment, x: Tensor, *parameters: Tensor) -> Tensor:
        stay = _Stay(segment, len(x))
        y = segment.empty(len(x))
        ctx.at, ctx.modes, ctx.stay, ctx.shape = segment.addresses(parameters), segment.modes, stay, x.shape
        stay.room.forward(x.data_ptr(), y.data_ptr(), len(x), ctx.modes, parameters, ctx.at)
        ctx.save_for_backward(*parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise TombolaError("a compiled net has no gradients of gradients: call backward without create_graph")
        stay: _Stay = ctx.stay
        if stay.segment.addresses(ctx.saved_tensors) != ctx.at:
            raise TombolaError("parameters or buffers were replaced between a forward pass and its backward pass")
        dx = torch.empty(ctx.shape) if ctx.needs_input_grad[1] else None
        dy = dy.contiguous()
        stay.resume()
        gradients = stay.room.backward(dy.data_ptr(), 0 if dx is None else dx.data_ptr(), ctx.modes, ctx.at)
        stay.end()
        return None, dx, *gradients


class _Stay:
    """The hold of a pass on its room: to the end of the backward pass, or until the pass is given up."""

    def __init__(self, segment: Segment, examples: int) -> None:
        self.segment, self.over = segment, False
        self.room = segment.take(examples)
        self._uses = self.room.uses

    def resume(self) -> None:
        """Come back for a further backward pass."""
        if self.over:
            self.segment.take_again(self.room, self._uses)
            self.over = False

    def end(self) -> None:
        """Leave, to come back only if nobody else has been in."""
        self.segment.leave(self.room)
        self.over = True

    def __del__(self) -> None:
        if not getattr(self, "over", True) and hasattr(self, "room"):
            self.end()


def _slot(owner: nn.Module, name: str, kind: str) -> Slot:
    path, _, leaf = name.rpartition(".")
    return getattr(owner.get_submodule(path), kind), leaf


def _check_tensor(name: str, tensor: Tensor, size: int) -> None:
    fits = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tuple(tensor.shape) == (size,)
    if not fits or not tensor.is_contiguous():
        raise InputError(
            f"{name!r} of a compiled net must stay contiguous float32 on the CPU, of shape ({size},), but is "
            f"{tensor.dtype} on {tensor.device} of shape {tuple(tensor.shape)}"
        )
