"""The sparse engine is the masked engine: losses, states, resuming, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from random_nets import random_mask
from sparse_nets import Kinks, sparse_net, sparse_task
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.engines.base import Session
from tombola.engines.compact import CompactSession
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import MaskedSession
from tombola.engines.sparse.session import SparseSession
from tombola.engines.tracing import UnsupportedError
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.data.augment import Augmented
from tombola.tasks.task import Task, examples

# A large eps: Adam divides by the size of a gradient, and would make a step of the rounding of a gradient of 0.
RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.05},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "lr_schedule": "steps", "milestones": ("2it",)},
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-2},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.01, "betas": (0.4, 0.9)},
    {"optimizer": "adamw", "lr": 0.01, "eps": 1e-2, "weight_decay": 0.1, "lr_schedule": "cosine", "warmup": "2it"},
]
SIZES = st.sampled_from([(40, 16), (37, 12), (10, 30), (70, 64), (33, 16), (90, 70)])
"""Examples and batch: with remainders of several sizes, a batch larger than the data, a lone example left over."""


def assert_near(found: dict[str, Tensor], exact: dict[str, Tensor], kept: dict[str, Any]) -> None:
    """Equal states to the rounding of float32, but for the running statistics of channels that were dropped.

    A channel with no weight left is the same for all examples, and normalisation divides it by the root of eps: what
    the optimiser keeps of its bias is up to 316 times the rounding of 0.
    """
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        other, buffer = found[name], name.removeprefix("model.")
        assert other.shape == value.shape
        if "running_" in name and kept[buffer][0] is not None:
            value, other = value[kept[buffer][0]], other[kept[buffer][0]]
        if name.startswith("optimizer.") and ".bias." in name and value.dim():
            layer = name.removeprefix("optimizer.").partition(".bias.")[0]
            weight = exact[f"model.{layer}.weight"]
            if weight.dim() > 1:
                none_left = ~weight.flatten(1).any(dim=1)
                assert torch.all((other - value)[none_left].abs() < 2e-4), name
                value, other = value[~none_left], other[~none_left]
        torch.testing.assert_close(
            other.double(), value.double(), rtol=1e-4, atol=5e-5, msg=partial("{}: {}".format, name)
        )


@given(st.integers(0, 2**31), SIZES, st.sampled_from(RECIPES))
@example(1_035_594_289, (40, 16), RECIPES[1])  # a first layer with nothing left, before a normalisation
@settings(max_examples=30, deadline=None)
def test_every_step_on_every_engine_is_that_of_float64(
    seed: int, sizes: tuple[int, int], recipe: dict[str, Any]
) -> None:
    """Step by step from the same state, whichever engine it comes from: over many steps the kink of a single ReLU
    would part any two of them."""
    net, shape = sparse_net(seed)
    mask = random_mask(net, seed)
    task = sparse_task(net, shape, seed, sizes[0], recipe | {"batch": sizes[1]})
    x, y = task.train
    args = (mask, task, examples((x, y)), task.recipe, seed)
    reference = MaskedSession(sparse_net(seed)[0].double(), mask, task, examples((x.double(), y)), task.recipe, seed)
    compact = CompactSession(sparse_net(seed)[0], *args)
    sessions: list[Session] = [SparseSession(net, *args), MaskedSession(sparse_net(seed)[0], *args), compact]
    for step in range(4):
        state = sessions[step % 3].state()
        reference.load({n: v.double() if v.is_floating_point() else v for n, v in state.items()})
        with Kinks() as kinks:
            loss = reference.stretch(1)
        exact = reference.state()
        for session in sessions:
            session.load(state)
            found = session.stretch(1)
            if kinks.margin > 2e-6:
                assert found == pytest.approx(loss, rel=1e-4, abs=1e-5), type(session)
                assert_near(session.state(), exact, compact._compaction.kept)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_states_have_the_masked_engines_names_from_the_beginning(recipe: dict[str, Any]) -> None:
    sparse, masked = sessions_on(image_net, recipe)
    for steps in (0, 1, 2):
        sparse.stretch(steps), masked.stretch(steps)
        ours, theirs = sparse.state(), masked.state()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name
            if not value.dim():
                assert torch.equal(ours[name], value), name
    sparse.load(theirs)
    assert same(sparse.state(), theirs)
    masked.load(sparse.state())
    assert same(masked.state(), theirs)


def image_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


def plain_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))


def learnable(recipe: dict[str, Any], examples: int = 90) -> Task:
    """Images of 2 x 8 x 8 in three classes."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(examples, 2, 8, 8, generator=g)
    y = (x.flatten(1) @ torch.randn(128, 3, generator=g)).argmax(1)
    return Task(model=plain_net, train=(x, y), name="learnable", recipe=tb.Recipe(**({"batch": 20} | recipe)))


def session_on(net: Callable[[], nn.Module], recipe: dict[str, Any], density: float = 0.3) -> SparseSession:
    task, model = learnable(recipe), net()
    mask = tb.prune(tb.score(model, "magnitude"), density)
    return SparseSession(model, mask, task, examples(task.train), task.recipe, 5)


