"""``TARGET@SOURCE``: one task's data, loss, metric and recipe in another task's net, for tickets that are carried over.

The rules, of which there are no others:

- The net is the source's. Where the numbers of classes differ, its output layer is replaced by a linear layer of the
  target's classes, with bias or without as before, freshly drawn by the rule that the net's own weights are drawn by
  (PyTorch's where that isn't one of ``tasks/models``). It is left unpruned then, and no density counts it.
- Where inputs have other shapes they must be images, and are adapted once, as tensors: colour becomes grey by luma
  (``LUMA``, as in ITU-R BT.601), sizes change by antialiased bilinear interpolation, grey becomes colour by three equal
  channels. uint8 is rounded back to uint8. Mean and standard deviation stay the target's; those of three colours that
  become grey are weighted as the colours are.
- Where neither nets nor inputs differ, ``TARGET@SOURCE`` is the target itself, so that runs are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.mask import left_to_prune
from tombola.seeds import stream
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.data.download import Progress
from tombola.tasks.models.initialisation import draw_as_
from tombola.tasks.task import Examples, LoadSplits, Splits, Task, _Part, _Tensors, examples

AT = "@"
LUMA = (0.299, 0.587, 0.114)
Shape = tuple[int, ...]

_AT_ONCE = 4096  # images that are adapted at once


def adapted(target: Task, source: Task) -> Task:
    """The task ``TARGET@SOURCE``; the target itself where nothing differs, the source where it is the target's already.

    Raises ``InputError`` for tasks that don't go together: other metrics, inputs of other shapes that are no images,
    nets that give no scores of classes.
    """
    if source.name == target.name and source is not target:
        raise InputError(f"two tasks must have names of their own, but both are {target.name!r}: give them name=")
    if source.name.partition(AT)[0] == target.name:
        return source
    if AT in target.name:
        raise InputError(f"only a task's own data can be carried to another net, but got {target.name!r}: {_NAME_IT}")
    if (own_rules := target.carried_from(source)) is not None:
        return own_rules
    if (target.metric, target.conclude) != (source.metric, source.conclude):
        kinds = [f"{t.name!r} is by {t.metric}{' of a whole set' if t.conclude else ''}" for t in (target, source)]
        raise InputError(
            f"both tasks must be judged by one kind of metric, but {' and '.join(kinds)}: choose tasks of one kind"
        )
    shapes = input_shape(target), input_shape(source)
    if shapes[0] != shapes[1]:
        _check_images(target, shapes[0], shapes[1])
        _check_images(source, shapes[1], shapes[0])
    own, other = target.build(0), source.build(0)
    classes, had = outputs(target, own), outputs(source, other)
    if shapes[0] == shapes[1] and classes == had and _same(own, other, shapes[0]):
        return target
    fields: dict[str, Any] = {"name": f"{target.name}{AT}{source.name}", "input_shape": shapes[1]}
    fields |= {"description": f"The data and recipe of {target.name} in the net of {source.name}"}
    fields |= {"allocation": source.allocation, "embeddings": source.embeddings}
    fields |= _data(target, shapes[1]) if shapes[0] != shapes[1] else {}
    return replace(target, **fields, **_net(source, other, None if classes == had else classes))


_NAME_IT = "name the task before the @ alone"


def input_shape(task: Task) -> Shape:
    """The shape of one input of a task. ``InputError`` where it has none that can be told."""
    if task.input_shape is not None:
        return task.input_shape
    if task.load is None:
        x = examples(task.train).take(torch.tensor([0]))
        if isinstance(x, (tuple, list)) and isinstance(x[0], Tensor) and x[0].is_floating_point():
            return tuple(x[0].shape[1:])
    raise InputError(
        f"a task is adapted by the shape of its inputs, tensors of numbers, but {task.name!r} has none: text and the "
        "like can't be carried to another net; choose tasks of images"
    )


def outputs(task: Task, net: nn.Module) -> int:
    """How many classes a net of the task gives scores of. ``InputError`` where its output is another thing."""
    shape = input_shape(task)
    try:
        out = _answer(net, torch.zeros(2, *shape))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise InputError(
            f"a net must take inputs of its task's shape {shape} as numbers, but that of {task.name!r} doesn't: "
            f"{str(error).splitlines()[0]}; choose tasks of images"
        ) from error
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 2:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"a net must give a score for each class, shape (batch, classes), but that of {task.name!r} gives {got}: "
            "choose tasks of classes"
        )
    return int(out.shape[1])


def output_layer(task: Task, net: nn.Module) -> str:
    """The name of the linear layer that gives a net's scores: the last one with as many outputs as the net.

    ``InputError`` where there is none.
    """
    classes = outputs(task, net)
    found = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not found:
        raise InputError(
            f"where numbers of classes differ the output layer is replaced, a linear layer of {classes} outputs, but "
            f"the net of {task.name!r} has none: choose a target with {classes} classes"
        )
    return str(found[-1])


@torch.no_grad()
def adapted_images(x: Tensor, shape: Shape) -> Tensor:
    """Images, (N, C, H, W) of uint8 or floating point with 1 or 3 channels, in another shape (see the module)."""
    colours, height, width = shape
    made = torch.empty((len(x), *shape), dtype=x.dtype, device=x.device)
    luma = torch.tensor(LUMA, device=x.device).reshape(1, 3, 1, 1)
    for first in range(0, len(x), _AT_ONCE):
        part = x[first : first + _AT_ONCE].float()
        if part.shape[1] == 3 and colours == 1:
            part = (part * luma).sum(dim=1, keepdim=True)
        if part.shape[2:] != (height, width):
            part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        if x.dtype == torch.uint8:
            part = part.round().clamp(0, 255)
        made[first : first + _AT_ONCE] = part.to(x.dtype).expand(-1, colours, -1, -1)
    return made


def adapted_examples(data: Examples, shape: Shape) -> Examples:
    """Labelled images in another shape; augmented ones are augmented as before, in their new size.

    ``InputError`` for examples that don't lie in memory as tensors.
    """
    if isinstance(data, Augmented):
        plain = adapted_examples(data.plain, shape)
        assert isinstance(plain, Arrays)
        return Augmented(plain, data.pad, data.flip)
    if isinstance(data, Arrays) and data.x.dim() == 4:
        grey = data.x.shape[1] == 3 and shape[0] == 1
        mean, std = (_weighted(v) if grey else v for v in (data.mean, data.std))
        return replace(data, x=adapted_images(data.x, shape), mean=mean, std=std)
    if isinstance(data, _Tensors) and data.tensors[0].dim() == 4 and data.tensors[0].is_floating_point():
        return _Tensors((adapted_images(data.tensors[0], shape), *data.tensors[1:]))
    if isinstance(data, _Part):
        return _Part(adapted_examples(data.whole, shape), data.index)
    raise InputError(
        f"inputs are adapted once, as tensors of images in memory, but these are {type(data).__name__.strip('_')}: "
        f"choose a source whose inputs have the same shape, or give the images in shape {shape}"
    )


def _weighted(values: tuple[float, ...]) -> tuple[float, ...]:
    return (math.fsum(w * v for w, v in zip(LUMA, values, strict=True)),) if len(values) == 3 else values


def _data(target: Task, shape: Shape) -> dict[str, Any]:
    """The fields of the target's data in another shape."""
    if target.load is not None:
        return {"load": _loading(target.load, shape)}
    parts = {name: getattr(target, name) for name in ("train", "validation", "test")}
    return {name: None if p is None else adapted_examples(examples(p), shape) for name, p in parts.items()}


