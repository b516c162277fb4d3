"""Which stretches of a net the sparse engine can run, and why the rest is left to torch.

A stretch takes one value and gives one: activations change their layout on the way in and out, and nowhere between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tombola.engines.sparse.parts import LANES
from tombola.engines.sparse.translate import translate
from tombola.engines.tracing import Traced, UnsupportedError
from tombola.mask import Mask

_WEIGHTED = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Stretch:
    """Operations of a net that take the value of ``entry`` and make that of the last of ``nodes``."""

    entry: fx.Node
    nodes: tuple[fx.Node, ...]
    traced: Traced
    """These operations alone, on modules under the names they have in the net."""


def find_stretches(traced: Traced, mask: Mask) -> tuple[list[Stretch], dict[fx.Node, str]]:
    """The largest stretches with weights that the sparse engine can run, in order; and why not, for the other nodes."""
    nodes = [node for node in traced.module.graph.nodes if node.op not in ("placeholder", "output")]
    reasons = obstacles(traced, mask)
    free = {node for node in nodes if node not in reasons}
    found: list[Stretch] = []
    for end in reversed(nodes):
        inside, entry = _largest(end, free, traced)
        if entry is None:
            continue
        stretch = _cut(traced, entry, [node for node in nodes if node in inside])
        free -= inside
        try:
            translate(stretch.traced, _nothing(stretch.traced, mask), LANES, images=True)
        except UnsupportedError as error:
            reasons |= dict.fromkeys(inside, str(error))
        else:
            found.insert(0, stretch)
    alone = "{} can't be part of a stretch that has weights, one input and one output"
    reasons |= {node: alone.format(_name(traced, node)) for node in nodes if node in free}
    return found, reasons


def obstacles(traced: Traced, mask: Mask) -> dict[fx.Node, str]:
    """Which operations have no layer in the sparse engine under a mask, and why."""
    nodes = [node for node in traced.module.graph.nodes if node.op not in ("placeholder", "output")]
    called = [node.target for node in nodes if node.op == "call_module"]
    reasons = {}
    for node in nodes:
        if node.op == "call_module" and called.count(node.target) > 1:
            reasons[node] = f"{_name(traced, node)}: the module is used {called.count(node.target)} times"
        elif reason := _obstacle(traced, mask, node):
            reasons[node] = reason
    return reasons


def _obstacle(traced: Traced, mask: Mask, node: fx.Node) -> str | None:
    """Why one operation has no layer: it is tried alone, without any weights."""
    name, sources = _name(traced, node), node.all_input_nodes
    if node.op == "get_attr" or not sources:
        return f"{name} reads a parameter or a buffer itself"
    if node.op == "call_module" and _has_hooks(traced.module.get_submodule(str(node.target))):
        return f"{name}: the module has hooks"
    if len({traced.shapes.get(source) for source in sources}) > 1 or sources[0] not in traced.shapes:
        return f"{name} takes values of several shapes"
    try:
        alone = _cut(traced, sources[0], [node], others=sources).traced
        translate(alone, _nothing(alone, mask), LANES, images=True)
    except UnsupportedError as error:
        return str(error)
    return None


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"))


def _largest(end: fx.Node, free: set[fx.Node], traced: Traced) -> tuple[set[fx.Node], fx.Node | None]:
    """The largest stretch that ends with a node, and the node whose value it takes; None where there is none."""
    best: tuple[set[fx.Node], fx.Node | None] = set(), None
    for entry in _before(end, free):
        inside = _between(entry, end, free)
        if len(inside) > len(best[0]) and len(traced.shapes.get(entry, ())) in (2, 4) and _has_weights(traced, inside):
            best = inside, entry
    return best


def _before(end: fx.Node, free: set[fx.Node]) -> list[fx.Node]:
    """The nodes that a free node's value comes from by way of free ones, itself left out."""
    seen: dict[fx.Node, None] = {}
    waiting = [end] if end in free else []
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen:
                seen[source] = None
                waiting += [source] if source in free else []
    return list(seen)


def _between(entry: fx.Node, end: fx.Node, free: set[fx.Node]) -> set[fx.Node]:
    """The nodes that make the value of ``end`` from that of ``entry`` alone; none where others are needed, too, or
    where a value in between is used elsewhere."""
    inside: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is entry or node in inside:
            continue
        if node not in free:
            return set()
        inside.add(node)
        waiting += node.all_input_nodes
    return set() if any(user not in inside for node in inside - {end} for user in node.users) else inside


def _has_weights(traced: Traced, nodes: set[fx.Node]) -> bool:
    return any(
        node.op == "call_module" and type(traced.module.get_submodule(str(node.target))) in _WEIGHTED for node in nodes
    )


def _cut(traced: Traced, entry: fx.Node, nodes: list[fx.Node], others: list[fx.Node] | None = None) -> Stretch:
    """Some nodes as a graph of their own; its input stands for ``entry``, and for ``others`` where given."""
    graph = fx.Graph()
    values = dict.fromkeys([entry, *(others or [])], graph.placeholder("stretch_input"))
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(values[nodes[-1]])
    shapes = {values[node]: traced.shapes[node] for node in (entry, *nodes) if node in traced.shapes}
    return Stretch(entry, tuple(nodes), Traced(fx.GraphModule(traced.module, graph), shapes))


def _nothing(traced: Traced, mask: Mask) -> Mask:
    """A mask that keeps no weight, as translating is quick then, and of normalisations what ``mask`` keeps."""
    own = dict(traced.module.named_parameters())
    weights = {name: p for name, p in own.items() if name.endswith("weight") and p.dim() > 1}
    none = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in weights.items()}
    return Mask({**{name: kept for name, kept in mask.items() if name in own}, **none})


def _name(traced: Traced, node: fx.Node) -> str:
    """What a node does and where it is, for people."""
    target: Any = node.target
    kind = type(traced.module.get_submodule(str(target))) if node.op == "call_module" else target
    return f"operation {getattr(kind, '__name__', kind)} ({node.name})"
