"""Training of shared values against autograd and loops written by hand: sums over members, equal bits, resuming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_scores import conv, mlp, total
from test_gpu_engines import WHOLE, StandIn
from torch import Tensor, nn
from torch.func import functional_call
from toy import same, toy_net, toy_task

import tombola as tb
from tombola.engines import Plan, begin, open_session
from tombola.engines.centroids import CentroidSession, _Clusters
from tombola.engines.graphs import RECORDED, StepGraph
from tombola.engines.masked import optimizer_over
from tombola.mask import Mask
from tombola.seeds import stream
from tombola.tasks.task import Task, examples

OPTIONS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.05},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def setting(
    net: Callable[[], nn.Module], options: dict[str, Any], density: float = 0.6
) -> tuple[Task, nn.Module, Mask]:
    """Weights in steps of a tenth, some of the kept ones exactly 0."""
    task = toy_task(model=net, recipe=options | {"trains": "centroids"})
    model = task.build(0)
    random = torch.Generator().manual_seed(5)
    mask = tb.prune(
        {name: torch.rand(kept.shape, generator=random) for name, kept in Mask.full(model).items()}, density
    )
    with torch.no_grad():
        for name in mask:
            model.get_parameter(name).mul_(10).round_().div_(10)
    return task, model, mask


def opened(task: Task, model: nn.Module, mask: Mask) -> CentroidSession:
    running = open_session(Plan("masked", "test"), model, mask, task, examples(task.train), task.recipe, 3)
    assert isinstance(running, CentroidSession)
    return running


def session(net: Callable[[], nn.Module], options: dict[str, Any]) -> CentroidSession:
    return opened(*setting(net, options))


@pytest.mark.parametrize("net", [mlp, conv])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_stretch_equals_the_loop_written_by_hand(net: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    task, model, mask = setting(net, options)
    own = setting(net, options)[1]
    running = opened(task, own, mask)
    trained = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    places = {}
    for name, kept in mask.items():
        values, number = trained[name].detach()[kept].unique(return_inverse=True)
        trained[name] = values.requires_grad_()
        places[name] = (kept, number)
    optimizer = optimizer_over(trained.values(), task.recipe)
    x, y = task.train
    model.train()
    for step in range(12):
        epoch, position = divmod(step, 8)
        batch = torch.randperm(250, generator=stream(3, "order", epoch))[position * 32 : (position + 1) * 32]
        weights = dict(trained)
        for name, (kept, number) in places.items():
            weights[name] = torch.zeros(kept.shape).masked_scatter(kept, trained[name][number])
        loss = F.cross_entropy(functional_call(model, weights, (x[batch],)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert running.stretch(1) == pytest.approx(loss.item(), rel=1e-4)
    for name, value in running.model.state_dict().items():
        expected = trained[name].detach() if name in trained else model.state_dict()[name]
        if name in places:
            kept, number = places[name]
            value, expected = value[kept], expected[number]
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_a_centroid_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, -1.0, 7.0], [3.0, 0.5, 4.0, 1.0]])  # sums 4, 2.5, 3, 8
    unit = nn.Linear(4, 1)
    with torch.no_grad():
        unit.weight.copy_(torch.tensor([[0.5, -2.0, 0.5, 0.5]]))
    mask = Mask({"weight": torch.tensor([[True, True, True, False]])})
    recipe = tb.Recipe(trains="centroids", batch=2, optimizer="sgd", lr=0.1)
    train = examples((x, torch.zeros(2, dtype=torch.int64)))
    running = CentroidSession(unit, mask, toy_task(loss=total), train, recipe, 0)
    running.stretch(1)
    shared = 0.5 - 0.1 * (4 + 3)
    torch.testing.assert_close(unit.weight.detach(), torch.tensor([[shared, -2 - 0.1 * 2.5, shared, 0.0]]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60).filter(any), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_gradients_are_summed_over_members_and_nothing_else(numbers: list[int], seed: int) -> None:
    numbers_used = sorted({n for n in numbers if n})
    membership = torch.tensor([numbers_used.index(n) + 1 if n else 0 for n in numbers], dtype=torch.int16)
    weight = nn.Parameter(membership.double() / 8)
    clusters = _Clusters(weight, membership)
    assert torch.equal(clusters.values.detach(), torch.arange(1, len(numbers_used) + 1) / 8)
    weight.grad = torch.randn(len(numbers), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    clusters.sum_up()
    assert clusters.values.grad is not None
    for number, gradient in enumerate(clusters.values.grad, start=1):
        torch.testing.assert_close(gradient, weight.grad[membership == number].sum())
    with torch.no_grad():
        clusters.values.add_(1)
    clusters.hand_out()
    assert torch.equal(weight.detach(), torch.where(membership > 0, membership.double() / 8 + 1, 0.0))


@pytest.mark.parametrize("options", OPTIONS)
def test_members_have_the_same_bits_after_every_step_and_pruned_weights_are_zero(options: dict[str, Any]) -> None:
    task, model, mask = setting(conv, options)
    start = {name: model.get_parameter(name).detach().clone() for name in mask}
    running = opened(task, model, mask)
    for _ in range(10):
        running.stretch(1)
        for name, kept in mask.items():
            now = model.get_parameter(name).detach()
            assert not bool(now[~kept].view(torch.int32).any())
            for value in start[name][kept].unique():
                assert len(now[kept & (start[name] == value)].view(torch.int32).unique()) == 1
    for name, kept in mask.items():
        moved = model.get_parameter(name).detach() != start[name]
        assert bool((kept & (start[name] == 0)).any())  # values of exactly 0 are kept and train like any other
        assert bool(moved[kept].all())


@pytest.mark.parametrize("options", OPTIONS)
def test_state_goes_on_with_the_same_bits_and_stretches_may_be_of_any_length(options: dict[str, Any]) -> None:
    straight, short, resumed = (session(toy_net, options) for _ in range(3))  # with dropout
    straight.stretch(9)
    for steps in (1, 5, 3):
        short.stretch(steps)
    state = straight.state()
    assert same(state, short.state())
    for name in straight.mask:
        assert state[f"clusters.{name}"].dtype == torch.int16
        for entry, moment in state.items():
            if entry.startswith(f"optimizer.{name}.") and moment.dim():
                assert moment.shape == (int(state[f"clusters.{name}"].max()),)
    straight.stretch(11)
    for late in (resumed, short):
        late.load(state)
        late.stretch(11)
        assert late.step == 20
        assert same(late.state(), straight.state())


@pytest.mark.parametrize("options", OPTIONS)
def test_centroids_that_meet_part_again_even_where_a_session_starts_from_their_meeting(options: dict[str, Any]) -> None:
    task, model, mask = setting(mlp, options)
    running = opened(task, model, mask)
    running.stretch(3)
    state = running.state()
    clusters = state["clusters.0.weight"]
    state["model.0.weight"][clusters == 1] = state["model.0.weight"][clusters == 2][0]
    merged = setting(mlp, options)[1]
    merged.load_state_dict({n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")})
    sessions = [running, opened(task, merged, mask)]
    for late in sessions:
        late.load(state)
        late.stretch(2)
        weight = late.model.get_parameter("0.weight").detach()
        assert weight[clusters == 1][0] != weight[clusters == 2][0]
    assert same(sessions[0].state(), sessions[1].state())


def test_recorded_steps_have_the_bits_of_plain_ones() -> None:
    plain, recorded = session(conv, OPTIONS[1]), session(conv, OPTIONS[1])
    stand_in = StandIn(recorded)
    recorded._graph = StepGraph(WHOLE, stand_in.capture)
    for steps in (1, 9):
        assert recorded.stretch(steps) == plain.stretch(steps)
        assert same(recorded.state(), plain.state())
    assert recorded.note == RECORDED
    state = plain.state()
    for running in (plain, recorded):
        running.stretch(3)
        running.load(state)
        running.stretch(2)
    assert same(recorded.state(), plain.state())
    assert stand_in.replays > 10


class Spare(nn.Module):
    """One layer that is never used, and one that may not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.spare, self.out = nn.Linear(12, 4), nn.Linear(12, 3), nn.Linear(4, 3)
        self.out.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.out(self.first(x)))


