"""Pruning at initialisation where nets are deep or large: finite scores, and bounded memory in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tombola as tb
from tombola.tasks.models import resnet

GIB = 1 << 20  # in KiB, which getrusage counts in on Linux


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def large() -> nn.Module:
    """An MLP of 100.7 million prunable weights."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise((3072, 8192, 8192, 1024, 10)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_synflow_scores_resnet_110_without_overflow() -> None:
    torch.manual_seed(0)
    model = resnet(110)
    scores = tb.score(model, "synflow", [torch.empty(1, 3, 32, 32)])
    assert all(bool(s.isfinite().all()) and bool((s > 0).any()) for s in scores.values())
    # Far beyond float32: the flow through a layer is the sum of its scores.
    assert max(float(s.sum()) for s in scores.values()) > torch.finfo(torch.float32).max


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units elsewhere")
@pytest.mark.parametrize(("by", "rounds"), [("snip", 1), ("grasp", 1), ("synflow", 5)])
def test_100_million_weights_are_pruned_in_8_gib(by: str, rounds: int) -> None:
    program = f"import test_at_init_large as t; t.pruned_in_this_process({by!r}, {rounds})"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=__file__.rpartition("/")[0])


def pruned_in_this_process(by: str, rounds: int) -> None:
    """Prune the large net to 5 % and end with an ``AssertionError`` where it took too much memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = large()
    batch = torch.randn(100, 3, 32, 32), torch.arange(100) % 10
    mask = tb.prune_at_init(model, by, 0.05, [batch], loss, rounds=rounds)
    assert mask.total > 100_000_000
    assert mask.kept == round(0.05 * mask.total)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 * GIB
