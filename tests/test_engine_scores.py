"""Training of scores against autograd and loops written by hand: straight-through gradients, exact densities, bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gpu_engines import WHOLE, StandIn
from torch import Tensor, nn
from torch.func import functional_call
from toy import same, toy_net, toy_task

import tombola as tb
from tombola.engines import Plan, begin, open_session
from tombola.engines.graphs import RECORDED, StepGraph
from tombola.engines.masked import optimizer_over
from tombola.engines.scores import ScoreSession
from tombola.mask import Mask
from tombola.seeds import stream, stream_seed
from tombola.tasks.task import Task, examples

CHANCE: dict[str, Any] = {"trains": "scores", "optimizer": "sgd", "lr": 5.0, "momentum": 0.9}
TOP: dict[str, Any] = {"trains": "top_scores", "score_density": 0.5, "optimizer": "sgd", "lr": 0.5, "momentum": 0.9}
OPTIONS = [CHANCE, CHANCE | {"optimizer": "adam", "lr": 0.1, "momentum": 0.0}, TOP, TOP | {"weight_decay": 0.01}]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def conv() -> nn.Module:
    body = (
        nn.Unflatten(1, (1, 3, 4)),
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8, 3))


def task_of(net: Callable[[], nn.Module], options: dict[str, Any], **changes: Any) -> Task:
    return toy_task(model=net, recipe=options, **changes)


def session(task: Task, density: float = 0.7, seed: int = 3) -> ScoreSession:
    model = task.build(0)
    mask = tb.prune(tb.score(model, "magnitude"), density) if density < 1 else Mask.full(model)
    train = examples(task.train)
    opened = open_session(Plan("masked", "test"), model, mask, task, train, task.recipe, seed)
    assert isinstance(opened, ScoreSession)
    return opened


def scores_of(running: ScoreSession) -> dict[str, Tensor]:
    return {name.removeprefix("scores."): v for name, v in running.state().items() if name.startswith("scores.")}


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    return hard + soft - soft.detach()


def top(scores: Tensor, allowed: Tensor, density: float) -> Tensor:
    places = scores.detach().abs().masked_fill(~allowed, -1).flatten().topk(round(density * int(allowed.sum()))).indices
    return torch.zeros(scores.numel()).index_fill_(0, places, 1.0).view_as(scores)


@pytest.mark.parametrize("net", [mlp, conv])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_stretch_equals_the_loop_written_by_hand(net: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    task = task_of(net, options)
    running = session(task)
    model, allowed = task.build(0), running._allowed
    start = {name: model.get_parameter(name).detach() * allowed[name] for name in allowed}
    scores = {name: value.clone().requires_grad_() for name, value in scores_of(running).items()}
    optimizer = optimizer_over(scores.values(), task.recipe)
    x, y = task.train
    model.train()
    for step in range(12):
        epoch, position = divmod(step, 8)
        batch = torch.randperm(250, generator=stream(3, "order", epoch))[position * 32 : (position + 1) * 32]
        torch.manual_seed((stream_seed(3, "noise") + step) % 2**63)
        weights = {}
        for name, s in scores.items():
            if options["trains"] == "scores":
                chosen = straight_through((torch.rand_like(s) < s.sigmoid()).float(), s.sigmoid())
            else:
                chosen = straight_through(top(s, allowed[name], 0.5), s.abs())
            weights[name] = start[name] * chosen
        loss = F.cross_entropy(functional_call(model, weights, (x[batch],)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert running.stretch(1) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in scores_of(running).items():
        torch.testing.assert_close(value, scores[name].detach(), rtol=1e-4, atol=1e-5)
        assert bool((value[~allowed[name]] == 0).all())
    for name, buffer in model.named_buffers():  # running statistics are those of the nets drawn
        torch.testing.assert_close(running.model.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


def total(model: nn.Module, batch: Any) -> Tensor:
    """Its gradient in a weight is the sum of that input, whatever else is in the net."""
    return torch.as_tensor(model(batch[0]).sum())


def test_the_straight_through_gradient_of_a_linear_unit_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.5, 4.0]])
    sums, kept = torch.tensor([4.0, 2.5, 3.0]), torch.tensor([[True, True, False]])
    for options in (CHANCE | {"momentum": 0.0, "lr": 0.25}, TOP | {"momentum": 0.0, "lr": 0.25}):
        unit = nn.Linear(3, 1)
        with torch.no_grad():
            unit.weight.copy_(torch.tensor([[2.0, -3.0, 5.0]]))
        recipe = tb.Recipe(batch=2, **options)
        task = toy_task(loss=total, recipe={})
        train = examples((x, torch.zeros(2, dtype=torch.int64)))
        running = ScoreSession(unit, Mask({"weight": kept}), task, train, recipe, seed=0)
        before = scores_of(running)["weight"]
        running.stretch(1)
        slope = 0.25 if options["trains"] == "scores" else before.sign()
        expected = before - 0.25 * torch.tensor([[2.0, -3.0, 0.0]]) * sums * slope
        torch.testing.assert_close(scores_of(running)["weight"], expected)


@given(st.floats(0.01, 0.99), st.floats(0.05, 0.95), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_top_scores_keep_the_exact_share_of_every_layer(density: float, allowed: float, seed: int) -> None:
    running = session(task_of(mlp, TOP | {"score_density": density}), density=allowed, seed=seed)
    for _ in range(2):
        for before, now in zip(running._allowed.layers(), running.mask.layers(), strict=True):
            assert now.kept == min(before.kept, max(1, round(density * before.kept)))
        assert running.mask <= running._allowed
        running.stretch(1)


def test_of_equal_scores_the_first_are_kept() -> None:
    running = session(task_of(mlp, TOP))
    state = running.state()
    for name in running.mask:
        state[f"scores.{name}"] = torch.where(running._allowed[name], -0.25, 0.0)
    running.load(state)
    for name, found in running.mask.items():
        chosen, allowed = found.flatten().nonzero().flatten(), running._allowed[name].flatten().nonzero().flatten()
        assert torch.equal(chosen, allowed[: round(0.5 * len(allowed))])


def test_initial_scores() -> None:
    assert all(bool((s == 0).all()) for s in scores_of(session(task_of(conv, CHANCE))).values())
    scores = scores_of(session(task_of(conv, TOP), density=1))
    bounds = {name: 1 / math.sqrt(s[0].numel()) for name, s in scores.items()}
    for name, s in scores.items():
        assert 0.8 * bounds[name] < float(s.abs().max()) <= bounds[name]
    other = scores_of(session(task_of(conv, TOP), density=1, seed=4))
    assert not any(torch.equal(scores[name], other[name]) for name in scores)


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_stay_or_are_exactly_zero_and_nothing_else_moves(options: dict[str, Any]) -> None:
    task = task_of(conv, options)
    running, start = session(task), task.build(0)
    for _ in range(10):
        running.stretch(1)
        for name, parameter in running.model.named_parameters():
            value, first = parameter.detach(), start.get_parameter(name).detach()
            if name in running.mask:
                found = running.mask[name]
                assert torch.equal(value[found], first[found])
                assert not bool(value[~found].view(torch.int32).any())  # no negative zeros
            else:
                assert torch.equal(value, first)
    assert running.mask.kept > 0
    assert bool(running.model.get_buffer("2.running_mean").any())


def test_by_chance_the_net_found_is_that_of_positive_scores_and_evaluation_draws_nothing() -> None:
    task = task_of(mlp, CHANCE)
    running = session(task)
    assert running.mask.kept == 0
    running.stretch(15)
    for name, s in scores_of(running).items():
        assert torch.equal(running.mask[name], s > 0)
    data = examples(task.test)
    state = {name: value.clone() for name, value in running.model.state_dict().items()}
    values = running.evaluate(data)
    assert running.evaluate(data) == values == running.evaluate(data, state)
    net = task.build(0)
    net.load_state_dict(state)
    x, y = task.test
    assert values["loss"] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("options", [CHANCE, TOP])
def test_the_search_finds_a_better_net(options: dict[str, Any]) -> None:
    task = task_of(mlp, options)
    running = session(task, density=1)
    before = running.evaluate(examples(task.test))["accuracy"]
    running.stretch(200)
    assert running.evaluate(examples(task.test))["accuracy"] > before + 0.2


@pytest.mark.parametrize("options", OPTIONS)
def test_state_goes_on_with_the_same_bits_and_stretches_may_be_of_any_length(options: dict[str, Any]) -> None:
    task = task_of(toy_net, options)  # with dropout
    straight, short = session(task), session(task)
    straight.stretch(9)
    for steps in (1, 5, 3):
        short.stretch(steps)
    state = straight.state()
    assert same(state, short.state())
    straight.stretch(11)
    resumed, elsewhere = session(task), task.build(1)  # a state has the weights to choose from in it
    moved = ScoreSession(elsewhere, straight._allowed, task, examples(task.train), task.recipe, 3)
    for late in (resumed, short, moved):
        late.load(state)
        late.stretch(11)
        assert late.step == 20
        assert late.mask == straight.mask
        assert same(late.state(), straight.state())


def test_a_recorded_step_has_the_bits_of_a_plain_one() -> None:
    task = task_of(conv, TOP)
    plain, recorded = session(task), session(task)
    stand_in = StandIn(recorded)
    recorded._graph = StepGraph(WHOLE, stand_in.capture)
    for steps in (1, 9):
        assert recorded.stretch(steps) == plain.stretch(steps)
        assert same(recorded.state(), plain.state())
    assert recorded.note == RECORDED
    assert stand_in.replays > 0


def test_a_step_that_draws_a_net_is_not_recorded_and_keeps_its_bits() -> None:
    task = task_of(conv, CHANCE)
    plain, recorded = session(task), session(task)
    recorded._graph = StepGraph(WHOLE, StandIn(recorded).capture)
    assert recorded.stretch(10) == plain.stretch(10)
    assert same(recorded.state(), plain.state())
    assert "draws random numbers" in recorded.note


def test_parameters_that_may_not_change_and_layers_without_weights_are_left_alone() -> None:
    task = task_of(mlp, TOP)
    model = task.build(0)
    model.get_parameter("0.weight").requires_grad_(False)
    kept = {"0.weight": torch.ones(20, 12, dtype=torch.bool), "2.weight": torch.zeros(3, 20, dtype=torch.bool)}
    running = ScoreSession(model, Mask(kept), task, examples(task.train), task.recipe, 0)
    running.stretch(3)
    assert running.mask == Mask(kept)
    with pytest.raises(tb.InputError, match="covers none"):
        ScoreSession(model, Mask({}), task, examples(task.train), task.recipe, 0)


def test_scores_that_are_no_longer_finite_are_reported() -> None:
    def steep(model: nn.Module, batch: Any) -> Tensor:
        return 1e30 * total(model, batch)

    running = session(task_of(mlp, TOP | {"lr": 1e30, "momentum": 0.0}, loss=steep))
    assert math.isnan(running.stretch(1))


def test_another_mask_is_refused() -> None:
    running = session(task_of(mlp, TOP))
    with pytest.raises(tb.InputError, match="finds a mask itself"):
        running.remask(running.mask)


def test_the_masked_engine_is_chosen_and_others_refuse() -> None:
    task = task_of(mlp, TOP)
    model, data = task.build(0), examples(task.train)
    plan, opened = begin(model, Mask.full(model), task, data, task.recipe, 0)
    assert isinstance(opened, ScoreSession)
    assert plan.engine == "masked"
    assert "top scores" in plan.reason
    for engine in ("sparse", "compact"):
        with pytest.raises(tb.TombolaError, match=f"the {engine} engine can't run this training.*'top_scores'"):
            begin(model, Mask.full(model), task, data, tb.Recipe(engine=engine, **TOP), 0)


def test_recipes_that_contradict_themselves_are_refused() -> None:
    for wrong in ({"trains": "top_scores"}, {"score_density": 0.5}, {"trains": "scores", "score_density": 0.5}):
        with pytest.raises(ValueError, match="score_density go together"):
            tb.Recipe(**wrong)
    with pytest.raises(ValueError, match="stay fixed"):
        tb.Recipe(trains="scores", scale_l1=1e-4)
