"""A net compiled for inference gives what the masked model gives in evaluation mode, and takes nothing else."""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
from compiled_nets import (
    CLASSES,
    NETS,
    batch,
    close,
    mask_of,
    mixed,
    mlp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tombola.engines.sparse.modules import compile
from tombola.engines.tracing import UnsupportedError
from tombola.errors import InputError, TombolaError


@pytest.mark.parametrize("name", ["mlp", "normed", "convolutional", "residual"])
def test_inference_is_the_masked_models(name: str) -> None:
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    model = make()
    for _ in range(3):
        model(batch(name, 50)[0])  # running statistics
    mask = mask_of(model, 0.15)
    run = compile(model, mask, torch.zeros(2, *shape), inference=True)
    mask.apply_(model.eval())
    whole = run(batch(name, 130)[0])
    for examples in (0, 1, 7, 64, 65, 130):
        x = batch(name, 130)[0][:examples]
        with torch.no_grad():
            wanted = model(x)
        ours = run(x)
        close(ours, wanted, 1e-4)
        assert examples == 1 or torch.equal(ours, whole[:examples])
        assert not ours.requires_grad
        assert np.array_equal(run(x.numpy()), ours.numpy())
    spread = np.repeat(x.numpy(), 2, axis=-1)[..., ::2]
    assert not spread.flags.c_contiguous
    assert np.array_equal(run(spread), whole.numpy())


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_inference_of_one_example_is_that_of_many(seed: int, density: float) -> None:
    """Chains of convolutions with kernels for a single example, any padding, dilation, width and dead channels."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    side, channels, layers = draw.randint(6, 20), draw.randint(1, 3), list[nn.Module]()
    shape = (channels, side, draw.randint(6, 20))
    for _ in range(draw.randint(1, 3)):
        wider, kernel = draw.randint(1, 6), draw.choice([1, 2, 3])
        padding: Any = draw.choice([0, 1, "same"])
        layers.append(nn.Conv2d(channels, wider, kernel, padding=padding, dilation=draw.choice([1, 1, 2])))
        layers += [nn.ReLU()] * draw.randint(0, 1) + [nn.MaxPool2d(2, draw.choice([1, 2]))] * draw.randint(0, 1)
        channels = wider
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))
    x = torch.randn(2, *shape)
    try:
        model(x)
    except RuntimeError:  # the images became too small for another layer
        return
    mask = mask_of(model, density)
    run = compile(model, mask, x, inference=True)
    mask.apply_(model)
    close(run(x[:1]), model(x[:1]).detach())
    close(run(x), model(x).detach())


def test_inference_drops_dropout_and_can_be_shared_by_threads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, CLASSES))
    mask = mask_of(model)
    run = compile(model, mask, torch.zeros(1, 12), inference=True)
    mask.apply_(model.eval())
    close(run(batch("mlp", 8)[0]), model(batch("mlp", 8)[0]).detach())
    inputs = [batch("mlp", 1 + n, n)[0].numpy() for n in range(4)]
    wanted = [run(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(1 for _ in range(200) if not np.array_equal(run(inputs[number]), wanted[number]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inference_says_what_it_cannot_do() -> None:
    model = mixed()
    with pytest.raises(UnsupportedError, match=r"inference: operation GELU \(_1\); operation LayerNorm \(_3\)"):
        compile(model, mask_of(model), torch.zeros(1, 12), inference=True)
    images = nn.Sequential(nn.Conv2d(2, 3, 3))
    with pytest.raises(UnsupportedError, match="one tensor of shape"):
        compile(images, mask_of(images), torch.zeros(1, 2, 5, 5), inference=True)
    run = compile(mlp(), mask_of(mlp()), torch.zeros(1, 12), inference=True)
    for wrong in (np.zeros((2, 12)), np.zeros((2, 11), np.float32), torch.zeros(2, 12).double(), [[0.0] * 12]):
        with pytest.raises(InputError, match=r"takes float32 batches of shape \(N, 12\) on the CPU, but got"):
            run(wrong)  # type: ignore[type-var]
    with pytest.raises(TombolaError, match="can't be pickled or copied"):
        copy.deepcopy(run)
