"""The guard on models of all kinds: what it leaves alone, what it ends with, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from guarded import assert_zeros, bits, first_weight, half, net, same_bits, train, zero_gradients
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.optimizer import Optimizer

from tombola.errors import InputError
from tombola.guarding import Guard, guard
from tombola.mask import Mask

# What it leaves alone.


def test_names_state_and_copies_are_those_of_the_bare_model(tmp_path: Path) -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.Adam(model.parameters(), lr=0.01)
    names, keys, modules = [n for n, _ in model.named_parameters()], list(model.state_dict()), list(model.modules())
    with guard(model, optimizer, mask):
        train(model, optimizer, 2)
        assert [n for n, _ in model.named_parameters()] == names
        assert list(model.state_dict()) == keys
        assert list(model.modules()) == modules
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        twin, (twin_model, twin_optimizer) = copy.deepcopy(model), copy.deepcopy((model, optimizer))
    loaded = net(5)
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert same_bits(loaded, model)
    assert same_bits(twin, model)
    # Copies are not guarded: nothing holds their pruned weights at zero.
    assert twin_optimizer.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    train(twin_model, twin_optimizer, 1)
    assert bits(first_weight(twin_model))[~mask["0.weight"]].any()
    assert_zeros(model, mask)


def test_after_removal_pruned_weights_train_again() -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.SGD(model.parameters(), lr=0.1)
    guarding = guard(model, optimizer, mask)
    assert isinstance(guarding, Guard)
    assert guarding.mask is mask
    train(model, optimizer, 1)
    guarding.remove()
    guarding.remove()
    assert_zeros(model, mask)
    train(model, optimizer, 1)
    assert bits(first_weight(model))[~mask["0.weight"]].any()


def test_an_exception_inside_ends_the_guard() -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="stop"), guard(model, optimizer, mask):
        raise RuntimeError("stop")
    train(model, optimizer, 1)
    assert bits(first_weight(model))[~mask["0.weight"]].any()


def test_two_guards_hold_both_their_masks() -> None:
    model = net()
    first, second = half(model, 1), half(model, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with guard(model, optimizer, first):
        with guard(model, optimizer, second):
            train(model, optimizer, 2)
            assert_zeros(model, first)
            assert_zeros(model, second)
        train(model, optimizer, 2)
        assert_zeros(model, first)
        assert bits(first_weight(model))[first["0.weight"] & ~second["0.weight"]].any()


# Parameters of other kinds.


def test_frozen_parameters_are_guarded_and_may_be_unfrozen() -> None:
    model = net()
    mask = half(model)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    with guard(model, optimizer, mask):
        assert not first_weight(model).requires_grad
        train(model, optimizer, 1)
        assert_zeros(model, mask)
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        before = first_weight(model).detach().clone()
        train(model, optimizer, 2, zero_gradients(model, mask))
        assert_zeros(model, mask)
        assert bool((first_weight(model) != before).any())


def test_parameters_that_get_no_gradient_stay_zero() -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    with guard(model, optimizer, mask):
        model.get_submodule("4").weight.sum().backward()  # type: ignore[operator]
        optimizer.step()
        assert first_weight(model).grad is None
        assert_zeros(model, mask)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SparseAdam(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)])
def test_sparse_gradients(make: Callable[[Any], Optimizer]) -> None:
    torch.manual_seed(0)
    words = nn.Embedding(6, 4, sparse=True)
    start = words.weight.detach().clone()
    mask = Mask({"weight": torch.rand(6, 4) < 0.5})
    optimizer = make(list(words.parameters()))
    with guard(words, optimizer, mask):
        for _ in range(3):
            optimizer.zero_grad()
            words(torch.tensor([0, 2, 2, 5])).square().sum().backward()
            assert words.weight.grad is not None
            assert words.weight.grad.is_sparse
            assert not words.weight.grad.to_dense()[~mask["weight"]].any()
            optimizer.step()
            assert_zeros(words, mask)
    used = mask["weight"] & torch.tensor([1, 0, 1, 0, 0, 1]).bool()[:, None]
    assert bool((words.weight != start)[used].all())


def test_a_weight_shared_by_two_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = first_weight(model)
    mask = Mask({"0.weight": torch.rand(4, 4) < 0.5})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with guard(model, optimizer, mask):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().sum().backward()
            optimizer.step()
            assert_zeros(model, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4, dtype=dtype)
    mask = Mask({"weight": torch.eye(4, dtype=torch.bool)})
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    with guard(layer, optimizer, mask):
        layer(torch.randn(3, 4, dtype=dtype)).square().sum().backward()
        optimizer.step()
    assert not layer.weight.detach()[~mask["weight"]].any()
    assert layer.weight.detach().diag().all()


# What is refused.


def test_a_mask_of_another_model_and_an_optimizer_of_other_parameters_are_refused() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    mask = half(model)
    with pytest.raises(
        InputError, match=r"the optimizer doesn't train '0\.weight', which the mask covers: build it from"
    ):
        guard(model, torch.optim.SGD(net().parameters(), lr=0.1), mask)
    with pytest.raises(InputError, match=r"the mask covers '9\.weight', which the model doesn't have"):
        guard(model, torch.optim.SGD(model.parameters(), lr=0.1), Mask({"9.weight": mask["0.weight"]}))
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in before)
