"""A net as a function of one batch, in evaluation mode: constants folded, and hardly any cost per call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tombola.engines.compaction import Select, compact
from tombola.engines.sparse.elementwise import group_at, places, write_rows
from tombola.engines.sparse.inputs import flattens_first
from tombola.engines.sparse.kernel import entry, helper, kernel
from tombola.engines.sparse.memory import (
    broadcast,
    fields,
    load,
    load_f32,
    load_i32,
    load_i64,
    stack_room,
    store,
    store_f32,
    store_i64,
    transpose,
)
from tombola.engines.sparse.memory import (
    call as call_at,
)
from tombola.engines.sparse.parts import COUNT, FRAME_SLOTS, LANES, TILE, Activation, Call, call
from tombola.engines.sparse.program import Program
from tombola.engines.sparse.single import INTO, OUT_OF, single_calls
from tombola.engines.sparse.stretches import obstacles
from tombola.engines.sparse.translate import translate
from tombola.engines.tracing import Traced, UnsupportedError, trace
from tombola.errors import InputError, TombolaError
from tombola.mask import Mask

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

Batch = TypeVar("Batch", NDArray[np.float32], Tensor)
_FLOAT32 = np.dtype(np.float32)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@kernel
def pick_columns(args, frame, thread, threads):
    """Fill an activation from some columns of rows: block by block of up to 16 columns that hold any of them."""
    rows, width, to, pitch, images, blocks, firsts, starts, columns, offsets = fields(args, 10)
    count, room = load_i64(frame + COUNT), stack_room(256)
    if count == 1:  # the other 15 examples are padding, and may be anything
        for b in range(blocks):
            row = rows + 4 * load_i32(firsts + 4 * b)
            for k in range(load_i32(starts + 4 * b), load_i32(starts + 4 * b + 4)):
                store(to + 64 * load_i32(offsets + 4 * k), broadcast(load_f32(row + 4 * load_i32(columns + 4 * k)), 16))
        return
    for group in range((count + 15) // 16):
        lanes = min(16, count - 16 * group)
        there, step = group_at(count, group, to, pitch, images)
        for b in range(blocks):
            first = load_i32(firsts + 4 * b)
            for i in range(16):
                row = rows + 4 * ((16 * group + min(i, lanes - 1)) * width + first)
                if width >= 16:
                    store(room + 64 * i, load(row, 16))
                else:
                    for j in range(width):
                        store_f32(room + 64 * i + 4 * j, load_f32(row + 4 * j))
            transpose(room)
            for k in range(load_i32(starts + 4 * b), load_i32(starts + 4 * b + 4)):
                store(there + step * load_i32(offsets + 4 * k), load(room + 64 * load_i32(columns + 4 * k), 16))


def read_columns(x: Activation, columns: NDArray[np.int64], width: int) -> Call:
    """The call that fills ``x`` from the named columns (ascending) of rows of ``width`` numbers; its first argument is
    the address of the rows."""
    first = np.minimum(columns // 16 * 16, max(0, width - 16))
    firsts, counts = np.unique(first, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)])
    tables = [a.astype(np.int32) for a in (firsts, starts, columns - first, places(x))]
    pitch = 4 * x.pitch[2] if x.images else 4 * TILE * x.channels
    return call(pick_columns, 0, width, x.value, pitch, x.images, len(firsts), *tables)


@helper
def run_pieces(plan, x, y, count):
    """All calls, for as many examples at a time as there is room for."""
    rows, calls, into, out_of, frame, capacity, width_in, width_out = fields(plan, 8)
    done = 0
    while done < count:
        now = min(capacity, count - done)
        store_i64(frame + COUNT, now)
        store_i64(into, x + done * width_in)
        store_i64(out_of, y + done * width_out)
        for i in range(calls):
            call_at(load_i64(rows + 16 * i), load_i64(rows + 16 * i + 8), frame, 0, 1)
        done += now


@entry
def run_addresses(plan, x, y, count):
    """Run a plan from rows at one address to rows at another."""
    run_pieces(plan, x, y, count)


@entry
def run_arrays(plan, x, y):
    """Run a plan from one array to another: in compiled code their addresses cost nothing."""
    run_pieces(plan, x.ctypes.data, y.ctypes.data, x.shape[0])


class _Plan:
    """Calls as ``run_pieces`` reads them."""

    def __init__(self, calls: list[Call], into: int, out_of: int, capacity: int, widths: tuple[int, int]) -> None:
        """``into`` and ``out_of`` number the argument of the first call that is the address of the rows to read, and
        that of the last call for the rows to write."""
        self._calls, self._packed, self._frame = calls, [c.packed() for c in calls], np.zeros(FRAME_SLOTS, np.int64)
        at = [packed.ctypes.data for packed in self._packed]
        self._rows = np.array([(c.kernel.address, a) for c, a in zip(calls, at, strict=True)], np.int64)
        ends = at[0] + 8 * into, at[-1] + 8 * out_of
        plan = self._rows.ctypes.data, len(at), *ends, self._frame.ctypes.data, capacity, *widths
        self._plan = np.array(plan, np.int64)
        self.address: int = self._plan.ctypes.data


class Inference:
    """A function from a batch to the net's output, in evaluation mode: numpy array in, numpy array out, and a torch
    tensor for a torch tensor. What is made by ``compile(..., inference=True)``.

    Takes float32 on the CPU, of the example's shape but for the size of the batch, which is any; gives a fresh array.
    Constants and batch normalisation are folded into weights, and what is dead has been dropped. A result has the same
    bits in every run, and in every batch but one of a single example, which has kernels of its own. May be called by
    several threads: they take turns.

    Raises ``InputError`` for other numbers, devices or shapes.
    """

    def __init__(self, model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor]) -> None:
        traced, small = _folded(model, mask, example)
        program = _program(traced, small)
        program.read(traced.module.state_dict())
        inputs = [node for node in traced.module.graph.nodes if node.op == "placeholder"]
        self._shape = tuple(traced.shapes[inputs[0]][1:])
        self._outputs, self._flat = program.output.channels, flattens_first(traced)
        widths = 4 * prod(self._shape), 4 * self._outputs
        self._batch = _Plan(_calls(program, prod(self._shape)), 0, 0, program.input.examples, widths)
        single = single_calls(program)
        self._single = _Plan(single, INTO[single[0].kernel], OUT_OF, 1, widths) if single else self._batch
        self._lock = threading.Lock()

    def __call__(self, x: Batch) -> Batch:
        """The net's output for a batch."""
        if isinstance(x, np.ndarray):
            if x.dtype != _FLOAT32 or x.shape[1:] != self._shape:
                x = self._flattened(x)
            if not x.flags.c_contiguous:
                x = np.ascontiguousarray(x)
            y = np.empty((x.shape[0], self._outputs), np.float32)
            with self._lock:
                run_arrays((self._single if len(y) == 1 else self._batch).address, x, y)
            return y
        if not isinstance(x, Tensor) or x.dtype is not torch.float32 or not x.is_cpu or x.shape[1:] != self._shape:
            x = self._flattened(x)
        rows = x.contiguous()
        result = torch.empty(rows.shape[0], self._outputs)
        plan = self._single if len(rows) == 1 else self._batch
        with self._lock:
            run_addresses(plan.address, rows.data_ptr(), result.data_ptr(), len(rows))
        return result

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self._shape))
        return f"Inference((N, {shape}) -> (N, {self._outputs}))"

    def __reduce__(self) -> str:
        raise TombolaError("a compiled net can't be pickled or copied: compile the model where it is used")

    def _flattened(self, x: Any) -> Any:
        """Images as the vectors that a net which begins by flattening makes of them; InputError for anything else."""
        known = isinstance(x, np.ndarray) and x.dtype == _FLOAT32
        known = known or (isinstance(x, Tensor) and x.dtype is torch.float32 and x.is_cpu)
        if not (known and self._flat and x.ndim > 2 and (prod(x.shape[1:]),) == self._shape):
            raise self._refused(x)
        return x.reshape(len(x), -1)

    def _refused(self, x: object) -> InputError:
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, (np.ndarray, Tensor)) else type(x).__name__
        device = f" on {x.device}" if isinstance(x, Tensor) else ""
        shape = ", ".join(map(str, self._shape))
        return InputError(f"the net takes float32 batches of shape (N, {shape}) on the CPU, but got {got}{device}")


