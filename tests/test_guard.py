"""The guard: invariant 1 under every optimiser of torch; kept weights train as by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from guarded import assert_zeros, backward, batches, bits, by_hand, first_weight, half, loss_of, net, same_bits, train
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tombola.errors import InputError
from tombola.guarding import guard
from tombola.mask import Mask

Make = Callable[[Iterator[nn.Parameter]], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "foreach": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1, weight_decay=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.01),
    "rprop": lambda p: torch.optim.Rprop(p),
    "asgd": lambda p: torch.optim.ASGD(p, weight_decay=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, weight_decay=0.01),
}


# Invariant 1.


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("clip", [False, True], ids=["plain", "clipped"])
def test_pruned_weights_stay_zero_and_kept_ones_train_as_by_hand(name: str, clip: bool) -> None:
    guarded, plain = net(), net()
    mask = half(guarded)
    optimizers = [OPTIMIZERS[name](model.parameters()) for model in (guarded, plain)]
    mask.apply_(plain)
    clear = by_hand(plain, mask)

    def clip_guarded() -> None:
        if clip:
            nn.utils.clip_grad_norm_(guarded.parameters(), 0.1)

    def clear_and_clip_plain() -> None:
        clear()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)

    with guard(guarded, optimizers[0], mask):
        assert_zeros(guarded, mask)
        for step in range(6):
            train(guarded, optimizers[0], 1, clip_guarded, seed=step)
            assert_zeros(guarded, mask)
            train(plain, optimizers[1], 1, clear_and_clip_plain, seed=step)
            mask.apply_(plain)  # for optimisers that move weights without a gradient
            assert same_bits(guarded, plain)
    start = mask.parameters(net())
    for n, p in mask.parameters(guarded).items():  # what is kept trained, whatever its sign
        moved = (start[n] != p)[mask[n]]
        assert float(moved.float().mean()) > 0.9


def test_negative_weights_train_and_may_change_their_sign() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[-1.0, -0.1, -2.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    with guard(layer, optimizer, Mask({"weight": torch.tensor([[True, True, False]])})):
        layer(torch.tensor([[-1.0, -1.0, -1.0]])).sum().backward()
        optimizer.step()
    assert layer.weight.tolist() == [[-0.5, pytest.approx(0.4), 0.0]]


def test_gradients_of_pruned_weights_are_zero_before_the_step() -> None:
    model = net()
    mask = half(model)
    with guard(model, torch.optim.SGD(model.parameters(), lr=0.1), mask):
        for batch in batches(2):  # accumulated over two backward passes
            backward(model, batch)
            for name, p in mask.parameters(model).items():
                assert p.grad is not None
                assert not bits(p.grad)[~mask[name]].any()
                assert bool((p.grad[mask[name]] != 0).any())


def test_gradients_of_layers_kept_whole_are_left_alone() -> None:
    guarded, plain = net(), net()
    mask = half(guarded)
    mask.apply_(plain)
    batch = next(batches(1))
    with guard(guarded, torch.optim.SGD(guarded.parameters(), lr=0.1), mask):
        for model in (guarded, plain):
            backward(model, batch)
    for name in ("0.bias", "1.weight", "4.weight", "4.bias"):
        own, other = (dict(model.named_parameters())[name].grad for model in (guarded, plain))
        assert own is not None
        assert other is not None
        assert torch.equal(own, other)


@pytest.mark.parametrize("found_inf", [False, True])
def test_loss_scaling(found_inf: bool) -> None:
    guarded, plain = net(), net()
    mask = half(guarded)
    mask.apply_(plain)
    clear = by_hand(plain, mask)
    finals = []
    for model in (guarded, plain):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**40 if found_inf else 2.0**10)
        guarding = guard(model, optimizer, mask) if model is guarded else None
        for batch in batches(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, batch)
            scaler.scale(loss * (1e30 if found_inf else 1.0)).backward()  # type: ignore[no-untyped-call]
            if model is plain:
                clear()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert_zeros(model, mask)
        if guarding is not None:
            guarding.remove()
        finals.append(scaler.get_scale())
    assert finals[0] == finals[1]
    assert same_bits(guarded, plain)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_with_its_closure(line_search: str | None) -> None:
    guarded, plain = net(), net()
    mask = half(guarded)
    mask.apply_(plain)
    clear = by_hand(plain, mask)
    batch = next(batches(1))
    for model in (guarded, plain):
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5, line_search_fn=line_search)

        def closure(model: nn.Module = model, optimizer: Optimizer = optimizer) -> float:
            assert_zeros(model, mask)  # also in between
            optimizer.zero_grad()
            loss = backward(model, batch)
            if model is plain:
                clear()
            return loss

        guarding = guard(model, optimizer, mask) if model is guarded else None
        first = closure()
        for _ in range(3):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            assert_zeros(model, mask)
        assert closure() < first
        if guarding is not None:
            guarding.remove()
    assert same_bits(guarded, plain)


def test_lbfgs_that_remembers_other_weights_is_refused() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        return backward(model, next(batches(1)))

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with pytest.raises(
        InputError, match="LBFGS remembers all weights as one vector, the pruned ones included: guard it"
    ):
        guard(model, optimizer, half(model))


# What the optimiser remembers.


@pytest.mark.parametrize("name", ["momentum", "adam", "amsgrad", "rmsprop", "adagrad"])
def test_what_the_optimizer_remembers_of_pruned_weights_is_cleared_on_entry(name: str) -> None:
    model = net()
    mask, optimizer = half(model), OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    remembered = {id(p): copy.deepcopy(optimizer.state[p]) for p in model.parameters()}
    backward(model, next(batches(1)))
    guard(model, optimizer, mask).remove()
    assert_zeros(model, mask)
    cleared = 0
    for n, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            before = remembered[id(p)][key]
            if isinstance(value, Tensor) and value.dim() and n in mask:
                assert not bits(value)[~mask[n]].any()
                assert torch.equal(value[mask[n]], before[mask[n]])
                cleared += int((before[~mask[n]] != 0).sum())
            else:
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(before))
        if n in mask:
            assert p.grad is not None
            assert not bits(p.grad)[~mask[n]].any()
    assert cleared > 0


def test_moments_restored_from_a_checkpoint_move_no_pruned_weight() -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    with guard(model, optimizer, mask):
        train(model, optimizer, 1)
        optimizer.load_state_dict(checkpoint)
        assert optimizer.state[first_weight(model)]["exp_avg"][~mask["0.weight"]].abs().max() > 0
        for step in range(3):
            train(model, optimizer, 1, seed=step)
            assert_zeros(model, mask)


def test_averaged_weights_stay_zero() -> None:
    model = net()
    mask, optimizer = half(model), torch.optim.AdamW(model.parameters(), lr=0.01)
    with guard(model, optimizer, mask):
        averages = [
            AveragedModel(model),
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),  # type: ignore[no-untyped-call]
        ]
        for step in range(4):
            train(model, optimizer, 1, seed=step)
            for average in averages:
                average.update_parameters(model)
                assert_zeros(average.module, mask)
