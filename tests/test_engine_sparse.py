"""The sparse engine is the masked engine: losses, states, resuming, evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_mask
from sparse_nets import Kinks, sparse_net, sparse_task
from torch import Tensor

from tombola.engines.compact import CompactSession
from tombola.engines.masked import MaskedSession
from tombola.engines.sparse.session import SparseSession
from tombola.tasks.task import examples

# A large eps: Adam divides by the size of a gradient, and would make a step of the rounding of a gradient of 0.
RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.05},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "lr_schedule": "steps", "milestones": ("2it",)},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-2},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.01, "betas": (0.4, 0.9)},
    {"optimizer": "adamw", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.1, "lr_schedule": "cosine", "warmup": "2it"},
]
SIZES = st.sampled_from([(40, 16), (37, 12), (10, 30), (70, 64), (33, 16), (90, 70)])
"""Examples and batch: with remainders of several sizes, a batch larger than the data, a lone example left over."""


def assert_near(found: dict[str, Tensor], exact: dict[str, Tensor], kept: dict[str, Any]) -> None:
    """Equal states to the rounding of float32, but for the running statistics of channels that were dropped."""
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        other, buffer = found[name], name.removeprefix("model.")
        assert other.shape == value.shape
        if "running_" in name and kept[buffer][0] is not None:
            value, other = value[kept[buffer][0]], other[kept[buffer][0]]
        torch.testing.assert_close(
            other.double(), value.double(), rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}"
        )


@given(st.integers(0, 2**31), SIZES, st.sampled_from(RECIPES))
@settings(max_examples=60, deadline=None)
def test_every_step_on_every_engine_is_that_of_float64(
    seed: int, sizes: tuple[int, int], recipe: dict[str, Any]
) -> None:
    """Step by step from the same state, whichever engine it comes from: over many steps the kink of a single ReLU
    would part any two of them."""
    net, shape = sparse_net(seed)
    mask = random_mask(net, seed)
    task = sparse_task(net, shape, seed, sizes[0], recipe | {"batch": sizes[1]})
    x, y = task.train
    args = (mask, task, examples((x, y)), task.recipe, seed)
    reference = MaskedSession(sparse_net(seed)[0].double(), mask, task, examples((x.double(), y)), task.recipe, seed)
    compact = CompactSession(sparse_net(seed)[0], *args)
    sessions = [SparseSession(net, *args), MaskedSession(sparse_net(seed)[0], *args), compact]
    for step in range(5):
        state = sessions[step % 3].state()
        reference.load({n: v.double() if v.is_floating_point() else v for n, v in state.items()})
        with Kinks() as kinks:
            loss = reference.stretch(1)
        exact = reference.state()
        for session in sessions:
            session.load(state)
            found = session.stretch(1)
            if kinks.margin > 2e-6:
                assert found == pytest.approx(loss, rel=1e-5, abs=1e-6), type(session)
                assert_near(session.state(), exact, compact._compaction.kept)
