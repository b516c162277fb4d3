"""What the sparse engine does at the ends of a step: batches, losses, updates; and the steps themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sparse_tools import JUNK, allocated, assert_untouched_around, collect, run, spread
from torch import Tensor

import tombola as tb
from tombola.engines.sparse import parts
from tombola.engines.sparse.gather import Source
from tombola.engines.sparse.kernel import kernel
from tombola.engines.sparse.loss import CrossEntropy
from tombola.engines.sparse.memory import fields, load_f64, load_i64, store_f64, store_i64
from tombola.engines.sparse.parts import CORRECT, LOSS, aligned, call
from tombola.engines.sparse.run import Table, as_float
from tombola.engines.sparse.update import WIDTH, Optimizer
from tombola.tasks.data.arrays import Arrays
from tombola.tasks.memory import InMemory, in_memory

COUNTS = st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 130])
Floats = NDArray[np.float32]


def held(data: Any) -> InMemory:
    found = in_memory(data)
    assert found is not None
    return found


def data_set(seed: int, shape: tuple[int, ...], whole: bool, channels: bool) -> Arrays:
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 256, (70, *shape), np.uint8) if whole else draw.normal(size=(70, *shape)).astype(np.float32)
    number = shape[0] if channels else 1
    mean, std = (tuple(draw.uniform(0.1, 0.9, number).tolist()) for _ in range(2))
    return Arrays(torch.from_numpy(x), torch.from_numpy(draw.integers(0, 3, 70)), mean, std)


@settings(max_examples=120, deadline=None)
@given(
    COUNTS,
    st.one_of(st.tuples(st.integers(1, 50)), st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 34))),
    st.integers(0, 2),
    st.tuples(*[st.booleans()] * 4),
    st.integers(1, 3),
    st.integers(0, 2**31),
)
def test_a_batch_has_the_bits_that_the_data_set_gives(
    count: int, shape: tuple[int, ...], halo: int, flags: tuple[bool, ...], threads: int, seed: int
) -> None:
    whole, channels, flat, chosen = flags
    data = data_set(seed, shape, whole, channels)
    draw = np.random.default_rng(seed)
    order = draw.integers(0, 70, count)
    expected = data.take(torch.from_numpy(order))[0].numpy()
    columns = None
    if chosen:  # some channels, in any order
        kept = draw.permutation(shape[0])[: draw.integers(1, shape[0] + 1)]
        expected, pixels = expected[:, kept], int(np.prod(shape[1:]))
        columns = (kept[:, None] * pixels + np.arange(pixels)).ravel()
    images = len(shape) == 3 and not flat
    x = allocated(count, expected.shape[1:] if images else (int(np.prod(expected.shape[1:])),), halo if images else 0)
    run([Source(held(data), x, columns).batch()], count, threads, order)
    assert np.array_equal(collect(x, x.value, count)[:count].reshape(expected.shape), expected)
    assert_untouched_around(x, x.value, count)
    assert np.isfinite(x.value).all()  # the padding, too


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_of_the_next_batch_are_asked_for_without_harm(threads: int) -> None:
    data = data_set(0, (33,), True, False)
    x = allocated(20, (33,))
    order = np.random.default_rng(1).permutation(70)
    Table([Source(held(data), x).batch()]).run(order, np.array([20, 20, 20, 10]), threads=threads)
    assert np.array_equal(collect(x, x.value, 10)[:10, :, 0, 0], data.take(torch.from_numpy(order[60:]))[0].numpy())


def loss_of(
    logits: Floats, labels: NDArray[np.int64], order: NDArray[np.int64], rectified: bool = False
) -> tuple[float, Floats, float, int]:
    """Summed loss and gradient in training; summed loss and right answers in evaluation."""
    count, classes = logits.shape
    y = allocated(count, (classes,), rectified=rectified)
    spread(y, y.value, logits, np.float32(3))
    spread(y, y.gradient, logits, JUNK)
    layer = CrossEntropy(y, labels)
    results = []
    for threads in (1, 2):
        trained = run([layer.training()], count, threads, order)
        results.append((as_float(trained[LOSS // 8]), y.gradient.tobytes()))
    assert results[0] == results[1] or np.isnan(results[0][0])
    gradient = collect(y, y.gradient, count)[:, :, 0, 0]
    assert not gradient[count:].any()
    before = y.gradient.copy()
    judged = run([layer.evaluation()], count, 1, order)
    assert np.array_equal(before, y.gradient, equal_nan=True)
    return results[0][0], gradient[:count], as_float(judged[LOSS // 8]), int(judged[CORRECT // 8])


def torch_loss(logits: Floats, targets: NDArray[np.int64]) -> tuple[float, NDArray[np.float64], int]:
    """The same in float64."""
    ours = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    y = torch.from_numpy(targets)
    loss = F.cross_entropy(ours, y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert ours.grad is not None
    return loss.item() * len(y), ours.grad.numpy(), int((torch.from_numpy(logits).argmax(1) == y).sum())


@settings(max_examples=120, deadline=None)
@given(COUNTS, st.integers(1, 40), st.sampled_from([0.0, 1e-3, 1.0, 20.0, 100.0, 1e4]), st.integers(0, 2**31))
def test_cross_entropy_as_in_float64(count: int, classes: int, scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits = (scale * draw.normal(size=(count, classes))).astype(np.float32)
    if seed % 4 == 0:  # the same for all, added: a softmax doesn't see it
        logits += np.float32(1e4)
    labels, order = draw.integers(0, classes, 2 * count), draw.permutation(2 * count)[:count]
    loss, gradient, judged, right = loss_of(logits, labels, order)
    expected, slope, answers = torch_loss(logits, labels[order])
    assert loss == judged == pytest.approx(expected, rel=1e-6, abs=2e-7 * count)
    # exp turns an error of half a unit in the last place of the argument into a relative one of that size.
    assert np.abs(gradient - slope).max() <= 2e-6 / count
    assert right == answers


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.integers(1, 7), st.integers(0, 2**31))
def test_right_answers_with_ties_and_nan_as_argmax_gives_them(count: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.integers(-1, 2, (count, classes)).astype(np.float32)
    logits[draw.random((count, classes)) < 0.1] = draw.choice([np.nan, np.inf, -np.inf])
    labels, order = draw.integers(0, classes, count), np.arange(count)
    assert loss_of(logits, labels, order)[3] == torch_loss(logits, labels)[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_not_hidden(bad: float) -> None:
    logits, labels = np.zeros((20, 3), np.float32), np.zeros(20, np.int64)
    logits[17, 1] = bad
    loss, gradient, judged, _ = loss_of(logits, labels, np.arange(20))
    assert not np.isfinite(loss)
    assert not np.isfinite(judged)
    assert np.isnan(gradient[17]).any()
    assert np.isfinite(gradient[:17]).all()


def test_an_impossible_label_costs_an_infinite_loss() -> None:
    loss, _, judged, _ = loss_of(np.array([[0, -np.inf]], np.float32), np.ones(1, np.int64), np.zeros(1, np.int64))
    assert loss == judged == np.inf


def test_rectified_logits_get_no_gradient_where_they_are_zero() -> None:
    draw = np.random.default_rng(0)
    logits, labels = np.maximum(draw.normal(size=(70, 5)), 0).astype(np.float32), draw.integers(0, 5, 70)
    gradient = loss_of(logits, labels, np.arange(70), rectified=True)[1]
    expected = np.where(logits > 0, torch_loss(logits, labels)[1], 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)
    assert not gradient[logits == 0].any()


OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "weight_decay": 0.01},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "adam"},
    {"optimizer": "adam", "weight_decay": 0.01, "betas": (0.5, 0.9), "eps": 1e-6},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.0, "betas": (0.0, 0.999)},
]


def units(a: Floats, b: Floats, scale: Floats) -> float:
    """The largest difference in units in the last place of ``scale``."""
    return float((np.abs(a.astype(np.float64) - b) / np.spacing(np.abs(scale))).max())


@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_updates_are_those_of_torch_step_by_step(options: dict[str, Any]) -> None:
    """Both go on from the same numbers in every step: what is compared is the rounding of one."""
    from tombola.engines.masked import optimizer_over

    recipe = tb.Recipe(lr=0.01, **options)
    draw = np.random.default_rng(0)
    size = 40 * WIDTH
    value, gradient = aligned(size), aligned(size)
    state = {name: aligned(size) for name in Optimizer.state_names(recipe)}
    value[:] = draw.normal(size=size)
    value[:WIDTH] = 0  # padding and what is dead: it never moves
    update = Optimizer(recipe, value, gradient, state).update()
    theirs = torch.nn.Parameter(torch.from_numpy(value.copy()))
    optimizer = optimizer_over([theirs], recipe)
    beta_1, beta_2 = recipe.betas
    for step in range(1, 31):
        gradient[WIDTH:] = draw.normal(size=size - WIDTH) * draw.choice([1e-6, 1e-2, 1.0], size - WIDTH)
        rate = 0.01 / step
        optimizer.param_groups[0]["lr"] = rate
        theirs.data.copy_(torch.from_numpy(value))
        kept: dict[str, Tensor] = optimizer.state[theirs]
        for name, numbers in state.items():
            if name in kept:
                kept[name].copy_(torch.from_numpy(numbers))
        theirs.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        before = value.copy(), {name: numbers.copy() for name, numbers in state.items()}
        corrections = {"correction_1": 1 - beta_1**step, "correction_2": np.sqrt(1 - beta_2**step)}
        results = []
        for threads in (2, 1):
            value[:] = before[0]
            for name, numbers in state.items():
                numbers[:] = before[1][name]
            run([update], 1, threads, rate=rate, **corrections)
            results.append([array.tobytes() for array in (value, *state.values())])
        assert results[0] == results[1]
        # In the last places of the largest of the numbers that are added.
        slope = np.abs(gradient) + recipe.weight_decay * np.abs(before[0])
        for name, numbers in state.items():
            squared = slope**2 if name == "exp_avg_sq" else slope
            assert units(numbers, kept[name].numpy(), np.maximum(squared, np.abs(before[1][name]))) <= 2, name
        moved = theirs.detach().numpy()
        change = np.abs(moved - before[0]) + rate * slope
        assert units(value, moved, np.maximum(np.abs(before[0]), change)) <= 2
        assert not value[:WIDTH].any()


@kernel
def note(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """Write down what the frame says, step after step."""
    room, cursor = fields(args, 2)
    if thread == 0:
        at = room + load_i64(cursor)
        store_i64(at, load_i64(frame + parts.COUNT))
        store_i64(at + 8, load_i64(load_i64(frame + parts.ORDER)))
        store_i64(at + 16, load_i64(frame + parts.NEXT_COUNT))
        store_i64(at + 24, load_i64(frame + parts.NEXT_ORDER) - load_i64(frame + parts.ORDER))
        store_f64(at + 32, load_f64(frame + parts.RATE))
        store_f64(at + 40, load_f64(frame + parts.CORRECTION_1))
        store_f64(at + 48, load_f64(frame + parts.CORRECTION_2))
        store_i64(cursor, load_i64(cursor) + 56)


@pytest.mark.parametrize("threads", [1, 3])
def test_each_step_has_its_own_frame(threads: int) -> None:
    counts, order = np.array([4, 4, 3]), np.arange(100, 111)
    room, cursor = np.zeros((3, 7), np.int64), np.zeros(1, np.int64)
    rates, corrections = np.array([0.1, 0.2, 0.3]), np.arange(6.0).reshape(3, 2)
    Table([call(note, room, cursor)]).run(order, counts, rates, corrections, threads=threads)
    assert room[:, :4].tolist() == [[4, 100, 4, 32], [4, 104, 3, 32], [3, 108, 0, 24]]
    assert room[:, 4:].view(np.float64).tolist() == [[0.1, 0, 1], [0.2, 2, 3], [0.3, 4, 5]]


@kernel
def leave(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """Count up in this thread's own place."""
    (room,) = fields(args, 1)
    store_i64(room + 64 * thread, load_i64(room + 64 * thread) + 1)


@kernel
def look(args, frame, thread, threads):  # type: ignore[no-untyped-def]
    """Count the steps in which the neighbour's place held another number than one's own."""
    room, wrong = fields(args, 2)
    if load_i64(room + 64 * ((thread + 1) % threads)) != load_i64(room + 64 * thread):
        store_i64(wrong + 64 * thread, load_i64(wrong + 64 * thread) + 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_no_thread_is_ahead_of_another_by_a_call(threads: int) -> None:
    room, wrong, steps = np.zeros((5, 8), np.int64), np.zeros((5, 8), np.int64), 300
    table = Table([call(leave, room), call(look, room, wrong)])
    table.run(np.zeros(steps, np.int64), np.ones(steps, np.int64), threads=threads)
    assert room[:threads, 0].tolist() == [steps] * threads
    assert not wrong.any()
