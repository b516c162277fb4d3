"""Magnitude and random: the criterion of the lottery ticket papers, and its null baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from tombola.criteria.base import Scores, Weights, register


@register("magnitude")
def magnitude(weights: Weights) -> Scores:
    """``|w|``: of trained weights, the criterion of Han et al. (2015) and Frankle & Carbin (2019)."""
    return {name: w.abs() for name, w in weights.final.items()}


@register("scaled_magnitude")
def scaled_magnitude(weights: Weights) -> Scores:
    """``|w|`` over the standard deviation of the layer's kept weights (Han et al. 2015, section 3.1).

    In one ranking over all layers that is a threshold of so many standard deviations, the same number in each. 0 where
    all weights of a layer are equal.
    """
    kept = {n: w if weights.mask is None else w[weights.mask[n].to(w.device)] for n, w in weights.final.items()}
    return {n: w.abs() / s if (s := _deviation(kept[n])) else torch.zeros_like(w) for n, w in weights.final.items()}


def _deviation(values: Tensor) -> Tensor:
    """The standard deviation of all of them (not of a sample); 0 of none."""
    return values.std(correction=0) if values.numel() else values.new_zeros(())


@register("random")
def random(weights: Weights) -> Scores:
    """Uniform random scores from ``weights.generator``."""
    return {name: torch.rand(w.shape, generator=weights.generator) for name, w in weights.final.items()}
