"""Which channels of a masked net matter: liveness along dimension 1 of every value of its graph.

A channel is *needed* where a kept way leads from it to the output, or where an operation ties it to one that is. It is
*known* where it can be nothing but one constant: in training exactly 0 for ever (no bias, no live input; or batch
normalisation with scale and shift pruned), in a frozen net any number; a layer can do without the known among its
inputs. Known flows forwards and asks nothing of needed, which flows backwards: one pass each is all there is.

Every operation has a rule. What no rule knows is opaque: it needs all channels of its inputs and delivers all.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import nan, prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tombola.engines.channels import (
    Channelwise,
    Depthwise,
    Flattened,
    Joined,
    Normalised,
    Rule,
    SizeOf,
    Weighted,
    is_padded,
    only_zero,
    unchanged,
)
from tombola.engines.tracing import Traced, is_shape
from tombola.mask import Mask

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Each entry of the result depends on that entry alone, by one formula for all channels.
_ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Softsign, nn.Softplus),
    *(nn.LogSigmoid, nn.Threshold),
)
_ELEMENTWISE: set[object] = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardtanh, F.tanh, F.sigmoid),
    *(F.hardsigmoid, F.hardswish, F.softplus, F.logsigmoid, torch.relu, torch.relu_, torch.tanh, torch.sigmoid),
    *(operator.mul, operator.truediv, operator.add, operator.sub, operator.neg, torch.neg, torch.mul, torch.add),
    *("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "neg", "mul", "mul_", "div", "add", "add_", "sub"),
    *("contiguous", "clone"),
}
# Poolings and the number of dimensions of a batch they take: with one fewer, dimension 1 is no channel.
_MAX_POOLS: dict[object, int] = {
    **{nn.MaxPool1d: 3, nn.MaxPool2d: 4, nn.MaxPool3d: 5, F.max_pool1d: 3, F.max_pool2d: 4, F.max_pool3d: 5},
    **{nn.AdaptiveMaxPool1d: 3, nn.AdaptiveMaxPool2d: 4, nn.AdaptiveAvgPool1d: 3, nn.AdaptiveAvgPool2d: 4},
    **{F.adaptive_avg_pool1d: 3, F.adaptive_avg_pool2d: 4, F.adaptive_max_pool1d: 3, F.adaptive_max_pool2d: 4},
}
_AVERAGE_POOLS: dict[object, int] = {
    **{nn.AvgPool1d: 3, nn.AvgPool2d: 4, nn.AvgPool3d: 5, F.avg_pool1d: 3, F.avg_pool2d: 4, F.avg_pool3d: 5},
}


@dataclass(frozen=True)
class Liveness:
    """What is known and what is delivered of each value of a traced net, by node."""

    rules: dict[fx.Node, Rule]
    known: dict[fx.Node, Tensor]
    delivered: dict[fx.Node, Tensor]
    required: dict[tuple[fx.Node, fx.Node], Tensor | None]
    """What a user (first) takes of a source (second); None: whatever there is."""


def analyse(traced: Traced, mask: Mask, frozen: bool, *, spare: bool = True) -> Liveness:
    """Liveness of a traced net under a mask. ``frozen``: nothing learns any more and batch statistics are fixed.

    Whatever is asked of a value, at least one channel of it stays, as torch's layers want, unless ``spare`` is False.
    """
    some = _some if spare else _as_it_is
    nodes = list(traced.module.graph.nodes)
    widths = {node: shape[1] for node, shape in traced.shapes.items() if len(shape) > 1}
    choose = _Choice(traced, mask, frozen, widths)
    rules = {node: choose.rule(node) for node in nodes}
    known: dict[fx.Node, Tensor] = {}
    for node, rule in rules.items():
        value = rule.known([known[source] for source in rule.sources])
        # While a net learns, a constant other than 0 still teaches the weights that it meets.
        known[node] = value if frozen else torch.where(value == 0, value, nan)
    needed = {node: torch.zeros(rule.width, dtype=torch.bool) for node, rule in rules.items()}
    delivered: dict[fx.Node, Tensor] = {}
    required: dict[tuple[fx.Node, fx.Node], Tensor | None] = {}
    for node, rule in reversed(rules.items()):
        wanted = some(needed[node])
        asked = [some(part) for part in rule.requires(wanted, [known[source] for source in rule.sources])]
        delivered[node] = rule.delivers(wanted, asked)
        for source, part in zip(rule.sources, asked, strict=True):
            required[node, source] = part
            if part is not None:
                needed[source] |= part
    return Liveness(rules, known, delivered, required)


class _Choice:
    """Which rule an operation gets; opaque wherever anything is out of the ordinary."""

    def __init__(self, traced: Traced, mask: Mask, frozen: bool, widths: dict[fx.Node, int]) -> None:
        self.modules = dict(traced.module.named_modules())
        self.mask, self.frozen, self.shapes, self.widths = mask, frozen, traced.shapes, widths
        self.shared = _shared(traced.module.graph)

    def rule(self, node: fx.Node) -> Rule:
        """The rule of one node."""
        sources, width = node.all_input_nodes, self.widths.get(node, 0)
        opaque = Rule(sources, self.widths, width)
        if node.op == "output" or not sources:
            return opaque
        if self._is_length(node):
            return SizeOf(sources, self.widths, width)
        if node not in self.widths or any(source not in self.widths for source in sources):
            return opaque
        if node.op == "call_module":
            return self._of_module(node, self.modules[str(node.target)]) or opaque
        return self._of_function(node) or opaque

    def _is_length(self, node: fx.Node) -> bool:
        if is_shape(node):
            return all(user.target is operator.getitem and user.args[1] in (0, 2, 3, 4) for user in node.users)
        return node.target == "size" and (*node.args[1:], *node.kwargs.values()) in [(0,), (2,), (3,), (4,)]

    def _of_module(self, node: fx.Node, module: Any) -> Rule | None:
        kind, sources, name = type(module), node.all_input_nodes, str(node.target)
        rank, width = len(self.shapes[sources[0]]), self.widths[node]
        if len(sources) > 1 or name in self.shared or module._forward_hooks or module._forward_pre_hooks:
            return None
        if kind is nn.Linear or kind in Convolution:
            if rank != module.weight.dim():
                return None
            weight = f"{name}.weight"
            kept = self.mask[weight] if weight in self.mask else torch.ones(module.weight.shape, dtype=torch.bool)
            groups = getattr(module, "groups", 1)
            if groups == 1:
                return Weighted(sources, self.widths, module, kept, self.frozen)
            if groups == module.in_channels == module.out_channels:
                return Depthwise(sources, self.widths, module, kept, self.frozen)
            return None
        if kind in BatchNorm:
            return Normalised(sources, self.widths, module, self._silent(name, module), self.frozen)
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return Flattened(sources, self.widths, prod(self.shapes[sources[0]][2:]))
        if kind in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
            return Channelwise(sources, self.widths, width, unchanged)
        if kind in _ELEMENTWISE_MODULES:
            return Channelwise(sources, self.widths, width, module.forward)
        if kind in _AVERAGE_POOLS and rank == _AVERAGE_POOLS[kind]:
            plain = not is_padded(module) and getattr(module, "divisor_override", None) is None
            return Channelwise(sources, self.widths, width, unchanged if plain else only_zero)
        if kind in _MAX_POOLS and rank == _MAX_POOLS[kind]:
            return Channelwise(sources, self.widths, width, unchanged)
        return None

    def _silent(self, name: str, module: Any) -> Tensor:
        """The channels of a batch normalisation that the mask makes 0: both what scales and what shifts is pruned."""
        silent = torch.full((module.num_features,), module.weight is not None)
        for leaf in ("weight", "bias"):
            if getattr(module, leaf) is not None:
                kept = self.mask.get(f"{name}.{leaf}")
                silent &= torch.zeros_like(silent) if kept is None else ~kept
        return silent

    def _of_function(self, node: fx.Node) -> Rule | None:
        sources, target, width = node.all_input_nodes, node.target, self.widths[node]
        shape = self.shapes[sources[0]]
        if target is torch.flatten:
            whole = node.args[1:] == (1,) and not node.kwargs
            return Flattened(sources, self.widths, prod(shape[2:])) if whole else None
        if target in (torch.cat, torch.concat):
            return self._of_cat(node)
        if len(sources) == 2 or node.args[:2] == (sources[0], sources[0]):
            sums = target in (operator.add, operator.iadd, torch.add, "add", "add_") and not node.kwargs
            same = len(node.args) == 2 and self.shapes[sources[-1]] == shape
            return Channelwise([*sources, sources[0]][:2], self.widths, width, torch.add) if sums and same else None
        if len(sources) > 1:
            return None
        if target in _ELEMENTWISE:
            return Channelwise(sources, self.widths, width, lambda value: _evaluate(node, value))
        if target in (torch.mean, "mean"):
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            dims = [dims] if isinstance(dims, int) else dims
            if isinstance(dims, (tuple, list)) and dims and all(int(d) % len(shape) > 1 for d in dims):
                return Channelwise(sources, self.widths, width, unchanged)
            return None
        if _AVERAGE_POOLS.get(target) == len(shape):
            return Channelwise(sources, self.widths, width, only_zero)
        return Channelwise(sources, self.widths, width, unchanged) if _MAX_POOLS.get(target) == len(shape) else None

    def _of_cat(self, node: fx.Node) -> Rule | None:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        sources = node.all_input_nodes
        along_channels = isinstance(dim, int) and dim % len(self.shapes[node]) == 1
        return Joined(sources, self.widths, self.widths[node]) if along_channels and list(parts) == sources else None


def _shared(graph: fx.Graph) -> set[str]:
    """The modules that are called twice, or one of whose parameters the graph itself reads."""
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    return read | {name for name in calls if calls.count(name) > 1}


Channels = TypeVar("Channels", Tensor, Tensor | None)


def _some(channels: Channels) -> Channels:
    """The same channels, or the first where there is none: torch's convolutions don't take an empty input."""
    if channels is not None and len(channels) and not bool(channels.any()):
        channels = channels.clone()
        channels[0] = True
    return channels


def _as_it_is(channels: Channels) -> Channels:
    return channels


def _evaluate(node: fx.Node, value: Tensor) -> Tensor:
    """An elementwise operation of the graph on other numbers."""
    args = [value if isinstance(arg, fx.Node) else arg for arg in node.args]
    operation = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return torch.as_tensor(operation(*args, **node.kwargs), dtype=torch.float64)
