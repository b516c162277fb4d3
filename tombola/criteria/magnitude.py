"""Magnitude and random: the criterion of the lottery ticket papers, and its null baseline."""

from __future__ import annotations

import torch

from tombola.criteria.base import Scores, Weights, register


@register("magnitude")
def magnitude(weights: Weights) -> Scores:
    """``|w|``: of trained weights, the criterion of Han et al. (2015) and Frankle & Carbin (2019)."""
    return {name: w.abs() for name, w in weights.final.items()}


@register("random")
def random(weights: Weights) -> Scores:
    """Uniform random scores from ``weights.generator``."""
    return {name: torch.rand(w.shape, generator=weights.generator) for name, w in weights.final.items()}
