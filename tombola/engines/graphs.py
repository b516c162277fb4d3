"""A training step recorded once as a CUDA graph and then replayed: one launch in place of a hundred.

A step of a small net is so little work that a GPU spends most of it waiting for the next kernel to be launched. What is
recorded is the step itself, from taking the batch to the optimiser; whatever differs between steps is read from tensors
that stay in place: the index of the batch, the learning rate, Adam's step count.

Recording leaves no trace in the training, and whether a step is replayed depends on nothing but its batch's size: a
resumed run replays the steps that the straight run replays, and comes to the same bits. A step that can't be recorded
is run as it is, and ``note`` says why. One thing can't be seen from outside: Python code whose path through the net
changes from step to step by other means than torch's random numbers would be frozen.

Source: "CUDA Graphs" in PyTorch's notes on CUDA semantics (warm-up on a side stream, capture, static inputs).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

WARM_UP = 3
RECORDED = "recorded as a CUDA graph"

Result = tuple[Tensor, int]
Capture = Callable[[Callable[[], Result], torch.device], tuple[Callable[[], None], Result]]
"""Records a step on a device: what replays it, and the result that each replay writes into."""


class Recordable(Protocol):
    """A training whose step can be recorded."""

    def advance(self, index: Tensor) -> Result:
        """Train one step on the examples of an index; the loss, and how many examples the batch holds."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name. What the optimiser has yet to make is zero when it is made."""
        ...


def cuda_capture(step: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Record ``step`` as a CUDA graph. Nothing is computed until the first replay."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=side):
        result = step()
    return graph.replay, result


class StepGraph:
    """Takes the steps of a training, those with a batch of ``batch`` examples by replaying a record of the first.

    ``note`` is empty before the first of them; then it says that steps are recorded, or why they are not.
    """

    def __init__(self, batch: int, capture: Capture = cuda_capture) -> None:
        self.note = ""
        self._batch, self._capture = batch, capture
        self._record: tuple[Tensor, Callable[[], None], Result] | None = None

    def advance(self, training: Recordable, index: Tensor) -> Result:
        """One step of ``training``. The loss is overwritten by the next step."""
        whole = index.shape[-1] == self._batch
        if whole and not self.note:
            self._try_to_record(training, index)
        if not whole or self._record is None:
            return training.advance(index)
        static, replay, result = self._record
        static.copy_(index)
        replay()
        return result

    def _try_to_record(self, training: Recordable, index: Tensor) -> None:
        static = index.clone()
        try:
            _rehearse(training, static)
            self._record = (static, *self._capture(lambda: training.advance(static), index.device))
            self.note = RECORDED
        except RuntimeError as error:  # a step that is wrong in itself will say so when it is run as it is
            self.note = f"not recorded as a CUDA graph: {str(error).partition(chr(10))[0]}"


def _rehearse(training: Recordable, index: Tensor) -> None:
    """Take a few steps and take them back: libraries load and the optimiser makes its state, which a record can't.

    Raises ``RuntimeError`` where the step can't be recorded. To find out here matters: a capture that breaks off may
    leave the allocator and the random generator of the device in the middle of it.
    """
    device = index.device
    before = {name: tensor.detach().clone() for name, tensor in training.tensors().items()}
    random = random_states(device)
    try:
        with _side_stream(device):
            for _ in range(WARM_UP):
                training.advance(index)
            tensors = training.tensors()
            with _no_waiting(device):
                training.advance(index)
        if not all(map(torch.equal, random, random_states(device))):
            raise RuntimeError("the step draws random numbers, which are seeded anew for every step")
        replaced = [name for name, tensor in training.tensors().items() if tensors.get(name) is not tensor]
        if replaced:
            raise RuntimeError(f"the step puts a new tensor in the place of {replaced[0]!r}")
    finally:
        torch.set_rng_state(random[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(random[1], device)
        with torch.no_grad():
            for name, tensor in training.tensors().items():
                tensor.copy_(before[name]) if name in before else tensor.zero_()


def random_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that code on ``device`` draws from: they change when something is drawn."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else ())]


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Run a block on a stream of its own, as a warm-up must: the default stream can't be captured."""
    if device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(side):
            yield
    finally:
        torch.cuda.current_stream(device).wait_stream(side)


@contextmanager
def _no_waiting(device: torch.device) -> Iterator[None]:
    """Make it a ``RuntimeError`` when the host waits for the device, where torch can tell."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that it can't tell in every case
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
