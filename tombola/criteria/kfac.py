"""What layers take in and what comes back to them: second moments of their inputs, and the factors of K-FAC.

The Fisher information of a layer's weights is about the Kronecker product of two small matrices (Martens & Grosse 2015;
for convolutions Grosse & Martens 2016): one of the layer's inputs, one of the gradients with respect to its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tombola.batches import size_of
from tombola.criteria.base import Weights
from tombola.criteria.gradients import data, wanted
from tombola.errors import InputError

Layer = nn.Linear | _ConvNd
Seen = Callable[[str, Layer, Tensor, Tensor], None]

_ROOM = 2**24
"""How many numbers of patches to have in memory at once."""
_TRACE = 1e-150
"""What a matrix of zeros gets on its diagonal: its weights are worth next to nothing, the smallest the least."""


@dataclass(frozen=True, eq=False)
class Factors:
    """The factors of one layer's Fisher information, float64.

    Of its weights, as a matrix of ``rows`` outputs and ``columns`` inputs in each group of a convolution (one group
    elsewhere), entries ``ij`` and ``kl`` have about ``outputs[group, i, k] * inputs[group, j, l]``; entries of
    different groups or layers count as independent.
    """

    inputs: Tensor
    """``E[sum_t a_t a_t']``, the sum over positions: (groups, columns, columns)."""
    outputs: Tensor
    """``E[mean_t g_t g_t']``, the mean over positions: (groups, rows, rows)."""


def second_moments(weights: Weights, who: str) -> dict[str, Tensor]:
    """For each prunable weight the mean over all examples of ``x x'``, summed over positions, of its layer's inputs.

    ``x`` is what one output is a product with: a linear layer's input, or the patch of a convolution, a group's share
    in the order of the weight's entries. Positions are the pixels of a convolution's output, the leading dimensions of
    a linear layer's input beyond the first, and the calls of a layer that is called more than once. Each has shape
    (groups, columns, columns) and is float64.

    Raises ``InputError`` for weights that belong to no linear or convolution layer, layers that no input reached, and
    inputs that are not finite.
    """
    batches, loss = data(weights, who)
    layers = layers_of(weights, who)
    sums, examples = dict[str, Tensor](), 0

    def seen(name: str, layer: Layer, given: Tensor, output: Tensor) -> None:
        _add(sums, name, _patches(layer, given))

    with torch.no_grad(), _watching(layers, seen, who):
        for batch in batches:
            loss(weights.model, batch)
            examples += size_of(batch)
    return _means(sums, layers, examples, who)


def factors(weights: Weights, who: str, classes: int = 20, samples: int = 1) -> dict[str, Factors]:
    """The factors of K-FAC for each prunable weight, with labels from the model's own predictive distribution.

    The model's output, of shape (examples, classes), is taken for the logits of a categorical distribution (logarithms
    of probabilities are logits too), and ``g`` is the gradient of the logarithm of a label's probability with respect
    to a layer's output. With at most ``classes`` of them, the expectation over labels is exact: one pass backward for
    each. With more, each example draws ``samples`` labels from ``weights.generator``. The loss does no more than pass
    the batches through the model.

    The expectation over examples is the mean over all batches. Positions are as for ``second_moments``: their number
    and products of inputs are in ``inputs``, and ``outputs`` is their mean, as Grosse & Martens (2016) have it under
    spatial homogeneity and uncorrelated derivatives. Biases have no column: they stand still.

    Raises ``InputError`` as ``second_moments``, and for outputs of another kind.
    """
    batches, loss = data(weights, who)
    layers = layers_of(weights, who)
    wanted(weights)
    inputs, outputs = dict[str, Tensor](), dict[str, Tensor]()
    rows, examples = dict.fromkeys(layers, 0), 0
    calls: list[tuple[str, Layer, GradientEdge]] = []
    given_out: list[Any] = []

    def seen(name: str, layer: Layer, given: Tensor, output: Tensor) -> None:
        _add(inputs, name, _patches(layer, given))
        rows[name] += output.numel() // max(1, layer.weight.shape[0])
        # The edge, not the tensor: an activation may be about to overwrite that.
        if output.requires_grad:
            calls.append((name, layer, get_gradient_edge(output)))

    hook = weights.model.register_forward_hook(lambda net, args, output: given_out.append(output))
    try:
        with _watching(layers, seen, who):
            for batch in batches:
                loss(weights.model, batch)
                examples += size_of(batch)
                logits = logits_of(given_out, size_of(batch), who)
                for gradients in _gradients(logits, [edge for *_, edge in calls], classes, samples, weights.generator):
                    for (name, layer, _), gradient in zip(calls, gradients, strict=True):
                        if gradient is not None:
                            _add(outputs, name, iter([_outputs(layer, gradient)]))
                calls.clear()
                given_out.clear()
    finally:
        hook.remove()
    moments = _means(inputs, layers, examples, who)
    for name, (layer, *_) in layers.items():
        if name not in outputs:  # the model's output doesn't depend on it
            groups, side = _groups(layer), layer.weight.shape[0] // _groups(layer)
            outputs[name] = torch.zeros(groups, side, side, dtype=torch.float64, device=moments[name].device)
        _refuse_infinite(outputs[name], "gradients", name, who)
    return {name: Factors(moments[name], outputs[name] / max(1, rows[name])) for name in layers}


def as_matrix(layer: Layer, tensor: Tensor) -> Tensor:
    """A tensor of a layer's weight's shape as (groups, rows, columns), in the order that the moments have."""
    groups = _groups(layer)
    return tensor.reshape(groups, len(tensor) // groups, math.prod(tensor.shape[1:]))


def damped(matrices: Tensor, share: float) -> Tensor:
    """The matrices with this share of their mean diagonal entry added to their diagonal, so that they have inverses
    though inputs are dead or fewer than the columns."""
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    added = (share * mean).clamp_min(_TRACE).expand(matrices.shape[:-1])
    return matrices + torch.diag_embed(added)


def cholesky(matrix: Tensor, who: str) -> Tensor:
    """The lower factor of a matrix; ``InputError`` where rounding has left it without."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise InputError(f"{who} must invert a matrix that has no inverse to rounding: raise its damping")
    return factor


def inverse_diagonal(matrix: Tensor, who: str) -> Tensor:
    """The diagonal of a matrix's inverse. ``InputError`` as ``cholesky``."""
    return torch.cholesky_inverse(cholesky(matrix, who)).diagonal()


def layers_of(weights: Weights, who: str) -> dict[str, list[Layer]]:
    """The layers that own each prunable weight; several share one that is tied.

    ``InputError`` where there are none, or where one is no weight of a linear or (not transposed) convolution layer.
    """
    if not weights.final:
        raise InputError("there is nothing to score: the model has no prunable parameter")
    own = dict(weights.model.named_parameters())
    found: dict[str, list[Layer]] = {}
    for name in weights.final:
        found[name] = []
        for module in weights.model.modules():
            if not any(p is own[name] for p in module._parameters.values()):
                continue
            plain = isinstance(module, (nn.Linear, _ConvNd)) and not isinstance(module, _ConvTransposeNd)
            if not plain or module.weight is not own[name]:
                raise InputError(
                    f"{who} is for the weights of linear and convolution layers, but {name!r} is not one: it belongs "
                    f"to a {type(module).__name__}. Leave it out of the mask"
                )
            found[name].append(cast(Layer, module))
    return found


@contextmanager
def _watching(layers: Mapping[str, Sequence[Layer]], seen: Seen, who: str) -> Iterator[None]:
    """Call ``seen(name, layer, input, output)`` whenever a layer has been called."""
    hooks = []
    for name, owners in layers.items():
        for layer in owners:

            def hook(layer: Any, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                given = args[0] if args else kwargs.get("input")
                if not isinstance(given, Tensor) or not isinstance(output, Tensor):
                    raise InputError(
                        f"{who} is for layers that make one tensor of another, but the layer of {name!r}, "
                        f"a {type(layer).__name__}, doesn't. Leave it out of the mask"
                    )
                seen(name, layer, given, output)

            # Ahead of others, which may change the output.
            hooks.append(layer.register_forward_hook(hook, prepend=True, with_kwargs=True))
    try:
        yield
    finally:
        for registered in hooks:
            registered.remove()


def _groups(layer: Layer) -> int:
    return layer.groups if isinstance(layer, _ConvNd) else 1


def _double(tensor: Tensor) -> Tensor:
    return (tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()).double()  # mps has no float64


def _patches(layer: Layer, given: Tensor) -> Iterator[Tensor]:
    """What a layer's weights are multiplied with: (groups, positions, columns), float64, some examples at a time."""
    if isinstance(layer, nn.Linear):
        yield _double(given).reshape(1, -1, given.shape[-1])
        return
    sides = len(layer.kernel_size)
    if given.dim() == sides + 1:
        given = given[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(given, layer._reversed_padding_repeated_twice, mode=mode)
    pixels = math.prod(padded.shape[2:]) // math.prod(layer.stride)
    step = max(1, _ROOM // max(1, pixels * padded.shape[1] * math.prod(layer.kernel_size)))
    for part in torch.split(padded, step):
        windows = _double(part)
        for side, (kernel, stride, dilation) in enumerate(
            zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), start=2
        ):
            windows = windows.unfold(side, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        # (examples, channels, places, kernel) to (groups, examples, places, channels of a group, kernel)
        split = torch.unflatten(windows, 1, (layer.groups, -1)).movedim(1, 0).movedim(2, 2 + sides)
        yield split.flatten(2 + sides).flatten(1, 1 + sides)


def _outputs(layer: Layer, tensor: Tensor) -> Tensor:
    """A tensor of a layer's output's shape as (groups, positions, rows), float64."""
    if isinstance(layer, nn.Linear):
        return _double(tensor).reshape(1, -1, tensor.shape[-1])
    if tensor.dim() == len(layer.kernel_size) + 1:
        tensor = tensor[None]
    split = torch.unflatten(_double(tensor).flatten(2), 1, (layer.groups, -1))
    return split.permute(1, 0, 3, 2).flatten(1, 2)


def _add(sums: dict[str, Tensor], name: str, parts: Iterator[Tensor]) -> None:
    """Add the products of rows (groups, positions, columns) with themselves."""
    for rows in parts:
        found = rows.transpose(1, 2) @ rows
        sums[name] = sums[name].add_(found) if name in sums else found


def _means(sums: dict[str, Tensor], layers: Mapping[str, Any], examples: int, who: str) -> dict[str, Tensor]:
    if not examples:
        raise InputError(f"{who} got no batches: an iterator gives its batches only once, so pass a list")
    for name in layers:
        if name not in sums:
            raise InputError(
                f"{who} sees no input of the layer of {name!r}: the model doesn't use it, or not by calling it. "
                "Leave it out of the mask"
            )
        _refuse_infinite(sums[name], "inputs", name, who)
    return {name: sums[name] / examples for name in layers}


def _refuse_infinite(sums: Tensor, what: str, name: str, who: str) -> None:
    if not bool(sums.isfinite().all()):
        raise InputError(f"{who} found {what} of the layer of {name!r} not finite: are the weights, and the data?")


def logits_of(outputs: Sequence[Any], examples: int, who: str) -> Tensor:
    """The one output of the model, of shape (examples, classes); ``InputError`` where it can't be logits."""
    if len(outputs) != 1:
        raise InputError(f"{who} takes a loss that calls the model once for a batch, but it did {len(outputs)} times")
    (logits,) = outputs
    if isinstance(logits, Tensor):
        if logits.dim() == 2 and len(logits) == examples and logits.shape[1] > 1 and logits.requires_grad:
            return logits
        got = f"one of shape {tuple(logits.shape)}"
    else:
        got = f"a {type(logits).__name__}"
    raise InputError(
        f"{who} takes the model's output for logits, a tensor of shape (examples, classes) with 2 classes or more, "
        f"computed from the weights, but for {examples} examples got {got}"
    )


def _gradients(
    logits: Tensor, edges: Sequence[GradientEdge], classes: int, samples: int, generator: torch.Generator
) -> Iterator[tuple[Tensor | None, ...]]:
    """Gradients of labels' log-likelihoods at the edges: the sum of their products is the expectation's over labels."""
    likelihood = logits.log_softmax(1)
    chances = likelihood.detach().exp()
    count = logits.shape[1]
    if count <= classes:
        values = ((chances[:, label].sqrt() * likelihood[:, label]).sum() for label in range(count))
    else:
        if not bool(chances.isfinite().all()):
            raise InputError("labels can't be drawn from outputs that are not finite: are the weights?")
        drawn = torch.multinomial(chances.cpu(), samples, replacement=True, generator=generator).to(logits.device)
        values = (likelihood.gather(1, label[:, None]).sum() / math.sqrt(samples) for label in drawn.T)
    for value in values if edges else ():
        yield torch.autograd.grad(value, edges, retain_graph=True, allow_unused=True)
