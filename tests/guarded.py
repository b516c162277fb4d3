"""A small net, its mask and its training, for the tests of the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from tombola.mask import Mask, prunable


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def half(model: nn.Module, seed: int = 1) -> Mask:
    """Half of the first layer, a quarter of the second, all of the last."""
    g = torch.Generator().manual_seed(seed)
    density = {"0.weight": 0.5, "3.weight": 0.25, "4.weight": 1.1}
    return Mask({n: torch.rand(p.shape, generator=g) < density[n] for n, p in prunable(model).items()})


def batches(n: int, seed: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x = torch.randn(10, 6, generator=g)
        yield x, (x @ torch.linspace(-1, 1, 18).reshape(6, 3)).argmax(dim=1)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


def first_weight(model: nn.Module) -> nn.Parameter:
    return dict(model.named_parameters())["0.weight"]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32)


def assert_zeros(model: nn.Module, mask: Mask) -> None:
    for name, p in mask.parameters(model).items():
        assert not bits(p)[~mask[name]].any(), name


def train(
    model: nn.Module, optimizer: Optimizer, steps: int, before_step: Callable[[], None] = lambda: None, **options: Any
) -> None:
    for batch in batches(steps, **options):
        optimizer.zero_grad()
        backward(model, batch)
        before_step()
        optimizer.step()


def by_hand(model: nn.Module, mask: Mask) -> Callable[[], None]:
    """Zero the gradients of pruned weights."""

    def clear() -> None:
        for name, p in mask.parameters(model).items():
            assert p.grad is not None
            p.grad[~mask[name]] = 0.0

    return clear


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(bits(p), bits(q)) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def zero_gradients(model: nn.Module, mask: Mask) -> Callable[[], None]:
    def check() -> None:
        for name, p in mask.parameters(model).items():
            assert p.grad is not None
            assert not bits(p.grad)[~mask[name]].any()

    return check
