"""Criteria: their values by hand, and ``score``, which leaves the model bit for bit as it was."""

from __future__ import annotations

import copy
import math
import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tombola.criteria import CRITERIA, Scores, Weights, criterion, register, score
from tombola.errors import InputError
from tombola.mask import Mask, prunable
from tombola.seeds import stream

INF = math.inf


def row(values: list[float], dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A layer with one row of weights."""
    layer = nn.Linear(len(values), 1)
    layer.weight = nn.Parameter(torch.tensor([values], dtype=dtype))
    return layer


class Noisy(nn.Module):
    """A net with all that a forward pass may change: batch statistics, buffers replaced by others, random draws."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.drop, self.fc2 = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.fc1.bias.requires_grad_(False)
        self.bn.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        out: Tensor = self.fc2(self.drop(self.bn(self.fc1(x))))
        return out


def noisy() -> Noisy:
    torch.manual_seed(0)
    model = Noisy()
    model(torch.randn(8, 4)).sum().backward()
    with torch.no_grad():
        model.fc1.weight[0, :2] = torch.tensor([math.nan, INF])
        model.fc2.weight[0, 0] = -0.0
    return model


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().flatten().view(torch.uint8).tolist())


def everything(model: nn.Module) -> dict[str, Any]:
    """All of a model that ``score`` must leave alone, by identity and by bits."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "ids": {n: id(t) for n, t in tensors},
        "bits": {n: (t.dtype, tuple(t.shape), bits(t)) for n, t in tensors},
        "storage": {n: t.data_ptr() for n, t in tensors},
        "grads": {n: (id(p.grad), None if p.grad is None else bits(p.grad)) for n, p in model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "training": {n: m.training for n, m in model.named_modules()},
        "state": list(model.state_dict()),
        "random": bits(torch.get_rng_state()),
    }


# Criteria by hand. Weights before and after: shrunk, grown, the sign turned, from zero, to zero.

BEFORE = [2.0, -1.0, 1.0, 0.0, 3.0]
AFTER = [1.0, -4.0, -0.5, 2.0, 0.0]
BY_HAND = {
    "magnitude": [1, 4, 0.5, 2, 0],
    "scaled_magnitude": [size / statistics.pstdev([1, -4, -0.5, 2, 0]) for size in (1, 4, 0.5, 2, 0)],
    "large_final": [1, 4, 0.5, 2, 0],
    "small_final": [-1, -4, -0.5, -2, 0],
    "large_init": [2, 1, 1, 0, 3],
    "small_init": [-2, -1, -1, 0, -3],
    "large_init_large_final": [1, 1, 0.5, 0, 0],
    "small_init_small_final": [-2, -4, -1, -2, -3],
    "magnitude_increase": [-1, 3, -0.5, 2, -3],
    "movement": [1, 3, 1.5, 2, 3],
    "large_final_same_sign": [1, 4, 0, 0, 0],
    "large_final_diff_sign": [0, 0, 0.5, 2, 0],
    "magnitude_increase_same_sign": [-1, 3, 0, 0, 0],
    "magnitude_increase_diff_sign": [0, 0, -0.5, 2, -3],
}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_criteria_by_hand(name: str) -> None:
    scores = score(row(AFTER), name, initial={"weight": torch.tensor([BEFORE]), "bias": torch.zeros(1)})
    assert {n: s.tolist() for n, s in scores.items()} == {"weight": [pytest.approx(BY_HAND[name])]}


def test_every_criterion_has_a_test_by_hand() -> None:
    of_weights = {
        n for n, f in CRITERIA.items() if f.__module__ in ("tombola.criteria.zhou", "tombola.criteria.magnitude")
    }
    assert of_weights == {*BY_HAND, "random"}


def test_magnitude_of_infinite_weights_keeps_them() -> None:
    assert score(row([-INF, 1.0, INF]), "magnitude")["weight"].tolist() == [[INF, 1.0, INF]]


def test_random_is_reproducible_by_its_generator() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    first, again, other = (score(model, "random", generator=stream(seed, "criterion")) for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert 0 <= float(first[name].min()) <= float(first[name].max()) < 1
    assert all(
        torch.equal(a, b) for a, b in zip(score(model, "random").values(), score(model, "random").values(), strict=True)
    )
    assert abs(float(first["0.weight"].mean()) - 0.5) < 5 / (12 * 600) ** 0.5


def test_initial_weights_are_asked_for_and_checked() -> None:
    model = row(AFTER)
    with pytest.raises(InputError, match="compares with the initial weights: pass initial=, a state_dict of them"):
        score(model, "movement")
    with pytest.raises(InputError, match="initial= lacks the weights of 'weight'"):
        score(model, "movement", initial={"bias": torch.zeros(1)})
    text = r"initial= has 'weight' of shape \(1, 1\), but the model's is \(1, 5\)"
    with pytest.raises(InputError, match=text):
        score(model, "movement", initial={"weight": torch.zeros(1, 1)})


# What is scored.


def test_all_prunable_parameters_are_scored_or_those_of_the_mask() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    assert list(score(model, "magnitude")) == list(prunable(model))
    mask = Mask({"2.weight": torch.ones(1, 2, dtype=torch.bool), "0.bias": torch.ones(2, dtype=torch.bool)})
    assert {n: tuple(s.shape) for n, s in score(model, "magnitude", mask=mask).items()} == {
        "2.weight": (1, 2),
        "0.bias": (2,),
    }
    with pytest.raises(InputError, match=r"the mask covers '3\.weight', which the model doesn't have"):
        score(model, "magnitude", mask=Mask({"3.weight": torch.ones(1, 2, dtype=torch.bool)}))


def test_a_criterion_sees_what_was_passed() -> None:
    model, mask, generator = row([1.0]), Mask({"weight": torch.ones(1, 1, dtype=torch.bool)}), torch.Generator()
    seen: list[Weights] = []

    def spy(weights: Weights) -> Scores:
        seen.append(weights)
        return weights.final

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return torch.zeros(())

    score(model, spy, [1, 2], loss, mask, initial={"weight": torch.ones(1, 1)}, generator=generator)
    got = seen[0]
    assert (got.model, got.mask, got.batches, got.loss, got.generator) == (model, mask, [1, 2], loss, generator)
    assert not got.final["weight"].requires_grad


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
        (torch.bool, torch.float64),
    ],
)
def test_scores_come_as_floats_of_the_same_values(given: torch.dtype, returned: torch.dtype) -> None:
    values = torch.tensor([[0, 1, 2**25 + 1 if given == torch.int64 else 1]]).to(given)
    scores = score(row([1.0, 2.0, 3.0]), lambda w: {"weight": values})["weight"]
    assert scores.dtype == returned
    assert scores.tolist() == values.tolist()


def test_scores_share_no_memory_with_the_weights() -> None:
    model = row([1.0, -2.0], torch.float64)
    score(model, lambda w: w.final)["weight"].fill_(7)
    assert model.weight.tolist() == [[1.0, -2.0]]


def test_scores_made_in_place_are_the_criterions() -> None:
    model = row([1.0, -2.0])
    assert score(model, lambda w: {"weight": w.final["weight"].abs_()})["weight"].tolist() == [[1.0, 2.0]]
    assert model.weight.tolist() == [[1.0, -2.0]]


# Names, specs, refusals.


def by_bias(weights: Weights) -> Scores:
    return {name: w + 1 for name, w in weights.final.items()}


NOT_A_FUNCTION = 3


def test_own_functions_and_their_paths() -> None:
    assert criterion(by_bias) is by_bias
    assert criterion(f"{__name__}:by_bias") is by_bias
    assert score(row([1.0]), by_bias)["weight"].item() == 2.0
    assert score(row([1.0]), f"{__name__}:by_bias")["weight"].item() == 2.0


def test_a_registered_criterion_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tombola.criteria.base.CRITERIA", dict(CRITERIA))
    assert register("by_bias")(by_bias) is by_bias
    assert criterion("by_bias") is by_bias


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("magnitud", "unknown criterion 'magnitud'. Did you mean 'magnitude'? A function of your own is given as"),
        ("zzzzzzzz", "unknown criterion 'zzzzzzzz'. There are: force, grasp, large_final, "),
        (":by_bias", "unknown criterion ':by_bias'."),
        ("module:", "unknown criterion 'module:'."),
        (".relative:f", "unknown criterion '.relative:f'."),
        ("no_such_module_here:f", "the criterion 'no_such_module_here:f' can't be imported: No module named"),
        (f"{__name__}:missing", "can't be imported: module"),
        (f"{__name__}:NOT_A_FUNCTION", "must be a function of Weights, but is a int"),
    ],
)
def test_criteria_that_are_not_known_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        criterion(spec)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a dict of names to scores, but gave a NoneType"),
        ({}, "must give 'weight' real scores of shape (1, 2), but gave nothing"),
        (
            {"weight": torch.ones(2)},
            "must give 'weight' real scores of shape (1, 2), but gave torch.float32 of shape (2,)",
        ),
        ({"weight": [[1.0, 2.0]]}, "must give 'weight' real scores of shape (1, 2), but gave list"),
        (
            {"weight": torch.ones(1, 2) * 1j},
            "must give 'weight' real scores of shape (1, 2), but gave torch.complex64 of",
        ),
        ({"weight": torch.tensor([[1.0, math.nan]])}, "scored some of 'weight' NaN: are the weights finite?"),
    ],
)
def test_what_is_no_score_is_refused(returned: Any, message: str) -> None:
    def wrong(weights: Weights) -> Any:
        return returned

    with pytest.raises(InputError, match=r"the criterion '.*wrong' " + re.escape(message)):
        score(row([1.0, 2.0]), wrong)


def test_weights_that_diverged_are_refused() -> None:
    with pytest.raises(InputError, match="the criterion 'magnitude' scored some of 'weight' NaN"):
        score(row([1.0, math.nan]), "magnitude")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="mode must be 'train' or 'eval', but got 'training'"):
        score(row([1.0]), "magnitude", mode="training")


# The model comes back as it was.


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("train", {True}), ("eval", {False}), (None, {True, False})],  # Noisy holds its BatchNorm in eval mode
)
def test_the_mode_holds_while_scoring(mode: str | None, expected: set[bool]) -> None:
    flags: set[bool] = set()

    def spy(weights: Weights) -> Scores:
        flags.update(m.training for m in weights.model.modules())
        return {n: w.nan_to_num() for n, w in weights.final.items()}

    model = noisy()
    before = everything(model)
    score(model, spy, mode=mode)
    assert flags == expected
    assert everything(model) == before


def run_forward_and_backward(weights: Weights) -> None:
    weights.model.train()
    assert all(p.grad is None for p in weights.model.parameters())
    weights.model(torch.randn(6, 4)).sum().backward()  # batch statistics, dropout's draws, the buffer, gradients


def train(weights: Weights) -> None:
    optimizer = torch.optim.SGD(weights.model.parameters(), lr=0.1)
    run_forward_and_backward(weights)
    optimizer.step()


def overwrite(weights: Weights) -> None:
    for tensor in (*weights.model.parameters(), *weights.model.buffers()):
        tensor.detach().zero_()


def turn_negative_zero(weights: Weights) -> None:
    weights.final["fc2.weight"].add_(0.0)


def convert(weights: Weights) -> None:
    weights.model.double()


def freeze(weights: Weights) -> None:
    weights.model.requires_grad_(False)
    weights.model.get_submodule("fc1").bias.requires_grad_(True)


def replace(weights: Weights) -> None:
    layer = weights.model.get_submodule("fc2")
    layer.weight = nn.Parameter(torch.ones(1, 1))
    del layer.bias
    layer.register_buffer("mask", torch.ones(1))


def reseed(weights: Weights) -> None:
    torch.manual_seed(1)


def drop_gradients(weights: Weights) -> None:
    for p in weights.model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize(
    "act",
    [run_forward_and_backward, train, overwrite, turn_negative_zero, convert, freeze, replace, reseed, drop_gradients],
)
def test_the_model_comes_back_bit_for_bit(act: Callable[[Weights], None], fails: bool) -> None:
    model = noisy()
    before, copied = everything(model), copy.deepcopy(model.state_dict())

    def meddle(weights: Weights) -> Scores:
        shapes = {n: w.shape for n, w in weights.final.items()}
        act(weights)
        if fails:
            raise RuntimeError("the criterion failed")
        return {n: torch.ones(shape) for n, shape in shapes.items()}

    if fails:
        with pytest.raises(RuntimeError, match="the criterion failed"):
            score(model, meddle, mode="train")
    else:
        score(model, meddle, mode="train")
    after = everything(model)
    if act is convert:  # other memory, the same contents
        before["storage"] = after["storage"]
    assert after == before
    assert {n: bits(t) for n, t in model.state_dict().items()} == {n: bits(t) for n, t in copied.items()}


def test_refused_scores_leave_the_model_as_it_was_too() -> None:
    model = noisy()
    before = everything(model)

    def wrong(weights: Weights) -> Scores:
        train(weights)
        return {}

    with pytest.raises(InputError, match=r"must give 'fc1\.weight' real scores"):
        score(model, wrong, mode="train")
    assert everything(model) == before


def test_what_was_not_touched_is_not_written_to() -> None:
    """A graph that was built before scoring can still go backward after it."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 1))
    loss = model(torch.randn(4, 3)).sum()
    score(model, "magnitude", mode="train")
    loss.backward()
    assert model[0].weight.grad is not None


def test_random_draws_go_on_as_if_nothing_had_been_scored() -> None:
    model = row([1.0, 2.0])
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    score(model, lambda w: {"weight": torch.rand(1, 2)})
    assert torch.equal(torch.rand(3), expected)