def test_layers_without_a_gradient_or_without_weights_stay() -> None:
    task, model, _ = setting(Spare, OPTIONS[0])
    mask = Mask.full(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opened(task, model, mask).stretch(3)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"first.weight", "first.bias"}
    task, model, mask = setting(mlp, OPTIONS[2])
    empty = Mask({"0.weight": mask["0.weight"], "2.weight": torch.zeros_like(mask["2.weight"])})
    running = opened(task, model, empty)
    running.stretch(3)
    assert not bool(model.get_parameter("2.weight").any())
    assert "clusters.2.weight" not in running.state()


def test_weights_that_share_no_values_are_refused() -> None:
    task = toy_task(model=lambda: nn.Sequential(nn.Linear(12, 400), nn.ReLU(), nn.Linear(400, 3)))
    model = task.build(0)
    recipe = tb.Recipe(trains="centroids")
    with pytest.raises(tb.InputError, match=r"'0.weight' starts with 4\d\d\d: share the weights first"):
        begin(model, Mask.full(model), task, examples(task.train), recipe, 0)
    running = session(mlp, OPTIONS[0])
    with pytest.raises(tb.InputError, match="can't go on under another mask"):
        running.remask(running.mask)
    for engine in ("sparse", "compact"):
        other = tb.Recipe(trains="centroids", engine=engine)
        with pytest.raises(tb.TombolaError, match=f"the {engine} engine can't run this training.*'centroids'"):
            begin(model, Mask.full(model), task, examples(task.train), other, 0)
