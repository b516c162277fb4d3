"""Top eigenvalues of the Hessian: closed forms, the full Hessian, and what is done to the net meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from toy import same, toy_data, toy_net, toy_task

import tombola as tb
from tombola.diagnostics.curvature import Eigenvalues, curvature_rows, top_eigenvalues
from tombola.diagnostics.trajectory import fixed_batches, states
from tombola.errors import InputError
from tombola.events import Event
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks import cross_entropy


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues."""
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed)).double())
    return turn @ values.double().diag() @ turn.T


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_matrix(matrix: Tensor, count: int = 1, **settings: Any) -> Eigenvalues:
    """Of the loss ``w A w / 2``, whose Hessian is the matrix."""
    net = nn.Linear(len(matrix), 1, bias=False).to(matrix.dtype)
    loss = lambda model, batch: 0.5 * (model.weight @ batch[0] @ model.weight.T).squeeze()  # noqa: E731
    return top_eigenvalues(net, [(matrix,)], loss, count=count, **settings)


def test_the_hessian_of_a_quadratic_loss_is_its_matrix() -> None:
    matrix = symmetric(torch.tensor([5.0, -9.0, 3.0, 0.0, 2.5, -1.0]))
    found = of_matrix(matrix, 4, tolerance=1e-10)
    assert found.values == pytest.approx((5, 3, 2.5, 0), abs=1e-8)  # the most positive, not the largest in size
    assert found.converged
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(4).double())
    torch.testing.assert_close(found.vectors @ matrix, found.vectors * torch.tensor(found.values).double()[:, None])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 1000))
def test_eigenvalues_of_any_symmetric_matrix_with_their_multiplicities(
    values: list[int], count: int, seed: int
) -> None:
    count = min(count, len(values))
    found = of_matrix(symmetric(torch.tensor(values), seed), count, tolerance=1e-9, generator=generator(seed))
    exact = sorted(values, reverse=True)[:count]
    assert found.values == pytest.approx(exact, abs=1e-6)
    assert max(found.residuals) < 1e-6