def _folded(model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor]) -> tuple[Traced, Mask]:
    """The net with everything folded and without dropout, and its mask; ``UnsupportedError`` names what is missing."""
    compaction = compact(model, mask, example, fold=True)
    graph = compaction.model.graph
    modules = dict(compaction.model.named_modules())
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[str(node.target)], _DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    compaction.model.recompile()
    traced = trace(compaction.model, compaction.mask, example)
    chosen = {node for node in traced.module.graph.nodes if type(modules.get(str(node.target))) is Select}
    reasons = {node: reason for node, reason in obstacles(traced, compaction.mask).items() if node not in chosen}
    if reasons:
        raise UnsupportedError(f"the net can't be compiled for inference: {'; '.join(dict.fromkeys(reasons.values()))}")
    return traced, compaction.mask


def _program(traced: Traced, mask: Mask) -> Program:
    """The program for as many examples at a time as stay in the cache."""
    program = translate(traced, mask, LANES)
    return program if any(step.output.images for step in program.steps) else translate(traced, mask, TILE)


def _calls(program: Program, width: int) -> list[Call]:
    """From rows of the input to rows of the output."""
    columns = np.arange(width) if program.columns is None else program.columns
    calls = [read_columns(program.input, columns, width), *program.forward(training=False)]
    return [*calls, write_rows(0, program.output)]
