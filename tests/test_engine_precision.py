"""The penalty on batch normalisation's scales and bfloat16 arithmetic, against loops written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_compact import RECIPES, assert_agree, pair
from test_engine_scores import conv, mlp
from test_gpu_engines import WHOLE, StandIn
from torch import nn
from toy import same, toy_net, toy_task

import tombola as tb
from tombola.engines import Plan, begin, open_session
from tombola.engines.evaluation import evaluate
from tombola.engines.graphs import RECORDED, StepGraph
from tombola.engines.masked import MaskedSession, batch_norm_scales, make_optimizer
from tombola.engines.replicates import ReplicatedSession
from tombola.engines.sparse.session import plan_program
from tombola.engines.tracing import UnsupportedError
from tombola.mask import Mask
from tombola.seeds import stream
from tombola.tasks.task import examples

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.001},
    {"optimizer": "adam", "lr": 0.01},
]
PENALTY: dict[str, Any] = {"scale_l1": 0.02}
HALF: dict[str, Any] = {"precision": "bfloat16"}


def session(net: Callable[[], nn.Module], options: dict[str, Any], engine: str = "masked") -> MaskedSession:
    task = toy_task(model=net, recipe=options)
    model = task.build(0)
    mask = tb.prune(tb.score(model, "magnitude"), 0.4)
    running = open_session(Plan(engine, "test"), model, mask, task, examples(task.train), task.recipe, 3)
    return running  # type: ignore[return-value]


@pytest.mark.parametrize("options", [o | extra for o in OPTIMIZERS for extra in (PENALTY, HALF, PENALTY | HALF)])
def test_a_stretch_equals_the_loop_written_by_hand(options: dict[str, Any]) -> None:
    running = session(conv, options)
    with torch.no_grad():
        running.model.get_parameter("2.weight")[0] = 0  # where abs has no slope, the subgradient is 0
    task = running.task
    net = task.build(0)
    net.load_state_dict(running.model.state_dict())
    optimizer = make_optimizer(net, running.recipe)
    x, y = task.train
    for step in range(12):
        epoch, position = divmod(step, 8)
        batch = torch.randperm(250, generator=stream(3, "order", epoch))[position * 32 : (position + 1) * 32]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=running.recipe.precision == "bfloat16"):
            loss = F.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        scale = net.get_parameter("2.weight")
        assert scale.grad is not None
        scale.grad += running.recipe.scale_l1 * scale.detach().sign()
        for name, kept in running.mask.items():
            net.get_parameter(name).grad *= kept  # type: ignore[operator]
        optimizer.step()
        assert running.stretch(1) == loss.item()
    assert same(dict(running.model.state_dict()), dict(net.state_dict()))


def test_the_penalty_is_on_scales_of_batch_normalisation_alone() -> None:
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.BatchNorm1d(6, affine=False))
    assert list(batch_norm_scales(net)) == ["1.weight"]
    net.get_parameter("1.weight").requires_grad_(False)
    assert not batch_norm_scales(net)
    plain, penalised = session(mlp, OPTIMIZERS[0]), session(mlp, OPTIMIZERS[0] | PENALTY)
    assert penalised.stretch(5) == plain.stretch(5)  # a net without batch normalisation
    assert same(penalised.state(), plain.state())


def test_the_penalty_makes_scales_small() -> None:
    plain, penalised = session(conv, OPTIMIZERS[1]), session(conv, OPTIMIZERS[1] | {"scale_l1": 1.0})
    for running in (plain, penalised):
        running.stretch(100)
    assert penalised.model.get_parameter("2.weight").abs().max() < 0.2
    assert plain.model.get_parameter("2.weight").abs().max() > 0.8


def test_in_bfloat16_weights_moments_and_evaluation_stay_float32() -> None:
    full, half = session(conv, OPTIMIZERS[1]), session(conv, OPTIMIZERS[1] | HALF)
    losses = [running.stretch(10) for running in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != pytest.approx(losses[0], rel=1e-6)
    dtypes = {v.dtype for name, v in half.state().items() if v.is_floating_point()}
    assert dtypes == {torch.float32}
    data = examples(half.task.test)
    net = half.task.build(0)
    net.load_state_dict(half.model.state_dict())
    assert half.evaluate(data) == evaluate(half.task, net, data)


@pytest.mark.parametrize("extra", [PENALTY, HALF])
def test_state_goes_on_with_the_same_bits(extra: dict[str, Any]) -> None:
    for options in OPTIMIZERS:
        straight, resumed = session(toy_net, options | extra), session(toy_net, options | extra)
        straight.stretch(9)
        state = straight.state()
        straight.stretch(11)
        resumed.load(state)
        for steps in (4, 7):
            resumed.stretch(steps)
        assert same(resumed.state(), straight.state())


@pytest.mark.parametrize("extra", [PENALTY, HALF])
def test_recorded_steps_have_the_bits_of_plain_ones(extra: dict[str, Any]) -> None:
    plain, recorded = session(conv, OPTIMIZERS[0] | extra), session(conv, OPTIMIZERS[0] | extra)
    stand_in = StandIn(recorded)
    recorded._graph = StepGraph(WHOLE, stand_in.capture)
    assert recorded.stretch(10) == plain.stretch(10)
    assert same(recorded.state(), plain.state())
    assert recorded.note == RECORDED
    assert stand_in.replays == 9


@given(st.integers(0, 2**31), st.sampled_from([*RECIPES, {"optimizer": "adam", "lr": 0.01}]))
@settings(max_examples=40, deadline=None)
def test_the_compact_engine_shrinks_dropped_scales_too(seed: int, recipe: dict[str, Any]) -> None:
    masked, compact = pair(seed, recipe | {"scale_l1": 0.05})
    for steps in (1, 3):
        assert compact.stretch(steps) == pytest.approx(masked.stretch(steps), rel=1e-6, abs=1e-9)
        assert_agree(masked.state(), compact.state(), compact._compaction.kept)
    state = compact.state()
    compact.stretch(2)
    resumed = pair(seed, recipe | {"scale_l1": 0.05})[1]
    resumed.load(state)
    resumed.stretch(2)
    assert same(resumed.state(), compact.state())


def test_the_compact_engine_computes_in_bfloat16() -> None:
    options = OPTIMIZERS[0] | HALF
    masked, compact, full = session(conv, options), session(conv, options, "compact"), session(conv, OPTIMIZERS[0])
    losses = [running.stretch(5) for running in (masked, compact, full)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != pytest.approx(losses[2], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "why"),
    [(PENALTY, "scale_l1"), (HALF, "'bfloat16'"), ({"trains": "scores"}, "'scores'")],
)
def test_engines_that_cannot_say_so(options: dict[str, Any], why: str) -> None:
    task = toy_task(model=mlp, recipe=options)
    model, train = task.build(0), examples(task.train)
    mask = Mask.full(model)
    with pytest.raises(UnsupportedError, match=why):
        plan_program(model, mask, task, train, task.recipe)
    plan, _ = begin(task.build(0), mask, task, train, task.recipe, 0)
    assert plan.engine == "masked"
    with pytest.raises(tb.InputError, match=f"{next(iter(options))}.*train them one by one"):
        ReplicatedSession([model], [mask], task, train, task.recipe, [0])


def test_defaults_leave_identities_as_they_were() -> None:
    assert tb.Recipe().identity() == {}
    assert tb.Recipe(lr=0.1).identity() == {"lr": 0.1}
    assert tb.Recipe(trains="weights", scale_l1=0.0, precision="float32", score_density=None).identity() == {}
    assert tb.Recipe(scale_l1=1e-4, **HALF).identity() == {"scale_l1": 1e-4, "precision": "bfloat16"}
