"""From a traced net to a program: every operation of the graph becomes a layer, or is named as one that can't.

To support an operation, write its layer and register in ``RULES`` the function that makes it from a node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from tombola.engines.compaction import Select
from tombola.engines.sparse.convolution import Convolution, halos
from tombola.engines.sparse.elementwise import Flatten, Rectify, Sum
from tombola.engines.sparse.linear import Linear
from tombola.engines.sparse.norm import BatchNorm
from tombola.engines.sparse.parts import Activation
from tombola.engines.sparse.pooling import AveragePool, MaxPool
from tombola.engines.sparse.program import Program, Step
from tombola.engines.tracing import Traced, UnsupportedError
from tombola.mask import Mask

Pair = tuple[int, int]
_RELUS: set[object] = {nn.ReLU, F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"}
_SUMS: set[object] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_FLATTENS: set[object] = {nn.Flatten, torch.flatten}
_SAME: set[object] = {nn.Identity, "contiguous"}
_FUSING: set[object] = {nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, *_SUMS}
"""Operations whose layers can rectify their own output."""


def translate(traced: Traced, mask: Mask, batch: int, *, images: bool = False) -> Program:
    """The program of a traced net for batches of up to ``batch`` examples, with the kept weights of ``mask`` only.

    With ``images`` the result may be images, as that of a part of a net.

    Raises ``UnsupportedError`` naming the first operation that has no layer.
    """
    return Translation(traced, mask, batch).program(images)


class Translation:
    """One net on its way to a program: a value for each node first, for their halos to be settled, then the layers."""

    def __init__(self, traced: Traced, mask: Mask, batch: int) -> None:
        self.graph, self.shapes, self.mask, self.batch = traced.module.graph, traced.shapes, mask, batch
        self.modules = dict(traced.module.named_modules())
        self.values: dict[fx.Node, Activation] = {}
        self.steps: list[Step] = []
        self.columns: NDArray[np.int64] | None = None
        self._gathered: set[fx.Node] = set()
        self._selected: dict[fx.Node, NDArray[np.int64]] = {}
        """Selections of channels in the midst of a net: the layers that follow read those channels where they are."""

    def program(self, images: bool = False) -> Program:
        """The program; ``images`` says whether the result may be images."""
        *nodes, output = self.graph.nodes
        inputs = [n for n in nodes if n.op == "placeholder"]
        if len(inputs) != 1:
            raise UnsupportedError(f"a net with {len(inputs)} inputs: the sparse engine takes nets with 1")
        made = [node for node in nodes if self._prepare(node)]
        self._level_halos([node for node in made if self.kind(node) in _SUMS])
        called = [node.target for node in made if node.op == "call_module"]
        twice = next((target for target in called if called.count(target) > 1), None)
        if twice is not None:
            raise UnsupportedError(f"module {twice!r} is used twice")
        for node in made:
            RULES[self.kind(node)](self, node)
        (result,) = output.args
        if not isinstance(result, fx.Node) or (self.values[result].images and not images):
            raise UnsupportedError("the net must give one tensor of shape (N, classes)")
        return Program(self.values[inputs[0]], self.values[result], self.steps, self.columns)

    def _prepare(self, node: fx.Node) -> bool:
        """Find the value of a node; whether it takes a layer of its own."""
        if node.op == "placeholder":
            self.values[node] = self._input(node)
            return False
        kind, source = self.kind(node), node.args[0] if node.args else None
        x = self.values.get(source) if isinstance(source, fx.Node) else None
        if x is None:
            raise self.unsupported(node)
        fused = kind in _RELUS and self._rectifies_itself(source)
        same = (
            kind in _SAME or (kind in _FLATTENS and not x.images) or (kind is nn.Dropout and self.module(node).p == 0)
        )
        if node in self._gathered or fused or same:
            self.values[node] = x
            return False
        if kind is Select and all(self._takes_selections(user) for user in node.users):
            self.values[node], self._selected[node] = x, self.module(node).index.numpy()
            return False
        if kind not in RULES:
            raise self.unsupported(node)
        y = self.values[node] = self._room(node)
        y.rectified = kind in _RELUS or self._rectifies_itself(node)
        if kind is nn.Conv2d:
            m = self.module(node)
            needed = halos(x, y, m.kernel_size, m.stride, self._padding(node), m.dilation)
            x.halo, y.halo = max(x.halo, needed[0]), max(y.halo, needed[1])
        return True

    def _level_halos(self, sums: list[fx.Node]) -> None:
        """Give what is summed the halo of the sum: then planes are summed whole, and gradients handed over."""
        groups = [[self.values[n] for n in (*node.all_input_nodes, node)] for node in sums]
        while any(len({a.halo for a in group}) > 1 for group in groups):
            for group in groups:
                widest = max(a.halo for a in group)
                for activation in group:
                    activation.halo = widest

    def _input(self, node: fx.Node) -> Activation:
        """The input, gathered in the layout and with the columns that its first users want."""
        flat = self._only_user(node, _FLATTENS)
        chosen = self._only_user(flat or node, {Select})
        if chosen is not None:
            index, pixels = self.module(chosen).index, prod(self.shapes[flat or node][2:])
            self.columns = (index[:, None] * pixels + torch.arange(pixels)).flatten().numpy()
        self._gathered |= {n for n in (flat, chosen) if n is not None}
        return self._room(chosen or flat or node)

    def _only_user(self, node: fx.Node, kinds: set[object]) -> fx.Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and self.kind(users[0]) in kinds else None

    def _takes_selections(self, node: fx.Node) -> bool:
        kind = self.kind(node)
        return kind is nn.Linear or (kind is nn.Conv2d and self.module(node).groups == 1)

    def _rectifies_itself(self, node: Any) -> bool:
        """Whether the ReLU that is the only user of a node is part of the node's own layer."""
        return self.kind(node) in _FUSING and self._only_user(node, _RELUS) is not None

    def _room(self, node: fx.Node) -> Activation:
        shape = self.shapes.get(node, ())
        if len(shape) == 2:
            return Activation(self.batch, shape[1])
        if len(shape) != 4:
            raise self.unsupported(node, f" with a value of shape {shape}")
        return Activation(self.batch, shape[1], shape[2], shape[3], images=True)

    def kind(self, node: fx.Node) -> object:
        """What a node does: a module's type, a function, or a method's name."""
        return type(self.modules[str(node.target)]) if node.op == "call_module" else node.target

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls."""
        return self.modules[str(node.target)]

    def unsupported(self, node: fx.Node, why: str = "") -> UnsupportedError:
        """The error that names an operation and where it is."""
        kind = self.kind(node)
        return UnsupportedError(f"operation {getattr(kind, '__name__', kind)} ({node.name}){why}")

    def add(self, node: fx.Node, layer: Any, *inputs: Activation, output: Activation | None = None) -> None:
        """Add a layer that makes a node's value."""
        self.steps.append(Step(layer, inputs, output or self.values[node], str(node.target)))

    def ends(self, node: fx.Node) -> tuple[Activation, Activation]:
        """The values that a node takes and makes."""
        source: Any = node.args[0]
        return self.values[source], self.values[node]

    def kept(self, node: fx.Node) -> NDArray[np.bool_]:
        """The mask of a layer's weight for the channels of its input; all True where the mask doesn't cover it."""
        name = f"{node.target}.weight"
        own = np.ones(self.module(node).weight.shape, bool) if name not in self.mask else self.mask[name].numpy()
        return self._spread(node, own, False)

    def _spread(self, node: fx.Node, own: NDArray[Any], rest: Any) -> NDArray[Any]:
        """A layer's weight or the like with ``rest`` for the channels of its input that a selection leaves out."""
        index = self._selected.get(node.args[0])  # type: ignore[arg-type]
        if index is None:
            return own
        wide = np.full((own.shape[0], self.values[node.args[0]].channels, *own.shape[2:]), rest)  # type: ignore[index]
        wide[:, index] = own
        return wide

    def add_weighted(self, node: fx.Node, layer: Linear | Convolution, x: Activation) -> None:
        """Add a layer with a weight, whose entries are counted without the channels that a selection leaves out."""
        shape = self.module(node).weight.shape
        places = self._spread(node, np.arange(prod(shape)).reshape(shape), -1)
        layer.weight.order = places.reshape(-1)[layer.weight.order]
        self.add(node, layer, x)

    def _padding(self, node: fx.Node) -> Pair:
        """How many zeros a convolution puts before rows and columns."""
        m = self.module(node)
        if m.padding_mode != "zeros":
            raise self.unsupported(node, f" with padding mode {m.padding_mode!r}")
        if m.padding == "same":
            rows, columns = (d * (k - 1) // 2 for d, k in zip(m.dilation, m.kernel_size, strict=True))
            return rows, columns
        return (0, 0) if m.padding == "valid" else m.padding


def _linear(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    if x.images:
        raise t.unsupported(node, " on images that weren't flattened")
    bias = t.module(node).bias is not None
    t.add_weighted(node, Linear(str(node.target), t.kept(node), x, y, bias=bias, relu=y.rectified), x)


def _convolution(t: Translation, node: fx.Node) -> None:
    (x, y), m = t.ends(node), t.module(node)
    layer = Convolution(
        str(node.target),
        t.kept(node),
        x,
        y,
        stride=m.stride,
        padding=t._padding(node),
        dilation=m.dilation,
        groups=m.groups,
        bias=m.bias is not None,
        relu=y.rectified,
    )
    t.add_weighted(node, layer, x)


def _batch_norm(t: Translation, node: fx.Node) -> None:
    (x, y), m = t.ends(node), t.module(node)
    for name in (f"{node.target}.weight", f"{node.target}.bias"):
        if name in t.mask and not bool(t.mask[name].all()):
            raise t.unsupported(node, f": the mask prunes some of {name!r}, and these channels are still there")
    layer = BatchNorm(
        str(node.target),
        x,
        y,
        eps=m.eps,
        momentum=m.momentum,
        affine=m.affine,
        track=m.track_running_stats,
        relu=y.rectified,
    )
    t.add(node, layer, x)


def _rectify(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    t.add(node, Rectify(x, y), x)


def _flatten(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    if y.images:
        raise t.unsupported(node, " of only some dimensions")
    t.add(node, Flatten(x, y), x)


def _sum(t: Translation, node: fx.Node) -> None:
    a, b = (t.values.get(n) if isinstance(n, fx.Node) else None for n in (*node.args, None)[:2])
    y = t.values[node]
    if a is None or b is None or node.kwargs or len({(v.images, v.channels, v.height, v.width) for v in (a, b, y)}) > 1:
        raise t.unsupported(node, " of anything but two values of one shape")
    t.add(node, Sum(a, b, y, relu=y.rectified), a, b)


def _max_pool(t: Translation, node: fx.Node) -> None:
    (x, y), m = t.ends(node), t.module(node)
    if _pair(m.dilation) != (1, 1) or m.return_indices:
        raise t.unsupported(node, " with dilation or indices")
    t.add(node, MaxPool(x, y, _pair(m.kernel_size), _pair(m.stride), _pair(m.padding), m.ceil_mode), x)


def _average_pool(t: Translation, node: fx.Node) -> None:
    (x, y), m = t.ends(node), t.module(node)
    if m.divisor_override is not None:
        raise t.unsupported(node, " with a divisor of its own")
    sizes = _pair(m.kernel_size), _pair(m.stride), _pair(m.padding)
    t.add(node, AveragePool(x, y, *sizes, m.ceil_mode, m.count_include_pad), x)


def _adaptive_average(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    if not x.images or x.height % y.height or x.width % y.width:
        raise t.unsupported(node, f" from {x.height}x{x.width} to {y.height}x{y.width}, which isn't a divisor")
    window = x.height // y.height, x.width // y.width
    t.add(node, AveragePool(x, y, window, window), x)


def _functional_max_pool(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    given = _given(node, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    if _pair(given.get("dilation", 1)) != (1, 1) or given.get("return_indices"):
        raise t.unsupported(node, " with dilation or indices")
    t.add(node, MaxPool(x, y, *_window(given), bool(given.get("ceil_mode"))), x)


def _functional_average_pool(t: Translation, node: fx.Node) -> None:
    x, y = t.ends(node)
    given = _given(node, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    if given.get("divisor_override") is not None:
        raise t.unsupported(node, " with a divisor of its own")
    ceil_mode, padding_counts = bool(given.get("ceil_mode")), bool(given.get("count_include_pad", True))
    t.add(node, AveragePool(x, y, *_window(given), ceil_mode, padding_counts), x)


def _given(node: fx.Node, *names: str) -> dict[str, Any]:
    """The arguments of a function after its first, by name."""
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _window(given: dict[str, Any]) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding of a pooling."""
    kernel, stride = _pair(given["kernel_size"]), given.get("stride") or given["kernel_size"]
    return kernel, _pair(stride), _pair(given.get("padding", 0))


def _mean(t: Translation, node: fx.Node) -> None:
    """The mean over rows and columns: a pooling to one pixel, then flattened where the dimensions are dropped."""
    x, y = t.ends(node)
    given = _given(node, "dim", "keepdim")
    dims = given.pop("dim", None)
    given.pop("keepdim", None)
    if not x.images or given or not isinstance(dims, (tuple, list)) or {int(d) % 4 for d in dims} != {2, 3}:
        raise t.unsupported(node, " over anything but rows and columns of images")
    whole = (x.height, x.width)
    if y.images:
        t.add(node, AveragePool(x, y, whole, whole), x)
        return
    pooled = Activation(t.batch, x.channels, images=True)
    t.add(node, AveragePool(x, pooled, whole, whole), x, output=pooled)
    t.add(node, Flatten(pooled, y), pooled)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


RULES: dict[object, Callable[[Translation, fx.Node], None]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    **dict.fromkeys(_RELUS, _rectify),
    **dict.fromkeys(_FLATTENS, _flatten),
    **dict.fromkeys(_SUMS, _sum),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    **dict.fromkeys((nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d), _adaptive_average),
    F.max_pool2d: _functional_max_pool,
    F.avg_pool2d: _functional_average_pool,
    **dict.fromkeys((torch.mean, "mean"), _mean),
}
"""What makes the layers of a node, by what the node does."""