def sessions_on(
    net: Callable[[], nn.Module], recipe: dict[str, Any], density: float = 0.3
) -> tuple[SparseSession, MaskedSession]:
    task, model = learnable(recipe), net()
    mask = tb.prune(tb.score(model, "magnitude"), density)
    masked = MaskedSession(net(), mask, task, examples(task.train), task.recipe, 5)
    return session_on(net, recipe, density), masked


NETS = pytest.mark.parametrize("net", [plain_net, image_net])


@NETS
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_pruned_weights_are_zero_after_every_step_and_negative_ones_train(
    net: Callable[[], nn.Module], recipe: dict[str, Any]
) -> None:
    session, before = session_on(net, recipe), net()
    mask = tb.prune(tb.score(before, "magnitude"), 0.3)
    for _ in range(6):
        session.stretch(1)
        for name, kept in mask.items():
            assert not bool(session.model.get_parameter(name)[~kept].any())
    moved = [session.model.get_parameter(name) != before.get_parameter(name) for name in mask]
    negative = [kept & (before.get_parameter(name) < 0) for name, kept in mask.items()]
    assert (
        torch.cat([m[n] for m, n in zip(moved, negative, strict=True)]).float().mean() > 0.8
    )  # a unit with no way out has no gradient
    moments = {name: value for name, value in session.state().items() if name.startswith("optimizer.")}
    for name, kept in mask.items():
        for entry, value in moments.items():
            if entry.startswith(f"optimizer.{name}.") and value.dim():
                assert not bool(value[~kept].any())
                assert bool(value[kept].any())


@NETS
@pytest.mark.parametrize("recipe", RECIPES[2:], ids=str)
def test_bits_are_the_same_for_every_cut_every_thread_count_and_after_a_kill(
    net: Callable[[], nn.Module], recipe: dict[str, Any]
) -> None:
    straight = session_on(net, recipe)
    straight.stretch(12)  # five steps an epoch: 90 examples in batches of 20
    expected = straight.state()
    for lengths, threads in (((12,), 1), ((1,) * 12, 1), ((3, 7, 2), 2), ((12,), 3)):
        again = session_on(net, recipe | {"threads": threads})
        for steps in lengths:
            again.stretch(steps)
        assert same(again.state(), expected), (lengths, threads)
    for cut in (0, 5, 7):
        first, second = session_on(net, recipe), session_on(net, recipe)
        first.stretch(cut)
        second.stretch(2)  # what it did before is forgotten
        second.load(first.state())
        assert second.step == cut
        second.stretch(12 - cut)
        assert same(second.state(), expected), cut


def test_the_loss_of_a_stretch_is_the_mean_over_its_examples() -> None:
    recipe = {"optimizer": "sgd", "lr": 0.05}
    whole, parts = session_on(plain_net, recipe), session_on(plain_net, recipe)
    losses = [parts.stretch(1) for _ in range(12)]
    sizes = [20, 20, 20, 20, 10] * 2 + [20, 20]
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    assert whole.stretch(12) == pytest.approx(mean, rel=1e-12)


