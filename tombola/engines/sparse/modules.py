"""A net for one's own training loop: an ordinary ``nn.Module`` that computes with the kept weights only."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from tombola.engines.sparse.inputs import flattens_first, usual_example
from tombola.engines.sparse.parts import aligned
from tombola.engines.sparse.segment import Segment
from tombola.engines.sparse.stretches import Stretch, find_stretches
from tombola.engines.tracing import Traced, UnsupportedError, trace
from tombola.errors import InputError, TombolaError
from tombola.mask import Mask

if TYPE_CHECKING:
    from tombola.engines.sparse.inference import Inference


@overload
def compile(
    model: nn.Module,
    mask: Mask,
    example: Tensor | Sequence[Tensor] | None = None,
    *,
    inference: Literal[False] = False,
) -> SparseModule: ...


@overload
def compile(
    model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor] | None = None, *, inference: Literal[True]
) -> Inference: ...


def compile(
    model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor] | None = None, *, inference: bool = False
) -> SparseModule | Inference:
    """A net that computes what ``model`` computes under ``mask``, on the CPU, with work for the kept weights only.

    Parameters
    ----------
    model
        The net, float32 on the CPU. It is copied, and stays as it is.
    mask
        Which weights are kept. What it doesn't cover is kept whole.
    example
        One batch of inputs, a tensor or a tuple of tensors: shapes are taken from it, but for the size of the batch. It
        may be left out where the net itself tells: a linear layer first, or convolutions that fit one usual image size.
    inference
        False: an ``nn.Module`` to train in a loop of one's own, with any optimiser of torch. True: a function of one
        batch, in evaluation mode, with the least overhead a call; it never changes.

    Raises ``UnsupportedError`` where the net can't be traced, and for ``inference`` where it holds an operation that
    the sparse engine doesn't have; ``InputError`` where mask, example or the net's numbers don't fit.
    """
    if not isinstance(model, nn.Module) or not isinstance(mask, Mask):
        raise InputError(
            f"compile takes a model and a tombola.Mask, not {type(model).__name__} and {type(mask).__name__}"
        )
    if isinstance(model, SparseModule):
        raise InputError("the net is compiled already: compile the original model again, for another mask as well")
    for name, tensor in model.named_parameters():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise InputError(
                f"compile takes a model in float32 on the CPU, but {name!r} is {tensor.dtype} on {tensor.device}: "
                "convert it with model.float().cpu()"
            )
    example = usual_example(model) if example is None else example
    if inference:
        from tombola.engines.sparse.inference import Inference

        return Inference(model, mask, example)
    return SparseModule(model, mask, example)


@dataclass(frozen=True)
class _Packed:
    """A weight of which only the kept entries are there."""

    shape: torch.Size
    order: Tensor
    """The position of each entry in the flattened weight."""

    def pack(self, full: Tensor) -> Tensor:
        """The kept entries of a tensor of the weight's shape."""
        return full.detach().reshape(-1)[self.order]

    def expand(self, kept: Tensor) -> Tensor:
        """The weight, exactly 0 where it is pruned; gradients flow back."""
        return kept.new_zeros(self.shape.numel()).index_copy(0, self.order, kept).view(self.shape)


@dataclass(frozen=True)
class _Plan:
    """What a compiled net does, shared by its copies."""

    traced: Traced
    stretches: tuple[Stretch, ...]
    mask: Mask
    flat: bool
    """Images are flattened before anything else."""
    note: str


