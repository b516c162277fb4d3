"""What a criterion sees, the registry of criteria, and ``score``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tombola.criteria.dropout import NoDropout
from tombola.errors import InputError, suggestion
from tombola.mask import Mask, prunable

Scores = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Weights:
    """What a criterion may look at. Tensors are detached views: don't change them in place.

    ``model`` is the network itself, in the module mode asked for; ``final`` its prunable weights; ``mask`` the entries
    in question (those that rounds of ``prune_at_init`` have pruned since are 0 in ``final``); ``batches`` and
    ``loss`` are the data and objective for criteria that need gradients; ``generator`` is a stream of its own for those
    that draw at random; ``room`` a place to keep things in from one round of ``prune_at_init`` to the next, empty again
    whenever the weights were more than pruned in between.
    """

    model: nn.Module
    final: dict[str, Tensor]
    mask: Mask | None = None
    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    start: Mapping[str, Tensor] | None = None
    room: dict[str, Any] = field(default_factory=dict)

    @property
    def initial(self) -> dict[str, Tensor]:
        """The prunable weights at initialisation. ``InputError`` where the caller gave none."""
        if self.start is None:
            raise InputError("this criterion compares with the initial weights: pass initial=, a state_dict of them")
        for name, final in self.final.items():
            if name not in self.start:
                raise InputError(f"initial= lacks the weights of {name!r}")
            if self.start[name].shape != final.shape:
                raise InputError(
                    f"initial= has {name!r} of shape {tuple(self.start[name].shape)}, "
                    f"but the model's is {tuple(final.shape)}"
                )
        return {name: self.start[name].detach() for name in self.final}


Criterion = Callable[[Weights], Scores]
CRITERIA: dict[str, Criterion] = {}


@dataclass(frozen=True)
class Traits:
    """What is particular to a criterion; it carries them as its attribute ``traits``.

    ``mode`` is the module mode that it scores in where none is asked for. ``rounds`` and the rest are for pruning at
    initialisation (``prune_at_init``): in how many rounds; whether ``cautious`` ones are put in between, so that no
    round takes all that a layer has left; whether a round ranks pruned entries again (``revives``); whether the data
    give no more than the input's shape (``data_free``).
    """

    mode: str | None = None
    rounds: int = 1
    cautious: bool = False
    revives: bool = False
    data_free: bool = False


def traits(function: Criterion) -> Traits:
    """The traits of a criterion; those of a function that has none are the defaults."""
    own = getattr(function, "traits", None)
    return own if isinstance(own, Traits) else Traits()


def register(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known under a name."""

    def add(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        return function

    return add


def criterion(spec: str | Criterion) -> Criterion:
    """The criterion of a registered name, of ``"package.module:function"``, or the function itself.

    Raises ``InputError`` for a name that is not known or a function that can't be imported.
    """
    if callable(spec):
        return _of_weights(spec, getattr(spec, "__qualname__", repr(spec)))
    if spec in CRITERIA:
        return CRITERIA[spec]
    module, colon, name = spec.partition(":")
    if not (module and colon and name) or module.startswith("."):
        raise InputError(
            f"unknown criterion {spec!r}.{suggestion(spec, CRITERIA)} "
            "A function of your own is given as package.module:function."
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"the criterion {spec!r} can't be imported: {error}") from error
    if not callable(found):
        raise InputError(f"the criterion {spec!r} must be a function of Weights, but is a {type(found).__name__}")
    return _of_weights(found, spec)


def _of_weights(function: Criterion, label: str) -> Criterion:
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise InputError(f"the criterion {label!r} must be a function of one argument, Weights: {error}") from error
    except ValueError:
        pass  # some built-in functions don't tell their arguments
    return function


def score(
    model: nn.Module,
    by: str | Criterion,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    mask: Mask | None = None,
    mode: str | None = None,
    *,
    initial: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """Score every prunable entry of a model by a criterion; the model comes back bit for bit as it was.

    Parameters
    ----------
    model
        Any ``nn.Module``. Dropout is off while it is scored, whatever the mode.
    by
        A criterion's name, ``"package.module:function"``, or a function of ``Weights``.
    batches, loss
        Data, and ``loss(model, batch)``, the mean over the batch, for criteria that need gradients.
    mask
        The entries in question: parameters that it doesn't cover are not scored. Default: every prunable parameter.
    mode
        ``"train"`` or ``"eval"``, the module mode while scoring, which decides what batch normalisation does; default:
        the criterion's own, and for one without a mode of its own as the model stands.
    initial
        A state_dict of the initial weights, for criteria that compare with them.
    generator
        For criteria that draw at random; default: a generator with torch's default seed, so the same draw every time.

    Returns a dict of tensors of the parameters' shapes, on the CPU, float32 or (where the criterion gave float64 or
    whole numbers) float64. Torch's global random state, too, comes back as it was.

    Raises ``InputError`` for an unknown criterion or mode, a criterion that returns the wrong shapes, and scores that
    are NaN.
    """
    function = criterion(by)
    covered = prunable(model) if mask is None else mask.parameters(model)
    weights = Weights(
        model=model,
        final={name: p.detach() for name, p in covered.items()},
        mask=mask,
        batches=batches,
        loss=loss,
        generator=torch.Generator() if generator is None else generator,
        start=initial,
    )
    with untouched(model, mode or traits(function).mode):
        # Checked and copied before the weights come back: the scores may share their memory.
        found = checked(function(weights), weights, by)
        refuse_nan(found, by)
        return {name: value.to("cpu", copy=True) for name, value in found.items()}


def compensated(
    model: nn.Module,
    by: str | Criterion,
    kept: Mask,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    mask: Mask | None = None,
    mode: str | None = None,
) -> dict[str, Tensor] | None:
    """The values that survivors take on by a criterion that compensates for what is pruned; None where it doesn't.

    A criterion that does has a method ``compensate(weights, kept)``, which gives new values for the parameters that
    ``kept`` covers. The model comes back bit for bit as it was.

    Parameters
    ----------
    model, by, batches, loss, mode
        As for ``score``.
    kept
        What is kept of the parameters in question.
    mask
        What was kept before; weights outside it count as 0. Default: all of the parameters that ``kept`` covers.

    Returns a dict of tensors of the parameters' shapes and types, on the CPU, 0 wherever ``kept`` is not.

    Raises ``InputError`` for what the criterion refuses, masks that don't fit the model or each other, a ``kept`` that
    is not within ``mask``, and values that are not finite or of the wrong shape.
    """
    function = criterion(by)
    compensate = getattr(function, "compensate", None)
    if compensate is None:
        return None
    covered = kept.parameters(model)
    if mask is not None and not kept <= mask:
        raise InputError("what is kept must be within the mask, but some of it was pruned before: prune(..., within=)")
    final = {name: p.detach() for name, p in covered.items()}
    weights = Weights(model=model, final=final, mask=mask, batches=batches, loss=loss)
    with untouched(model, mode or traits(function).mode):
        values = compensate(weights, kept)
        found = {}
        for name, weight in final.items():
            value = values.get(name) if isinstance(values, Mapping) else None
            if not isinstance(value, Tensor) or value.shape != weight.shape or not bool(value.isfinite().all()):
                raise InputError(
                    f"the criterion {_label(by)!r} must compensate with finite values of shape {tuple(weight.shape)} "
                    f"for {name!r}, but gave others: are the weights finite?"
                )
            found[name] = value.detach().to("cpu", weight.dtype, copy=True).masked_fill_(~kept[name], 0.0)
        return found


def checked(scores: Any, weights: Weights, by: str | Criterion) -> Scores:
    """What a criterion gave, float32 or float64 and not copied; ``InputError`` for what isn't one score an entry."""
    label = _label(by)
    if not isinstance(scores, Mapping):
        raise InputError(
            f"the criterion {label!r} must return a dict of names to scores, but gave a {type(scores).__name__}"
        )
    found = {}
    for name, weight in weights.final.items():
        value = scores.get(name)
        if not isinstance(value, Tensor) or value.shape != weight.shape or value.is_complex():
            got = "nothing" if value is None else type(value).__name__
            if isinstance(value, Tensor):
                got = f"{value.dtype} of shape {tuple(value.shape)}"
            raise InputError(
                f"the criterion {label!r} must give {name!r} real scores of shape {tuple(weight.shape)}, but gave {got}"
            )
        short = value.dtype in (torch.float32, torch.float16, torch.bfloat16)
        found[name] = value.detach().to(torch.float32 if short else torch.float64)
    return found


def _label(by: str | Criterion) -> str:
    return by if isinstance(by, str) else str(getattr(by, "__qualname__", repr(by)))


def refuse_nan(scores: Scores, by: str | Criterion) -> None:
    """``InputError`` where scores of the criterion ``by`` are NaN."""
    for name, value in scores.items():
        # The sum is several times as fast to look at, and infinities of both signs make it NaN too.
        if bool(value.sum().isnan()) and bool(torch.isnan(value).any()):
            raise InputError(f"the criterion {_label(by)!r} scored some of {name!r} NaN: are the weights finite?")


@contextmanager
def untouched(model: nn.Module, mode: str | None) -> Iterator[Mapping[Tensor, Tensor]]:
    """Give the model back as it was: training flags, parameters, buffers, gradients, torch's global random state.

    Meanwhile it is in ``mode`` (``"train"``, ``"eval"``, or None for as it stands), with dropout off. Gives the
    remembered content of every parameter and buffer, not to be changed.
    """
    if mode not in (None, "train", "eval"):
        raise InputError(f"mode must be 'train' or 'eval', but got {mode!r}")
    # Tensors are remembered by slot, memory and content: a forward pass may fill a buffer, or put another in its place.
    slots = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    tensors = [(t, t.detach(), t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    gradients = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        devices = {t.device for t, *_ in tensors if t.is_cuda}
        with torch.random.fork_rng(devices), NoDropout(), torch.enable_grad():
            if mode is not None:
                model.train(mode == "train")
            for module in model.modules():
                if isinstance(module, nn.RNNBase) and module.dropout:
                    module.training = False  # its dropout happens inside one call
            for p in model.parameters():
                p.grad = None
            yield {tensor: content for tensor, _, content in tensors}
    finally:
        for module, training, parameters, buffers in slots:
            module.training = training
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, memory, content in tensors:
            _restore(tensor, memory, content)
        for p, gradient, needed in gradients:
            p.grad = gradient
            p.requires_grad_(needed)


@torch.no_grad()
def _restore(tensor: Tensor, memory: Tensor, content: Tensor) -> None:
    """Put a tensor back in its memory, which others may share, and its bits with it; what is as it was is not written
    to."""
    if (tensor.data_ptr(), tensor.dtype, tensor.shape) != (memory.data_ptr(), memory.dtype, memory.shape):
        tensor.data = memory
    if not torch.equal(_bits(tensor), _bits(content)):
        tensor.copy_(content)


def _bits(tensor: Tensor) -> Tensor:
    """As whole numbers, of which -0.0 and 0.0 are different ones and NaN equals itself."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
    return tensor.detach().flatten().contiguous().view(whole)
