"""The criteria of Zhou et al. (2019), "Deconstructing Lottery Tickets", section 3: functions of initial and final
weight.

Each compares a weight's value before training (``w_i``) with the one after (``w_f``). ``large_final`` is ``magnitude``
under that paper's name; ``large_init_large_final`` and ``small_init_small_final`` have the paper's factor alpha at 1.
The same-sign and diff-sign criteria score 0 wherever the sign is the other way round, as the authors' code does; with
``magnitude_increase`` such an entry ranks above one that shrank. Where a criterion gives many entries the same score,
ties fall by the rule of ``prune``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tombola.criteria.base import CRITERIA, Criterion, Scores, Weights

_PER_ENTRY: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "large_final": ("``|w_f|``: magnitude, under the paper's name.", lambda i, f: f.abs()),
    "small_final": ("``-|w_f|``.", lambda i, f: -f.abs()),
    "large_init": ("``|w_i|``.", lambda i, f: i.abs()),
    "small_init": ("``-|w_i|``.", lambda i, f: -i.abs()),
    "large_init_large_final": (
        "``min(alpha |w_f|, |w_i|)`` with alpha 1.",
        lambda i, f: torch.minimum(f.abs(), i.abs()),
    ),
    "small_init_small_final": (
        "``-max(alpha |w_f|, |w_i|)`` with alpha 1.",
        lambda i, f: -torch.maximum(f.abs(), i.abs()),
    ),
    "magnitude_increase": ("``|w_f| - |w_i|``.", lambda i, f: f.abs() - i.abs()),
    "movement": ("``|w_f - w_i|``.", lambda i, f: (f - i).abs()),
    "large_final_same_sign": (
        "``|w_f|`` where the sign stayed, else 0.",
        lambda i, f: f.abs() * (f.sign() == i.sign()),
    ),
    "large_final_diff_sign": (
        "``|w_f|`` where the sign changed, else 0.",
        lambda i, f: f.abs() * (f.sign() != i.sign()),
    ),
    "magnitude_increase_same_sign": (
        "``|w_f| - |w_i|`` where the sign stayed, else 0.",
        lambda i, f: (f.abs() - i.abs()) * (f.sign() == i.sign()),
    ),
    "magnitude_increase_diff_sign": (
        "``|w_f| - |w_i|`` where the sign changed, else 0.",
        lambda i, f: (f.abs() - i.abs()) * (f.sign() != i.sign()),
    ),
}


def _criterion(text: str, per_entry: Callable[[Tensor, Tensor], Tensor]) -> Criterion:
    def scores(weights: Weights) -> Scores:
        initial = weights.initial
        return {name: per_entry(initial[name].to(w.device), w) for name, w in weights.final.items()}

    scores.__doc__ = text
    return scores


CRITERIA.update({name: _criterion(text, per_entry) for name, (text, per_entry) in _PER_ENTRY.items()})
