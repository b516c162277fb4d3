"""OBD by the Gauss-Newton matrix: against the whole matrix and the exact Hessian, with labels drawn, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_nets import NETS, batches_of, cross_entropy, in_mode, joined, made
from torch import Tensor, nn

from tombola.criteria import Obd, score
from tombola.criteria import obd as obd_module
from tombola.errors import InputError
from tombola.mask import Mask, prunable

Batches = list[tuple[Tensor, Tensor]]


def flat(tensors: dict[str, Any]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors.values()])


def jacobian(net: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Of the logits in the prunable weights, (examples, classes, weights), and the probabilities."""
    twin, (x, _) = in_mode(net, "eval"), joined(batches)
    values = {n: p.detach() for n, p in prunable(twin).items()}
    parts = torch.func.jacrev(lambda v: torch.func.functional_call(twin, v, (x,)))(values)
    return torch.cat([part.flatten(2) for part in parts.values()], 2), twin(x).detach().softmax(1)


def whole_matrix(net: nn.Module, batches: Batches) -> Tensor:
    """The mean over examples of ``J' (diag(p) - p p') J``."""
    j, p = jacobian(net, batches)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nci,ncd,ndj->ij", j, middle, j) / len(p)


@pytest.mark.parametrize("room", [obd_module._ROOM, 700, 1], ids=["at once", "in parts", "one by one"])
@pytest.mark.parametrize("sizes", [[6], [4, 1, 3]], ids=str)
@pytest.mark.parametrize("kind", NETS)
def test_it_is_the_diagonal_of_the_whole_matrix(
    kind: str, sizes: list[int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obd_module, "_ROOM", room)
    net, batches = made(kind), batches_of(sizes)
    expected = whole_matrix(net, batches).diagonal() * flat(prunable(net)).square() / 2
    found = flat(score(net, Obd("gauss_newton"), batches, cross_entropy))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)
    relabelled = [(x, (y + 1) % 3) for x, y in batches]
    assert torch.equal(found, flat(score(net, Obd("gauss_newton"), relabelled, cross_entropy))), "no label counts"


def test_of_linear_logits_it_is_the_exact_hessian() -> None:
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double(), batches_of([5, 3])
    found, exact = (score(net, Obd(h), batches, cross_entropy)["1.weight"] for h in ("gauss_newton", "exact"))
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-16)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 30), kind=st.sampled_from(sorted(NETS)))
def test_it_is_never_negative(seed: int, scale: float, kind: str) -> None:
    net = made(kind, seed)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    for by in (Obd("gauss_newton"), Obd("gauss_newton", classes=2)):
        assert bool((flat(score(net, by, batches_of([3], seed), cross_entropy)) >= 0).all())


# Labels drawn.


def test_drawn_labels_come_within_their_error() -> None:
    """An entry's variance is that of the squared gradient over a label's distribution, by the number of draws."""
    net, batches, samples = made("linear"), batches_of([4, 2]), 400
    j, p = (t.detach() for t in jacobian(net, batches))
    squares = (j - torch.einsum("nc,nci->ni", p, j)[:, None]).square()
    mean = torch.einsum("nc,nci->ni", p, squares)
    variance = torch.einsum("nc,nci->ni", p, squares.square()) - mean.square()
    half = flat(prunable(net)).square() / 2
    error = (variance.clamp_min(0).sum(0) / samples).sqrt() / len(p) * half
    found = flat(score(net, Obd("gauss_newton", classes=2, samples=samples), batches, cross_entropy))
    expected = mean.mean(0) * half
    assert bool(((found - expected).abs() <= 5 * error + 1e-12).all())
    assert not torch.allclose(found, expected, rtol=1e-6, atol=0), "or they were not drawn"
    coarse = flat(score(net, Obd("gauss_newton", classes=2, samples=4), batches, cross_entropy))
    assert float((found - expected).norm()) < float((coarse - expected).norm())