def test_a_small_eigenvalue_is_found_beside_a_large_negative_one() -> None:
    found = of_matrix(symmetric(torch.cat([torch.linspace(-1, 0.1, 60), torch.tensor([-1e4, 0.2])])), tolerance=1e-3)
    assert found.converged
    assert found.values == pytest.approx((0.2,), abs=2e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_restarts_find_eigenvalues_that_lie_close_together(count: int) -> None:
    values = torch.linspace(-1, 3, 300)
    found = of_matrix(symmetric(values), count, tolerance=1e-8, most=2000)
    assert found.products > 24 * count + count  # more than a basis holds
    assert found.values == pytest.approx(values.flip(0)[:count].tolist(), abs=1e-6)


def test_linear_regression_has_the_eigenvalues_of_the_mean_square_of_its_inputs() -> None:
    x = torch.randn(50, 8, generator=generator(1)).double() * torch.arange(1, 9)
    net = nn.Linear(8, 1).double()
    loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    batches = [(part, torch.zeros(len(part), 1).double()) for part in x.split([7, 40, 3])]
    found = top_eigenvalues(net, batches, loss, count=8, tolerance=1e-10)
    exact = torch.linalg.eigvalsh(x.T @ x / 50).flip(0)
    assert found.values == pytest.approx(exact.tolist(), rel=1e-9)
    assert found.loss == pytest.approx(float(loss(net, (x, torch.zeros(50, 1).double())).detach()))


def mlp() -> tuple[nn.Sequential, Mask, tuple[Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    mask = tb.prune({n: torch.rand(p.shape, generator=generator(4)) for n, p in tb.prunable(net).items()}, 0.6)
    x = torch.randn(30, 5, generator=generator(5)).double()
    return net, mask, (x, torch.arange(30) % 3)


def full_hessian(net: nn.Sequential, mask: Mask, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Rows and columns of the kept weights, by torch."""
    own = {n: p.detach() * mask[n] for n, p in tb.prunable(net).items()}
    places = torch.cat([mask[n].flatten() for n in own]).nonzero().flatten()
    net.eval()

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in own.values()])
        values = {n: part.reshape(p.shape) for (n, p), part in zip(own.items(), parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, values, batch[0]), batch[1])

    whole = torch.autograd.functional.hessian(loss, torch.cat([p.flatten() for p in own.values()]))
    net.train()
    return whole[places][:, places]


def test_a_masked_net_has_the_eigenvalues_of_the_kept_rows_and_columns() -> None:
    net, mask, (x, y) = mlp()
    exact = torch.linalg.eigvalsh(full_hessian(net, mask, (x, y))).flip(0)
    found = top_eigenvalues(net, [(x[:4], y[:4]), (x[4:], y[4:])], cross_entropy, mask, 5, tolerance=1e-9)
    assert len(exact) == mask.kept == found.vectors.shape[1]
    assert found.values == pytest.approx(exact[:5].tolist(), abs=1e-8)
    in_float = net.float()
    batches = [(x.float(), y)]
    assert top_eigenvalues(in_float, batches, cross_entropy, mask, 5).values == pytest.approx(found.values, rel=2e-3)


def test_residuals_are_those_of_the_vectors_also_where_it_gives_up() -> None:
    net, mask, batch = mlp()
    exact = full_hessian(net, mask, batch)
    found = top_eigenvalues(net, [batch], cross_entropy, mask, 2, most=3)
    assert not found.converged
    for value, residual, vector in zip(found.values, found.residuals, found.vectors, strict=True):
        assert residual == pytest.approx(float((exact @ vector - value * vector).norm()), abs=1e-9)
        assert float((torch.linalg.eigvalsh(exact) - value).abs().min()) <= residual + 1e-9


def test_the_model_comes_back_bit_for_bit() -> None:
    net = toy_net()
    net[0].weight.requires_grad_(False)
    before = {n: v.clone() for n, v in net.state_dict().items()}
    noise = torch.random.get_rng_state()
    x, y = toy_data(40)
    first = top_eigenvalues(net, [(x, y)], cross_entropy)
    assert same(before, net.state_dict())
    assert torch.equal(noise, torch.random.get_rng_state())
    assert net.training
    assert not net[0].weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert first.values == top_eigenvalues(net, [(x, y)], cross_entropy).values
    assert first.values != top_eigenvalues(net, [(x, y)], cross_entropy, mode="eval").values


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    found = top_eigenvalues(nn.Linear(4, 2), [torch.ones(3, 4)], lambda model, batch: model(batch).mean(), count=2)
    assert found.values == (0, 0)
    assert found.converged


class Once(torch.autograd.Function):
    """A part with a derivative and no second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count must be from 1 to the 8 weights"),
        ({"count": 9}, "count must be from 1 to the 8 weights"),
        ({"batches": []}, "no batches"),
        ({"most": 0}, "most 1 or more"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"mode": "training"}, "mode must be"),
        ({"loss": lambda model, batch: model(batch)}, "must be a scalar"),
        ({"loss": lambda model, batch: Once.apply(model(batch)).square().mean()}, "a part without"),
        ({"loss": lambda model, batch: (model(batch) * float("nan")).square().mean()}, "not finite"),
        ({"mask": Mask({"other": torch.ones(2, dtype=torch.bool)})}, "the mask covers 'other'"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    given = {"batches": [torch.ones(3, 4)], "loss": lambda model, batch: model(batch).square().mean()} | changes
    with pytest.raises(InputError, match=words):
        top_eigenvalues(nn.Linear(4, 2), given.pop("batches"), given.pop("loss"), **given)


def test_rows_follow_a_training_and_a_second_look_trains_nothing(store: tb.Store) -> None:
    events: list[Event] = []
    lab = Lab(toy_task(), store, watcher=events.append)
    run = lab.train(0)
    batches = fixed_batches(lab, 0, 20)
    steps = [0, 7, 13, 60]
    rows = curvature_rows(lab, 0, None, states(run, steps), batches, 2, tolerance=1e-2)
    assert [(row["step"], row["number"]) for row in rows] == [(s, n) for s in (0, 7, 13, 60) for n in (1, 2)]
    assert all(row["converged"] and row["eigenvalue"] > 0 for row in rows[::2])
    net = lab.task.build(0)
    net.load_state_dict(run.at(tb.Duration(7)))
    assert rows[2]["eigenvalue"] == top_eigenvalues(net, batches, cross_entropy, count=2, tolerance=1e-2).values[0]
    # Both states on the way came from one training.
    assert [event.kind for event in events if event.kind != "step"] == ["start", "done", "start", "done"]
    events.clear()
    again = Lab(toy_task(), store, watcher=events.append)
    assert curvature_rows(again, 0, None, states(again.train(0), steps), batches, 2, tolerance=1e-2) == rows
    assert [event.kind for event in events] == ["found"]
