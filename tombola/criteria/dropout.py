"""Dropout switched off, wherever in a net it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_DROPOUTS: frozenset[Callable[..., Any]] = frozenset(
    (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
) | frozenset(
    getattr(torch, kind + ending)
    for kind in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
    for ending in ("", "_")
)
_INSIDE = frozenset((F.multi_head_attention_forward, F.scaled_dot_product_attention))
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p")


class NoDropout(TorchFunctionMode):
    """While it is entered, functional dropout hands its input on and attention drops nothing.

    Training flags can't do this: a mode for batch normalisation is asked for by the same flag, and a net of one's own
    may call dropout whatever its flag says.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out a function of torch, without its dropout."""
        given = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else given["input"]
        if func in _INSIDE:
            args, given = _without(func, args, given)
        return func(*args, **given)


def _without(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of an attention with its dropout at 0."""
    try:
        names = list(inspect.signature(func).parameters)
    except ValueError:  # a built-in, which doesn't tell
        names = list(_ATTENTION)
    place = names.index("dropout_p")
    if len(args) > place:
        return (*args[:place], 0.0, *args[place + 1 :]), given
    return args, {**given, "dropout_p": 0.0}
