"""What a criterion sees, the registry of criteria, and ``score``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tombola.errors import InputError, suggestion
from tombola.mask import Mask, prunable

Scores = dict[str, Tensor]
Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Weights:
    """What a criterion may look at. Tensors are detached views: don't change them in place.

    ``model`` is the network itself, in the module mode asked for; ``final`` its prunable weights; ``batches`` and
    ``loss`` are the data and objective for criteria that need gradients; ``generator`` is a stream of its own for those
    that draw at random.
    """

    model: nn.Module
    final: dict[str, Tensor]
    mask: Mask | None = None
    batches: Iterable[Any] | None = None
    loss: Loss | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    start: Mapping[str, Tensor] | None = None

    @property
    def initial(self) -> dict[str, Tensor]:
        """The prunable weights at initialisation. ``InputError`` where the caller gave none."""
        if self.start is None:
            raise InputError("this criterion compares with the initial weights: pass initial=, a state_dict of them")
        missing = [name for name in self.final if name not in self.start]
        if missing:
            raise InputError(f"initial= lacks the weights of {missing[0]!r}")
        return {name: self.start[name].detach() for name in self.final}


Criterion = Callable[[Weights], Scores]
CRITERIA: dict[str, Criterion] = {}


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
        return spec
    if spec in CRITERIA:
        return CRITERIA[spec]
    module, colon, name = spec.partition(":")
    if not colon:
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
    return found  # type: ignore[no-any-return]


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
        Any ``nn.Module``.
    by
        A criterion's name, ``"package.module:function"``, or a function of ``Weights``.
    batches, loss
        Data, and ``loss(model, batch)``, for criteria that need gradients.
    mask
        The entries in question: parameters that it doesn't cover are not scored. Default: every prunable parameter.
    mode
        ``"train"`` or ``"eval"``, the module mode while scoring; default: as the model stands.
    initial
        A state_dict of the initial weights, for criteria that compare with them.
    generator
        For criteria that draw at random; default: a generator with torch's default seed, so the same draw every time.

    Returns a dict of tensors of the parameters' shapes, on the CPU, float32 or float64. Raises ``InputError`` for an
    unknown criterion or mode, a criterion that returns the wrong shapes, and scores that are NaN.
    """
    if mode not in (None, "train", "eval"):
        raise InputError(f"mode must be 'train' or 'eval', but got {mode!r}")
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
    with _Untouched(model, mode):
        scores = function(weights)
    return _checked(scores, weights, by)


def _checked(scores: Mapping[str, Tensor], weights: Weights, by: str | Criterion) -> Scores:
    label = by if isinstance(by, str) else getattr(by, "__qualname__", repr(by))
    checked = {}
    for name, weight in weights.final.items():
        if name not in scores or scores[name].shape != weight.shape:
            got = tuple(scores[name].shape) if name in scores else "nothing"
            raise InputError(
                f"the criterion {label!r} must give {name!r} scores of shape {tuple(weight.shape)}, but gave {got}"
            )
        value = scores[name].detach().to("cpu")
        checked[name] = value.clone() if value.dtype == torch.float64 else value.to(torch.float32, copy=True)
        if bool(torch.isnan(checked[name]).any()):
            raise InputError(f"the criterion {label!r} scored some of {name!r} NaN: are the weights finite?")
    return checked


class _Untouched:
    """Give the model back as it was: training flags, parameters, buffers, gradients, global random state."""

    def __init__(self, model: nn.Module, mode: str | None) -> None:
        self.model, self.mode = model, mode

    def __enter__(self) -> None:
        self.flags = {module: module.training for module in self.model.modules()}
        self.tensors = {t: t.detach().clone() for t in (*self.model.parameters(), *self.model.buffers())}
        self.grads = {p: (p.grad, None if p.grad is None else p.grad.clone()) for p in self.model.parameters()}
        self.needs = {p: p.requires_grad for p in self.model.parameters()}
        self.rng = torch.get_rng_state()
        if self.mode is not None:
            self.model.train(self.mode == "train")
        for p in self.model.parameters():
            p.grad = None

    def __exit__(self, *error: object) -> None:
        for module, flag in self.flags.items():
            module.training = flag
        with torch.no_grad():
            for tensor, before in self.tensors.items():
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
        for p, (grad, values) in self.grads.items():
            if grad is not None and values is not None:
                grad.copy_(values)
            p.grad = grad
            p.requires_grad_(self.needs[p])
        torch.set_rng_state(self.rng)