def _loading(load: LoadSplits, shape: Shape) -> LoadSplits:
    def splits(root: Path | None, seed: int, progress: Progress | None) -> Splits:
        found = load(root, seed, progress)
        test = None if found.test is None else adapted_examples(found.test, shape)
        return Splits(adapted_examples(found.train, shape), adapted_examples(found.validation, shape), test)

    return splits


def _net(source: Task, net: nn.Module, classes: int | None) -> dict[str, Any]:
    """The fields of the source's net, with another output layer where there is a number of ``classes``."""
    if classes is None:
        rest = {"relative_rates": source.relative_rates, "unpruned": source.unpruned}
        return {"model": source.model, "scaled": source.scaled, **rest}
    layer, family = output_layer(source, net), source.scaled
    weight = f"{layer}.weight"
    pruned = left_to_prune(source.prunable(net), (*source.unpruned, weight))
    rates = {k: rate for k, rate in source.relative_rates.items() if len(left_to_prune(pruned, (k,))) < len(pruned)}

    def scaled(make: Callable[[float], nn.Module]) -> Callable[[float], nn.Module]:
        return lambda factor: _with_outputs(make(factor), layer, classes)

    return {
        "model": lambda: _with_outputs(source.model(), layer, classes),
        "scaled": None if family is None else scaled(family),
        "relative_rates": rates,
        "unpruned": (*source.unpruned, weight),
    }


def _with_outputs(net: nn.Module, layer: str, classes: int) -> nn.Module:
    """The net with another output layer, drawn after all the rest, so that the rest is drawn as in the source."""
    old = net.get_submodule(layer)
    assert isinstance(old, nn.Linear)
    new = draw_as_(nn.Linear(old.in_features, classes, bias=old.bias is not None), net)
    parent, _, name = layer.rpartition(".")
    setattr(net.get_submodule(parent), name, new)
    return net


def _same(one: nn.Module, other: nn.Module, shape: Shape) -> bool:
    """Whether two nets, drawn from one stream, are the same: classes, settings, initial values, and what they give."""
    kinds = [[(name, type(module)) for name, module in net.named_modules()] for net in (one, other)]
    if kinds[0] != kinds[1] or repr(one) != repr(other):
        return False
    ours, theirs = one.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
        return False
    x = torch.randn(2, *shape, generator=stream(0, "adapted"))
    return torch.equal(_answer(one, x), _answer(other, x))


@torch.no_grad()
def _answer(net: nn.Module, x: Tensor) -> Any:
    """What a net gives as it is judged; its mode is as before."""
    training = net.training
    try:
        return net.eval()(x)
    finally:
        net.train(training)


def _check_images(task: Task, shape: Shape, other: Shape) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"inputs of another shape are adapted as images, (1 or 3 colours, height, width), but those of "
            f"{task.name!r} have shape {shape}, and {other} on the other side: choose tasks of images, or of one shape"
        )