def test_labels_are_drawn_from_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches, by = made("conv"), batches_of([6, 3]), Obd("gauss_newton", classes=2)
    state = torch.get_rng_state()
    first, again, other = (
        flat(score(net, by, batches, cross_entropy, generator=torch.Generator().manual_seed(s))) for s in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(obd_module, "_ROOM", 1)
    parts = flat(score(net, by, batches, cross_entropy, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(parts, first)


@pytest.mark.parametrize("by", [Obd("gauss_newton"), Obd("gauss_newton", classes=2)], ids=["all", "drawn"])
def test_batches_of_any_form(by: Obd) -> None:
    net, (x, y) = made("linear"), batches_of([5])[0]
    forms: list[tuple[Any, Callable[[nn.Module, Any], Tensor]]] = [
        ({"x": x, "y": y, "c": "none"}, lambda m, b: F.cross_entropy(m(b["x"]), b["y"])),
        (x, lambda m, b: m(b).sum()),
    ]
    expected = score(net, by, [(x, y)], cross_entropy)
    for batch, loss in forms:
        torch.testing.assert_close(score(net, by, [batch], loss), expected)


class Branching(nn.Flatten):
    """A way through the net that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if float(out.detach().sum()) > 0 else 2 * out


def test_what_cannot_be_taken_at_once_is_taken_one_by_one() -> None:
    torch.manual_seed(0)
    x, y = batches_of([6])[0]
    rest = nn.Sequential(nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    factors = torch.where(x.flatten(1).sum(1) > 0, 1, 2)
    assert set(factors.tolist()) == {1, 2}, "either way"
    found = score(nn.Sequential(Branching(), rest), Obd("gauss_newton"), [(x, y)], cross_entropy)
    scaled = [(x * factors[:, None, None, None], y)]
    torch.testing.assert_close(
        found, score(nn.Sequential(nn.Flatten(), rest), Obd("gauss_newton"), scaled, cross_entropy)
    )


# What "auto" takes.


class LogChances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = made("linear")

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.net(x), 1)


class Pair(LogChances):
    def forward(self, x: Tensor) -> Any:
        return self.net(x), x


def sharp(factor: float) -> nn.Module:
    """Almost sure of all that it says, in float32."""
    net = made("linear")
    with torch.no_grad():
        net.get_parameter("5.weight").mul_(factor)
    return net.float()


def weighted(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 2.0, 3.0]).double())


def squared(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), F.one_hot(batch[1], 3).double())


def single(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0].float()), batch[1])


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Any], Tensor], str]] = {
    "cross-entropy": (lambda: made("conv"), cross_entropy, "gauss_newton"),
    "smoothed": (
        lambda: made("linear"),
        lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
        "gauss_newton",
    ),
    "log-chances": (LogChances, lambda m, b: F.nll_loss(m(b[0]), b[1]), "gauss_newton"),
    "penalised": (
        lambda: made("linear"),
        lambda m, b: cross_entropy(m, b) + sum(p.square().sum() for p in m.parameters()),
        "gauss_newton",
    ),
    "float32": (lambda: made("linear").float(), single, "gauss_newton"),
    "sharp": (lambda: sharp(30), single, "gauss_newton"),
    "sharper": (lambda: sharp(1000), single, "gauss_newton"),
    "squares": (lambda: made("linear"), squared, "hutchinson"),
    "classes weighted": (lambda: made("linear"), weighted, "hutchinson"),
    "several labels": (
        lambda: made("linear"),
        lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), F.one_hot(b[1], 3).double()),
        "hutchinson",
    ),
    "one output": (
        lambda: nn.Sequential(made("linear"), nn.Linear(3, 1).double()),
        lambda m, b: m(b[0]).square().mean(),
        "hutchinson",
    ),
    "no tensor": (Pair, lambda m, b: F.cross_entropy(m(b[0])[0], b[1]), "hutchinson"),
    "called twice": (lambda: made("linear"), lambda m, b: cross_entropy(m, b) + cross_entropy(m, b), "hutchinson"),
    "not called": (lambda: made("linear"), lambda m, b: F.cross_entropy(m.forward(b[0]), b[1]), "hutchinson"),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_is_gauss_newton_where_that_is_the_losses(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obd_module, "MOST_EXACT", 10)
    make, loss, expected = CASES[case]
    net, batches = make(), batches_of([5, 2])
    found = score(net, "obd", iter(batches), loss)
    torch.testing.assert_close(found, score(net, Obd(expected), batches, loss), rtol=0, atol=0)


def test_hutchinson_has_a_name_of_its_own() -> None:
    net, batches = made("linear"), batches_of([4])
    named, plain = (score(net, by, batches, cross_entropy) for by in ("obd_hutchinson", Obd("hutchinson")))
    torch.testing.assert_close(named, plain, rtol=0, atol=0)


def test_auto_is_hutchinson_where_examples_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obd_module, "MOST_EXACT", 10)
    net, batches = made("batch_norm"), batches_of([6])
    for mode, hessian in (("eval", "gauss_newton"), ("train", "hutchinson")):
        found = score(net, "obd", batches, cross_entropy, mode=mode)
        torch.testing.assert_close(found, score(net, Obd(hessian), batches, cross_entropy, mode=mode), rtol=0, atol=0)


def test_auto_has_one_hessian_for_a_ladder_by_the_size_of_the_net(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches = made("linear"), batches_of([4])
    mask = Mask({"1.weight": torch.arange(240).view(5, 48) % 8 == 0})  # 30 of 240 entries
    for most, hessian in ((240, "exact"), (239, "gauss_newton")):
        monkeypatch.setattr(obd_module, "MOST_EXACT", most)
        found = score(net, "obd", batches, cross_entropy, mask)
        torch.testing.assert_close(found, score(net, Obd(hessian), batches, cross_entropy, mask), rtol=0, atol=0)
        assert not found["1.weight"][~mask["1.weight"]].any()


def test_bad_input_is_refused() -> None:
    net, batches, by = made("batch_norm"), batches_of([3]), Obd("gauss_newton")
    kinds: list[tuple[nn.Module, Any, str]] = [
        (
            nn.Linear(4, 1).double(),
            lambda m, b: m(b[0]).sum(),
            r"obd takes the model's output for logits.*\(3, 3, 4, 1\)",
        ),
        (Pair(), lambda m, b: m(b[0])[0].sum(), "obd takes the model's output for logits.*got a tuple"),
        (made("linear"), lambda m, b: m(b[0]).sum() + m(b[0]).sum(), "calls the model once for a batch, but it did 2"),
        (made("linear"), lambda m, b: m.forward(b[0]).sum(), "calls the model once for a batch, but it did 0 times"),
    ]
    for model, loss, message in kinds:
        with pytest.raises(InputError, match=message):
            score(model, by, batches, loss)
    with pytest.raises(InputError, match="example by example, but batch normalisation"):
        score(net, by, batches, cross_entropy, mode="train")
    with pytest.raises(InputError, match=r"obd got no batches: .*pass a list"):
        score(net, by, [], cross_entropy)
    infinite = made("linear")
    with torch.no_grad():
        next(infinite.parameters()).fill_(float("inf"))
    with pytest.raises(InputError, match="are the weights"):
        score(infinite, Obd("gauss_newton", classes=2), batches, cross_entropy)
    for name in ("classes", "samples"):
        for number in (0, 1.5):
            with pytest.raises(InputError, match=f"a whole number of {name}, 1 or more, but got"):
                Obd(**{name: number})  # type: ignore[arg-type]
