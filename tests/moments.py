"""What a rule sees, made by hand or at random, for the tests of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tombola.mask import Mask
from tombola.updates.base import Change, Moment


def moment_of(weights: Mapping[str, Tensor], mask: Mask, **changes: Any) -> Moment:
    """Step 100 of 1,000; gradients that must not be asked for, unless they are given."""
    gradients: Mapping[str, Tensor] | None = changes.pop("gradients", None)

    def take() -> Mapping[str, Tensor]:
        assert gradients is not None, "this rule has no need of gradients"
        return gradients

    fields: dict[str, Any] = {
        "step": 100,
        "steps": 1000,
        "every": 100,
        "until": 750,
        "rate": 0.1,
        "generator": torch.Generator().manual_seed(changes.pop("seed", 0)),
        "memory": {},
    }
    return Moment(mask=mask, weights=weights, gradients=take, **(fields | changes))


def kept(*entries: float) -> Tensor:
    return torch.tensor(entries) != 0


def after(moment: Moment, change: Change) -> dict[str, Tensor]:
    """The weights once the change is made."""
    now = {name: change.values.get(name, value) for name, value in moment.weights.items()}
    return {name: value * change.mask[name] for name, value in now.items()}


@st.composite
def moments(draw: st.DrawFn, /, **changes: Any) -> Moment:
    """Up to four layers, any of which may be empty of kept entries or full; weights and gradients with ties and 0."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = draw(st.lists(st.sampled_from([(1,), (3, 4), (20,), (2, 3, 3, 3), (7, 9), (0,)]), min_size=1, max_size=4))
    weights, masks, gradients = {}, {}, {}
    for number, shape in enumerate(shapes):
        name = f"layer{number}.weight"
        masks[name] = torch.rand(shape, generator=g) < draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 0.95, 1.0]))
        steps = draw(st.sampled_from([1, 4, 10_000]))
        weights[name] = (torch.randn(shape, generator=g) * steps).round() / steps * masks[name]
        gradients[name] = (torch.randn(shape, generator=g) * steps).round() / steps
    step = draw(st.sampled_from([0, 100, 300, 700]))
    return moment_of(weights, Mask(masks), **({"gradients": gradients, "step": step} | changes))