class SparseModule(nn.Module):
    """A net of which the largest supported stretches run on the kept weights, and the rest in torch.

    Modules, parameters and buffers have the names that they have in the model, and ``train()`` and ``eval()`` do what
    they do there. A weight in a sparse stretch, or covered by the mask, is a one-dimensional parameter of its kept
    entries, so that optimisers keep state and do work for these alone. ``state_dict`` and ``load_state_dict`` speak the
    names and shapes of the model: pruned entries are given as 0, and ignored when loaded.

    A forward pass keeps its intermediate results until its backward pass is done. Results and gradients of a pass have
    the same bits on every run. Gradients of gradients aren't available; the net can't be moved to other devices or
    number types, nor pickled. Hooks that are put on a module of a sparse stretch later are not called.
    """

    def __init__(self, model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor]) -> None:
        super().__init__()
        own = copy.deepcopy(model)
        mask.apply_(own)
        traced = trace(model, mask, example)
        self._modules.update(own._modules)
        self._parameters.update(own._parameters)
        self._buffers.update(own._buffers)
        self._non_persistent_buffers_set.update(own._non_persistent_buffers_set)
        self.training = model.training
        stretches, reasons = find_stretches(traced, mask)
        flat = flattens_first(traced)
        self._plan = _Plan(traced, tuple(stretches), mask, flat, "")
        segments = [Segment(stretch, mask, self) for stretch in stretches]
        self._packed = self._pack({name: order for s in segments for name, order in s.order.items()}, mask)
        self._plan = _Plan(traced, tuple(stretches), mask, flat, _note(segments, reasons, self._packed))
        self._run = _remainder(self, segments)
        self.register_state_dict_post_hook(_expand_state)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_pack_state)  # type: ignore[no-untyped-call]

    @property
    def note(self) -> str:
        """What runs where: the weights of each sparse segment with their densities, and what is left to torch."""
        return self._plan.note

    def forward(self, *inputs: Tensor) -> Any:
        """What the model gives for a batch: the shapes of the example, of any number of examples."""
        if self._plan.flat and len(inputs) == 1 and inputs[0].dim() > 2:
            inputs = (inputs[0].flatten(1),)
        return self._run[0](*inputs)

    def _pack(self, orders: Mapping[str, NDArray[np.int64] | None], mask: Mask) -> dict[str, _Packed]:
        """Put the parameters of segments into memory that suits the kernels, without what is pruned."""
        packed = {}
        for name, parameter in dict(self.named_parameters()).items():
            order, values = orders.get(name), parameter.detach().reshape(-1)
            if order is None and name in mask:
                order = mask[name].reshape(-1).nonzero().flatten().numpy()
            if order is None and name not in orders:
                continue
            if order is not None:
                packed[name] = _Packed(parameter.shape, torch.from_numpy(order))
                values = packed[name].pack(parameter)
            memory = torch.from_numpy(aligned(len(values))).copy_(values)
            path, _, leaf = name.rpartition(".")
            self.get_submodule(path)._parameters[leaf] = nn.Parameter(memory, parameter.requires_grad)
        return packed

    def _apply(self, fn: Any, recurse: bool = True) -> SparseModule:
        try:
            tried = fn(torch.zeros(1))
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f"a compiled net stays in float32 on the CPU: {error}") from error
        if tried.dtype != torch.float32 or tried.device.type != "cpu":
            raise InputError(
                f"a compiled net stays in float32 on the CPU, and can't be moved to {tried.dtype} on {tried.device}: "
                "load its state_dict into the original model, and move that"
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseModule:
        copied = SparseModule.__new__(SparseModule)
        memo[id(self)] = copied
        shared = {"_plan": self._plan, "_packed": self._packed, "_run": ()}
        own = {key: value for key, value in self.__dict__.items() if key not in shared}
        copied.__dict__.update(copy.deepcopy(own, memo) | shared)
        copied._run = _remainder(copied, [Segment(s, self._plan.mask, copied) for s in self._plan.stretches])
        return copied

    def __getstate__(self) -> Any:
        raise TombolaError(
            "a compiled net can't be pickled: save its state_dict, and compile the model where it is used"
        )

    def __repr__(self) -> str:
        return "SparseModule(\n" + "".join(f"  {line}\n" for line in self.note.splitlines()) + ")"


def _remainder(owner: SparseModule, segments: Sequence[Segment]) -> tuple[fx.GraphModule]:
    """The graph of the whole net, each stretch one operation; in a tuple, so as not to become a module of the owner."""
    plan, graph = owner._plan, fx.Graph()
    parts: dict[str, nn.Module] = {}
    values: dict[fx.Node, fx.Node] = {}
    ends = {stretch.nodes[-1]: number for number, stretch in enumerate(plan.stretches)}
    inside = {node for stretch in plan.stretches for node in stretch.nodes}
    for node in plan.traced.module.graph.nodes:
        if node in ends:
            name, number = f"segment_{ends[node]}", ends[node]
            parts[name] = segments[number]
            values[node] = graph.call_module(name, (values[plan.stretches[number].entry],))
        elif node in inside:
            continue
        elif node.op in ("get_attr", "call_module"):
            name = f"part_{len(parts)}"
            parts[name] = _part(owner, node)
            args, kwargs = (fx.map_arg(value, values.__getitem__) for value in (node.args, node.kwargs))
            values[node] = graph.call_module(name, args, kwargs)
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return (fx.GraphModule(parts, graph),)


def _part(owner: SparseModule, node: fx.Node) -> nn.Module:
    """A module that does what a node does that is left to torch."""
    target = str(node.target)
    if node.op == "get_attr":
        path, _, leaf = target.rpartition(".")
        return _Attribute(owner.get_submodule(path), leaf, owner._packed.get(target))
    module = owner.get_submodule(target)
    packed = {name[len(target) + 1 :]: p for name, p in owner._packed.items() if name.startswith(f"{target}.")}
    if not packed:
        return module
    if isinstance(module, nn.RNNBase):
        raise UnsupportedError(
            f"masked weights of {type(module).__name__} {target!r} can't be compiled: leave them out of the mask, or "
            "train the model with tombola.guard"
        )
    return _Expanded(module, packed)


class _Attribute(nn.Module):
    """Gives a parameter or a buffer that the forward pass reads itself."""

    def __init__(self, owner: nn.Module, name: str, packed: _Packed | None) -> None:
        super().__init__()
        self._owner, self._name, self._packed = (owner,), name, packed

    def forward(self) -> Any:
        """The tensor in the shape that it has in the model."""
        value = getattr(self._owner[0], self._name)
        return value if self._packed is None else self._packed.expand(value)


class _Expanded(nn.Module):
    """Calls a module with its masked weights in full."""

    def __init__(self, module: nn.Module, packed: Mapping[str, _Packed]) -> None:
        super().__init__()
        self._module, self._packed = (module,), packed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives."""
        (module,) = self._module
        weights = {name: packed.expand(module.get_parameter(name)) for name, packed in self._packed.items()}
        return torch.func.functional_call(module, weights, args, kwargs)


def _expand_state(module: SparseModule, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, packed in module._packed.items():
        if prefix + name in state:
            state[prefix + name] = packed.expand(state[prefix + name].detach())


def _pack_state(module: SparseModule, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, packed in module._packed.items():
        if prefix + name in state:
            value = state[prefix + name]
            if tuple(value.shape) != tuple(packed.shape):
                raise InputError(
                    f"{prefix + name!r} has shape {tuple(packed.shape)} in the model, but got {tuple(value.shape)}"
                )
            state[prefix + name] = packed.pack(value)


def _note(segments: Sequence[Segment], reasons: Mapping[fx.Node, str], packed: Mapping[str, _Packed]) -> str:
    lines = []
    for number, segment in enumerate(segments, start=1):
        shown = []
        for name in segment.order:
            if name in packed:
                kept, total = len(packed[name].order), packed[name].shape.numel()
                shown.append(f"{name} {kept / total if total else 1:.2%} ({kept:,} of {total:,})")
        lines.append(f"sparse segment {number}: {', '.join(shown)}")
    in_segments = {name for segment in segments for name in segment.order}
    lines += [f"left to torch: {reason}" for reason in dict.fromkeys(reasons.values())]
    left = [name for name in packed if name not in in_segments]
    return "\n".join(lines + ([f"kept weights expanded for torch: {', '.join(left)}"] if left else []))
