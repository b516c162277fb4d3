"""Compaction: dead channels physically removed, with a way back to the names and shapes of the whole net.

Exact: the compact net computes what the masked net computes, and learns what it learns. A unit without live inputs but
with a bias stays, as its bias is a constant that learns. What falls away gets no gradient, so nothing but weight decay
moves it (``Compaction.dropped``); the running statistics of dropped batch-normalisation channels, which influence
nothing, stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from tombola.engines.channels import Depthwise, Normalised, Rule, Weighted, as_double, batch_norm_affine
from tombola.engines.liveness import Liveness, analyse
from tombola.engines.tracing import trace
from tombola.errors import InputError, suggestion
from tombola.mask import Mask

Kept = tuple[Tensor | None, ...]
"""By dimension of a tensor, the indices that stay (1-D int64, ascending), or None where all do."""


class Select(nn.Module):
    """Takes some channels (dimension 1) of its input, by index."""

    index: Tensor
    is_one_operation = True

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The channels of ``x`` that the index names, in its order."""
        return x.index_select(1, self.index)


class Spread(nn.Module):
    """Takes some channels (dimension 1) of its input to some of ``width``; the others are 0."""

    index: Tensor
    places: Tensor
    is_one_operation = True

    def __init__(self, index: Tensor, places: Tensor, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The channels of ``x`` that ``index`` names, at ``places``."""
        wide = x.new_zeros(x.shape[0], self.width, *x.shape[2:])
        return wide.index_copy(1, self.places, x.index_select(1, self.index))


@dataclass(frozen=True)
class Compaction:
    """A smaller net that computes the same, and the way between the two.

    ``expand``, ``shrink``, ``dropped`` and ``restore`` take mappings from names of the whole net's state_dict to
    tensors of its shapes: values, gradients, or an optimiser's moments alike, all of the net or part of it. They raise
    ``InputError`` for other names or shapes, and for a folded net, whose values are not those of the whole net.
    """

    model: fx.GraphModule
    """The smaller net: fresh copies of the modules under their own names, ``select_...`` where channels are cut, and
    ``spread_...`` where channels that are 0 are missing. For inputs of the example's shape, whatever the size of the
    batch."""
    mask: Mask
    """Which of its weights are kept."""
    kept: dict[str, Kept]
    """What stays of every parameter and buffer of the whole net. Nothing stays of one that the output never uses."""
    shapes: dict[str, tuple[int, ...]]
    """The shapes in the whole net."""
    folded: bool
    """Whether constants and batch normalisation went into weights and biases: for inference only."""
    gone: dict[str, Tensor]
    """By parameter of the smaller net, the entries that fell away though the mask keeps them: positions in the whole
    flattened tensor (1-D int64). Parameters that lost none are left out."""

    @torch.no_grad()
    def expand(self, state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> None:
        """Write tensors of the smaller net's shapes into those of the whole net's, in place; the rest is untouched."""
        for name, value in state.items():
            target = self._whole(name, full)
            sizes = zip(self.kept[name], self.shapes[name], strict=True)
            small = tuple(size if index is None else len(index) for index, size in sizes)
            if tuple(value.shape) != small:
                raise InputError(f"{name!r} has shape {small} in the compact net, but got {tuple(value.shape)}")
            target[_grid(self.kept[name])] = value.to(target.device)

    @torch.no_grad()
    def shrink(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of what the smaller net has of tensors of the whole net's shapes."""
        own = self.model.state_dict()
        return {name: self._whole(name, full)[_grid(self.kept[name])].clone() for name in full if name in own}

    @torch.no_grad()
    def dropped(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By parameter, the entries that fell away though the mask keeps them, as 1-D copies: weights, biases and
        normalisation parameters of dead channels. Parameters that lost none, or that ``full`` lacks, are left out."""
        gone = {name: places for name, places in self.gone.items() if name in full}
        return {name: self._whole(name, full).take(places.to(full[name].device)) for name, places in gone.items()}

    @torch.no_grad()
    def restore(self, dropped: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> None:
        """Write what ``dropped`` gave back into tensors of the whole net's shapes, in place."""
        for name, values in dropped.items():
            target = self._whole(name, full)
            target.put_(self.gone[name].to(target.device), values.to(target.device))

    def _whole(self, name: str, full: Mapping[str, Tensor]) -> Tensor:
        if self.folded:
            raise InputError("a folded net has no way back to the whole one: compact it with fold=False")
        if name not in self.kept or name not in full:
            raise InputError(f"the whole net has no {name!r}.{suggestion(name, self.kept)}")
        if tuple(full[name].shape) != self.shapes[name]:
            raise InputError(f"{name!r} has shape {self.shapes[name]}, but got {tuple(full[name].shape)}")
        return full[name]


def compact(model: nn.Module, mask: Mask, example: Tensor | Sequence[Tensor], *, fold: bool = False) -> Compaction:
    """Remove from a masked net every channel that no kept way leads out of, or that is exactly 0 for ever.

    Parameters
    ----------
    model
        The net; it is not changed, and pruned weights need not be 0 in it.
    mask
        Which weights are kept. What it doesn't cover counts as kept.
    example
        One batch of inputs, a tensor or a tuple of tensors: shapes are taken from it.
    fold
        For inference and export: also fold constant units into the next layer's bias and batch normalisation into the
        layer before it. The result is in evaluation mode, does not learn what the masked net would, and has no way
        back.

    Raises ``UnsupportedError`` where the net can't be traced, ``InputError`` where mask or example don't fit it.
    """
    traced = trace(model, mask, example)
    live = analyse(traced, mask, frozen=fold)
    module = traced.module.eval() if fold else traced.module
    cut = _cut(module, live)
    _insert_selects(module, live)
    if fold:
        _fold_normalisation(module, live)
    module.recompile()
    module.delete_all_unused_submodules()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    used = module.state_dict().keys() | cut.keys()
    kept = {name: cut.get(name) or _all_or_nothing(shape, name in used) for name, shape in shapes.items()}
    parameters = [name for name, _ in module.named_parameters() if name in shapes]
    small = Mask({name: mask[name][_grid(kept[name])] for name in mask if name in parameters})
    gone = {name: _gone(shapes[name], kept[name], mask.get(name)) for name in parameters}
    return Compaction(module, small, kept, shapes, fold, {name: places for name, places in gone.items() if len(places)})


def _all_or_nothing(shape: tuple[int, ...], everything: bool) -> Kept:
    nothing = torch.empty(0, dtype=torch.int64)
    return tuple(nothing if not everything and dim == 0 else None for dim in range(len(shape)))


def _cut(module: fx.GraphModule, live: Liveness) -> dict[str, Kept]:
    """Cut the modules down to what is delivered, in place; what is kept of the tensors that were cut."""
    kept: dict[str, Kept] = {}
    for node, rule in live.rules.items():
        if not isinstance(rule, (Weighted, Normalised)):
            continue
        layer, rows = rule.module, live.delivered[node]
        columns = live.required[node, rule.sources[0]]
        assert columns is not None
        if isinstance(rule, Normalised):
            cuts: dict[str, Kept] = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (_index(rows),))
            layer.num_features = int(rows.sum())
        elif isinstance(rule, Depthwise):
            cuts = {"weight": (_index(rows),), "bias": (_index(rows),)}
            layer.in_channels = layer.out_channels = layer.groups = int(rows.sum())
        else:
            cuts = {"weight": (_index(rows), _index(columns)), "bias": (_index(rows),)}
            _fold_constants(rule, live.known[rule.sources[0]], columns)
            names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
            setattr(layer, names[0], int(columns.sum()))
            setattr(layer, names[1], int(rows.sum()))
        for name, dims in cuts.items():
            tensor = getattr(layer, name)
            if tensor is not None:
                kept[f"{node.target}.{name}"] = (*dims, *(None,) * (tensor.dim() - len(dims)))
                _replace(layer, name, tensor.detach()[_grid(dims)].clone())
    return kept


def _fold_constants(rule: Weighted, known: Tensor, columns: Tensor) -> None:
    """Add to a layer's bias what its constant inputs give that are not there any more."""
    constants = torch.where(columns, 0.0, known.nan_to_num(0.0))
    if bool(constants.any()):
        layer, change = rule.module, rule.sums @ constants
        bias = change if layer.bias is None else change + as_double(layer.bias)
        _replace(layer, "bias", bias.to(layer.weight))


def _insert_selects(module: fx.GraphModule, live: Liveness) -> None:
    """Take from each value what its user asks for, where that isn't what there is; equal selections are shared.

    What is asked for and isn't there is 0: see ``Normalised``.
    """
    made: dict[tuple[fx.Node, bytes], fx.Node] = {}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    position = {node: number for number, node in enumerate(module.graph.nodes)}
    for (node, source), part in sorted(live.required.items(), key=lambda edge: position[edge[0][0]]):
        if part is None or not len(part) or torch.equal(part, live.delivered[source]):
            continue
        key, there = (source, part.numpy().tobytes()), live.delivered[source]
        if key not in made:
            index, places = (value.nonzero().flatten().to(device) for value in (part[there], there[part]))
            missing = len(places) < int(part.sum())
            name = _free_name(module, f"{'spread' if missing else 'select'}_{source.name}")
            module.add_submodule(name, Spread(index, places, int(part.sum())) if missing else Select(index))
            with module.graph.inserting_before(node):
                made[key] = module.graph.call_module(name, (source,))
        node.replace_input_with(source, made[key])


def _free_name(module: nn.Module, name: str) -> str:
    number, free = 1, name
    while hasattr(module, free):
        number += 1
        free = f"{name}_{number}"
    return free


def _fold_normalisation(module: fx.GraphModule, live: Liveness) -> None:
    """Fold each batch normalisation into the layer that feeds it and nothing else."""
    for node, rule in live.rules.items():
        if not isinstance(rule, Normalised) or rule.module.running_mean is None:
            continue
        source = node.args[0]
        before: Rule | None = live.rules.get(source) if isinstance(source, fx.Node) else None
        if isinstance(source, fx.Node) and isinstance(before, Weighted) and list(source.users) == [node]:
            layer: Any = before.module
            scale, shift = batch_norm_affine(rule.module)
            weight = as_double(layer.weight) * scale.reshape(-1, *(1,) * (layer.weight.dim() - 1))
            bias = shift if layer.bias is None else as_double(layer.bias) * scale + shift
            _replace(layer, "bias", bias.to(layer.weight))
            _replace(layer, "weight", weight.to(layer.weight))
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


def _replace(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put another value in place of a parameter or a buffer."""
    if name in layer._buffers:
        layer._buffers[name] = value
    else:
        old = layer._parameters[name]
        layer._parameters[name] = nn.Parameter(value, requires_grad=old is None or old.requires_grad)


def _index(channels: Tensor) -> Tensor | None:
    return None if bool(channels.all()) else channels.nonzero().flatten()


def _grid(kept: Kept) -> tuple[Any, ...]:
    """What indexes the kept entries of a tensor; no more than its first two dimensions are ever cut."""
    rows, columns = (*kept, None, None)[:2]
    if columns is None:
        return (Ellipsis,) if rows is None else (rows,)
    return (slice(None), columns) if rows is None else (rows[:, None], columns)


def _gone(shape: tuple[int, ...], kept: Kept, mask: Tensor | None) -> Tensor:
    lost = torch.ones(shape, dtype=torch.bool) if mask is None else mask.clone()
    lost[_grid(kept)] = False
    return lost.flatten().nonzero().flatten()
