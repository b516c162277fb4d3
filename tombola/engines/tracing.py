"""A net as a graph of operations: traced with ``torch.fx`` on a copy, with the shape of every value."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from tombola.errors import InputError
from tombola.mask import Mask


class UnsupportedError(InputError):
    """A net that can't be compacted exactly, and why: run it on the masked engine instead."""


@dataclass(frozen=True)
class Traced:
    """A traced copy of a net: nothing in it is shared with the original, and pruned weights are 0."""

    module: fx.GraphModule
    shapes: dict[fx.Node, tuple[int, ...]]
    """Of every value that is a tensor."""


def trace(model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor]) -> Traced:
    """Trace a copy of ``model`` with the mask applied; ``example`` is one batch of its inputs, on any device.

    Raises ``UnsupportedError``, naming the operation, where the net's operations depend on values, on
    ``self.training`` outside of modules, or change something in place that is read again, and where parameters are
    tied. Raises ``InputError`` where the mask or the example doesn't fit.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    if not inputs or any(not isinstance(value, Tensor) or not value.dim() for value in inputs):
        raise InputError(
            "an example is a batch of inputs: one tensor, or a tuple of tensors, each with a batch dimension"
        )
    if model._forward_hooks or model._forward_pre_hooks:
        raise UnsupportedError("the net itself has forward hooks, which a trace leaves out: remove them")
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            raise UnsupportedError(
                f"{names[id(parameter)]!r} and {name!r} are one parameter: tied weights can't be cut apart"
            )
        names[id(parameter)] = name
    own = copy.deepcopy(model)
    mask.apply_(own)
    device = next((parameter.device for parameter in own.parameters()), inputs[0].device)
    buffers = _versions(own)
    training, evaluation = (_graph(own.train(mode)) for mode in (True, False))
    if str(training) != str(evaluation):
        raise UnsupportedError(
            "the forward pass does different operations in training and evaluation, e.g. F.dropout with "
            "training=self.training: use modules such as nn.Dropout, which know their mode"
        )
    if _versions(own) != buffers:
        raise UnsupportedError("the forward pass changes a buffer of its own, which a trace leaves out")
    module = fx.GraphModule(own, evaluation, class_name=type(model).__name__)
    shapes = _shapes(module, [value.to(device) for value in inputs])
    for copied, original in zip(own.modules(), model.modules(), strict=True):
        copied.training = original.training
    module.training = model.training
    _constant_sizes(module.graph, shapes)
    _plain_flattens(module.graph, shapes)
    _drop_unused(module.graph)
    return Traced(module, shapes)


class _Tracer(fx.Tracer):
    """Leaves whole what torch leaves whole, and what a compaction put into a net: a net may be traced again."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return getattr(m, "is_one_operation", False) or super().is_leaf_module(m, module_qualified_name)


def _graph(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        raise UnsupportedError(
            f"the net can't be traced, as its forward pass depends on values: {_first_line(error)}"
        ) from error


def _versions(model: nn.Module) -> list[tuple[int, int]]:
    return [(id(buffer), buffer._version) for buffer in model.buffers()]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Shapes(fx.Interpreter):
    """Runs a graph once, noting shapes.

    A value that is read after something changed it in place is refused: a selection of channels is a copy, so the
    change would be lost on one side.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        for source in n.all_input_nodes:
            if self.changed(source):
                raise UnsupportedError(f"{source.name!r} is changed in place and then read again by {n.name!r}")
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n], self.versions[n] = tuple(value.shape), value._version
        return value

    def changed(self, node: fx.Node) -> bool:
        return node in self.versions and self.env[node]._version != self.versions[node]


@torch.no_grad()
def _shapes(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, tuple[int, ...]]:
    """The shapes of all tensors of one evaluation pass; the module is in evaluation mode."""
    run = _Shapes(module)
    try:
        run.run(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, UnsupportedError):
            raise
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise InputError(f"the net can't run on an example of shape {shapes}: {_first_line(error)}") from error
    for node in module.graph.nodes:
        if node.op == "get_attr" and run.changed(node):
            raise UnsupportedError(f"the forward pass changes {node.target!r} in place")
    return run.shapes


def _constant_sizes(graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    """Write heights, widths and the like as numbers: ``x.size(3)``, ``x.size()[3]``, ``x.shape[3]``.

    Batches and channels stay as they are, since their number may be another.
    """
    for node in list(graph.nodes):
        source, dim = _asked_size(node)
        shape = shapes.get(source, ()) if source is not None else ()
        if not isinstance(dim, int) or not 2 <= dim % max(1, len(shape)) < len(shape):
            continue

        def size(found: fx.Node, node: fx.Node = node, value: int = shape[dim]) -> Any:
            return value if found is node else found

        for user in list(node.users):
            user.args, user.kwargs = fx.map_arg(user.args, size), fx.map_arg(user.kwargs, size)


def _asked_size(node: fx.Node) -> tuple[fx.Node | None, object]:
    """The value and the dimension whose length a node asks for; None where it asks for none."""
    if node.target == "size" and (len(node.args) == 2 or "dim" in node.kwargs):
        return node.args[0], node.args[1] if len(node.args) == 2 else node.kwargs["dim"]  # type: ignore[return-value]
    if node.target is operator.getitem and is_shape(node.args[0]):
        return node.args[0].args[0], node.args[1]  # type: ignore[union-attr, return-value]
    return None, None


def _plain_flattens(graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...]]) -> None:
    """Write every way from ``(N, C, ...)`` to ``(N, features)`` as ``torch.flatten(x, 1)``, right for any width."""
    for node in list(graph.nodes):
        if _flattens(node, shapes):
            source = node.args[0]
            with graph.inserting_before(node):
                plain = graph.call_function(torch.flatten, (source, 1))
            shapes[plain] = shapes[node]
            node.replace_all_uses_with(plain)
            graph.erase_node(node)


def _flattens(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    if node.op not in ("call_function", "call_method") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    before, after = shapes.get(node.args[0], ()), shapes.get(node, ())
    if len(before) < 2 or after != (before[0], prod(before[1:])):
        return False
    if node.target in (torch.flatten, "flatten"):
        return (*node.args[1:2], *node.kwargs.values())[:1] == (1,)
    if node.target not in (torch.reshape, "reshape", "view") or node.kwargs:
        return False
    sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    if len(sizes) != 2:
        return False
    return (sizes[0] == -1 and isinstance(sizes[1], int)) or _is_batch_size(sizes[0])


def _is_batch_size(value: object) -> bool:
    """Whether a value in a graph is ``x.size(0)`` or ``x.shape[0]``, of whatever ``x``: the batch is every tensor's."""
    if not isinstance(value, fx.Node):
        return False
    if value.target == "size":
        return (*value.args[1:], *value.kwargs.values()) == (0,)
    return value.target is operator.getitem and value.args[1:] == (0,) and is_shape(value.args[0])


def is_shape(value: object) -> bool:
    """Whether a value in a graph is ``x.shape`` or ``x.size()``."""
    if not isinstance(value, fx.Node):
        return False
    if value.target is getattr:
        return value.args[1:] == ("shape",)
    return value.target == "size" and len(value.args) == 1 and not value.kwargs


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    graph.lint()