def test_a_stretch_without_steps_and_a_start_in_the_midst() -> None:
    recipe = {"optimizer": "sgd", "lr": 0.05, "start": "7it", "steps": "20it", "lr_schedule": "cosine"}
    sparse, masked = sessions_on(plain_net, recipe)
    assert sparse.step == masked.step == 7
    assert sparse.stretch(0) == 0
    assert sparse.stretch(3) == pytest.approx(masked.stretch(3), rel=1e-5)
    for name, value in masked.model.state_dict().items():
        torch.testing.assert_close(sparse.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_training_that_diverges_says_so() -> None:
    session = session_on(plain_net, {"optimizer": "sgd", "lr": 1e30})
    assert not math.isfinite(session.stretch(10))
    assert not math.isfinite(session.evaluate(session.train)["loss"])


@NETS
def test_it_evaluates_as_torch_does_and_training_goes_on_as_if_nothing_were(net: Callable[[], nn.Module]) -> None:
    recipe = {"optimizer": "adam", "lr": 0.01}
    session, undisturbed = session_on(net, recipe), session_on(net, recipe)
    start = {name: value.clone() for name, value in session.model.state_dict().items()}
    others = [examples(learnable({}, size).train) for size in (1, 64, 65, 200)]
    for steps in (3, 4):
        session.stretch(steps), undisturbed.stretch(steps)
        for data in others:
            now = session.evaluate(data)
            assert now == pytest.approx(evaluate(session.task, session.model, data), rel=1e-5)
            before = session.evaluate(data, start)
            model = net()
            model.load_state_dict(start)
            assert before == pytest.approx(evaluate(session.task, model, data), rel=1e-5)
            assert session.evaluate(data) == now
    assert same(session.state(), undisturbed.state())


class Indexed:
    """A map-style data set, which is not in memory."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def test_it_evaluates_examples_that_it_could_not_train_on() -> None:
    session = session_on(plain_net, {"optimizer": "adam", "lr": 0.01})
    start = {name: value.clone() for name, value in session.model.state_dict().items()}
    session.stretch(3)
    now = session.state()
    x, y = learnable({}).train
    expected = session.evaluate(examples((x, y)))
    assert session.evaluate(examples(Indexed(x, y))) == pytest.approx(expected, rel=1e-5)
    assert session.evaluate(examples(Indexed(x, y)), start) != pytest.approx(expected, rel=1e-5)
    assert same(session.state(), now)
    unlabelled = y.clone()
    unlabelled[::2] = -100  # torch leaves these out of the loss
    found = session.evaluate(examples((x, unlabelled)))
    assert found == pytest.approx(evaluate(session.task, session.model, examples((x, unlabelled))), rel=1e-5)


def test_batch_statistics_in_evaluation_are_those_of_the_batches_that_torch_evaluates() -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Linear(128, 20), nn.BatchNorm1d(20, track_running_stats=False), nn.ReLU(), nn.Linear(20, 3)
        return nn.Sequential(nn.Flatten(), *layers)

    session = session_on(net, {"optimizer": "adam", "lr": 0.01})
    session.stretch(2)
    data = examples(learnable({}, 200).train)
    assert session.evaluate(data) == pytest.approx(evaluate(session.task, session.model, data), rel=1e-5)


def test_it_tells_of_each_layer_what_is_left() -> None:
    session = session_on(image_net, {}, density=0.3)
    assert {"7", "10"} <= session.layers.keys() <= {"0", "4", "7", "10"}
    assert all("kept" in told for told in session.layers.values())


def test_what_compaction_drops_decays_and_unused_parameters_do_not() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare, self.loose = plain_net(), nn.Linear(3, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

    recipe = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
    sparse, masked = sessions_on(Net, recipe, density=0.02)
    before = {name: value.clone() for name, value in sparse.model.state_dict().items()}
    sparse.stretch(1), masked.stretch(1)
    assert len(sparse.program.parameters) > 6  # some are idle
    assert sparse.state().keys() == masked.state().keys()
    for name, value in masked.model.state_dict().items():
        found = sparse.model.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
        if not name.startswith("net.") or name.endswith("bias"):
            assert torch.equal(found, before[name]) != name.startswith("net."), name


def test_a_net_with_empty_layers_trains_what_is_left() -> None:
    task, model, other = learnable({"optimizer": "sgd", "lr": 0.1}), plain_net(), plain_net()
    for empty in (("1.weight",), ("3.weight",), ("5.weight",), ("1.weight", "3.weight", "5.weight")):
        mask = Mask({name: torch.full_like(value, name not in empty) for name, value in Mask.full(model).items()})
        args = mask, task, examples(task.train), task.recipe, 0
        sparse, masked = SparseSession(model, *args), MaskedSession(other, *args)
        assert sparse.stretch(3) == pytest.approx(masked.stretch(3), rel=1e-5)
        for name, value in masked.model.state_dict().items():
            torch.testing.assert_close(sparse.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_an_optimiser_without_kernels_is_named_and_runs_masked(store: tb.Store) -> None:
    with pytest.raises(UnsupportedError, match="sgd, adam and adamw, but the optimizer is 'rmsprop'"):
        session_on(plain_net, {"optimizer": "rmsprop"})
    run = Lab(toy_task(recipe={"optimizer": "rmsprop", "steps": "2it"}), store).train(0)
    assert run.summary["engine"] == "masked"
    assert "the optimizer is 'rmsprop'" in run.summary["engine_reason"]


@pytest.mark.parametrize("at_once", [1, 3_000, 1 << 25])
@pytest.mark.parametrize("width", [6, 16, 28])
@pytest.mark.parametrize("convolves", [True, False])
def test_augmented_images_are_trained_on_as_the_masked_engine_does(
    convolves: bool, width: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of whole blocks of 16 and others, pixels that nothing reads any more; made few steps at a time or all."""
    monkeypatch.setattr("tombola.engines.sparse.session._AT_ONCE", at_once)
    torch.manual_seed(2)
    pixels = 2 * 5 * width
    plain = Arrays(
        torch.randint(256, (50, 2, 5, width), dtype=torch.uint8), torch.arange(50) % 3, (0.4, 0.6), (0.2, 0.3)
    )
    first: list[nn.Module] = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 5 * width, 8)]
    net = nn.Sequential(*(first if convolves else [nn.Flatten(), nn.Linear(pixels, 8)]), nn.ReLU(), nn.Linear(8, 3))
    mask = Mask.full(net)
    if not convolves:
        read = torch.rand(pixels) < 0.5
        mask = Mask({name: kept & read if kept.shape[1] == pixels else kept for name, kept in mask.items()})
    task = toy_task(train=Augmented(plain, pad=1), test=plain, recipe={"lr": 0.05, "optimizer": "sgd", "batch": 16})
    args = (mask, task, task.train, task.recipe, 0)
    ours, theirs = SparseSession(deepcopy(net), *args), MaskedSession(net, *args)
    for steps in (1, 2, 4):  # into the second epoch
        assert ours.stretch(steps) == pytest.approx(theirs.stretch(steps), rel=1e-4)
    for name, value in theirs.state().items():
        torch.testing.assert_close(ours.state()[name], value, rtol=1e-3, atol=1e-4)
