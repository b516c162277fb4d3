"""A compiled net computes, learns and is stored as the masked model is, whatever part of it is sparse."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from compiled_nets import (
    CLASSES,
    NETS,
    Twice,
    batch,
    close,
    gradients,
    mask_of,
    mlp,
    pair,
    step,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tombola as tb
from tombola.engines.sparse.modules import compile
from tombola.engines.sparse.segment import Room, Segment
from tombola.engines.tracing import UnsupportedError
from tombola.errors import InputError, TombolaError


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_are_the_masked_models(name: str) -> None:
    fast, model, mask = pair(name)
    assert fast.note.count("sparse segment") == NETS[name][2]
    for examples in (7, 64, 65, 130):
        x, y = batch(name, examples)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        for net, inputs in ((fast, ours), (model, theirs)):
            net.zero_grad()
            step(net, inputs, y)
        close(fast(x), model(x))
        close(gradients(fast, mask), gradients(model, mask))
        close(ours.grad, theirs.grad)
    close(dict(fast.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("name", NETS)
def test_evaluation_is_the_masked_models(name: str) -> None:
    fast, model, mask = pair(name)
    x, y = batch(name, 64)
    for net in (fast, model):
        step(net.train(), x, y)
        net.eval()
        net.zero_grad()
    for examples in (1, 7, 300):
        x, y = batch(name, examples)
        with torch.no_grad():
            close(fast(x), model(x))
    for net in (fast, model):  # gradients in evaluation mode go through the running statistics
        step(net, x, y)
    close(gradients(fast, mask), gradients(model, mask))
    close(dict(fast.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", NETS)
def test_training_is_the_masked_models(name: str, optimizer: str) -> None:
    fast, model, mask = pair(name)
    made = [
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if optimizer == "sgd"
        else torch.optim.AdamW(net.parameters(), lr=1e-3, eps=1e-3)
        for net in (fast, model)
    ]
    for number, examples in enumerate((60, 60, 17)):
        x, y = batch(name, examples, seed=number)
        losses = []
        for net, opt in zip((fast, model), made, strict=True):
            opt.zero_grad()
            losses.append(step(net, x, y))
            for n, p in net.named_parameters():
                if net is model and n in mask and p.grad is not None:
                    p.grad *= mask[n]
            opt.step()
        close(losses[0], losses[1])
    close(dict(fast.state_dict()), dict(model.state_dict()), 1e-4)
    for n, kept in mask.items():
        assert not fast.state_dict()[n][~kept].any()


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.02, 0.3, 1.0]), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_any_mask_of_any_mlp(seed: int, density: float, examples: int) -> None:
    torch.manual_seed(seed)
    widths = torch.randint(1, 30, (4,)).tolist()
    model = nn.Sequential(*(m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), nn.ReLU())))
    mask = tb.Mask({n: torch.rand(p.shape) < density for n, p in tb.prunable(model).items()})
    fast = compile(model, mask, torch.zeros(1, widths[0]))
    run = compile(model, mask, torch.zeros(1, widths[0]), inference=True)
    mask.apply_(model)
    x = torch.randn(examples, widths[0])
    for net in (fast, model):
        net(x).square().mean().backward()
    close(gradients(fast, mask), gradients(model, mask))
    close(fast(x).detach(), model(x).detach())
    close(run(x), model(x).detach())


def test_names_are_the_models_and_a_sparse_weight_holds_what_is_kept() -> None:
    fast, model, mask = pair("attention")
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, parameter in fast.named_parameters():
        if name in mask:
            assert parameter.shape == (int(mask[name].sum()),)
        else:
            assert parameter.shape == model.get_parameter(name).shape
    optimizer = torch.optim.AdamW(fast.parameters())
    step(fast, *batch("attention", 8))
    optimizer.step()
    assert optimizer.state[fast.get_parameter("head.weight")]["exp_avg"].shape == (int(mask["head.weight"].sum()),)


@pytest.mark.parametrize("name", NETS)
def test_states_go_both_ways(name: str) -> None:
    fast, model, mask = pair(name)
    before = copy.deepcopy(model.state_dict())
    step(fast, *batch(name, 9))
    torch.optim.SGD(fast.parameters(), lr=1.0).step()
    model.load_state_dict(fast.state_dict())
    close(fast.eval()(batch(name, 9)[0]), model.eval()(batch(name, 9)[0]))
    dense = {n: v + 1 if n in mask else v for n, v in before.items()}
    for assign in (False, True):
        fast.load_state_dict(dense, assign=assign)  # what is pruned is left out
        assert all(torch.equal(v, dense[n] * mask[n] if n in mask else v) for n, v in fast.state_dict().items())
        model.load_state_dict(fast.state_dict())
        close(fast(batch(name, 9)[0]), model(batch(name, 9)[0]))
    outer = nn.ModuleDict({"net": fast})
    outer.load_state_dict(copy.deepcopy(outer.state_dict()))
    assert outer.state_dict()["net." + next(iter(mask))].shape == next(iter(mask.values())).shape


def test_the_model_is_not_changed() -> None:
    torch.manual_seed(0)
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    fast = compile(model, mask_of(model), torch.zeros(1, 12))
    step(fast, *batch("mlp", 8))
    torch.optim.SGD(fast.parameters(), lr=1.0).step()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["mlp", "mixed", "residual"])
def test_passes_may_overlap(name: str) -> None:
    fast, model, mask = pair(name)
    (x1, y1), (x2, y2) = batch(name, 20, 1), batch(name, 30, 2)
    for net in (fast, model):
        first = F.cross_entropy(net(x1), y1)
        second = F.cross_entropy(net(x2), y2)
        with torch.no_grad():
            net(x2 * 3)
        (first * 2 + second).backward()  # type: ignore[no-untyped-call]
        step(net, x2, y2)  # added to what is there
    close(gradients(fast, mask), gradients(model, mask))


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_an_evaluation_between_forward_and_backward_disturbs_nothing(name: str) -> None:
    fast, _, mask = pair(name)
    x, y = batch(name, 20)
    step(copy.deepcopy(fast), x, y)
    wanted = copy.deepcopy(fast)
    step(wanted, x, y)
    loss = F.cross_entropy(fast(x), y)
    with torch.no_grad():
        fast.eval()(x * 2)
    loss.backward()  # type: ignore[no-untyped-call]
    for n, g in gradients(wanted, mask).items():
        assert torch.equal(g, gradients(fast, mask)[n])


def test_repeats_have_the_same_bits_whatever_ran_before() -> None:
    fast, _, _ = pair("residual")
    x, y = batch("residual", 20)
    results = []
    for between in (1, 70, 300):
        fast.zero_grad()
        step(fast, x, y)
        results.append([p.grad.clone() for p in fast.parameters() if p.grad is not None])
        step(fast, *batch("residual", between + 1))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_second_backward_pass_is_right_or_refused() -> None:
    fast, model, mask = pair("mlp")
    x, y = batch("mlp", 20)
    for net in (fast, model):
        loss = F.cross_entropy(net(x), y)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    close(gradients(fast, mask), gradients(model, mask))
    loss = F.cross_entropy(fast(x), y)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    fast(x)
    with pytest.raises(TombolaError, match="second backward pass"):
        loss.backward()  # type: ignore[no-untyped-call]
    loss = F.cross_entropy(fast(x), y)
    torch.optim.SGD(fast.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


def test_memory_is_used_again() -> None:
    fast, _, _ = pair("mlp")
    (segment,) = [m for m in fast._run[0].modules() if isinstance(m, Segment)]
    for examples in (60, 60, 33, 60):
        step(fast, *batch("mlp", examples))
        given_up = fast(batch("mlp", examples)[0])
        del given_up
        gc.collect()
    assert {capacity: len(rooms) for capacity, rooms in segment._free.items()} == {64: 1}


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_kernels_may_want_the_weights_in_another_order(name: str) -> None:
    fast, model, _ = pair(name)
    (segment,) = [m for m in fast._run[0].modules() if isinstance(m, Segment)]
    g = torch.Generator().manual_seed(0)
    orders = [o if o is None else o[torch.randperm(len(o), generator=g).numpy()] for o in segment.order.values()]
    room = Room(segment._translated(64), orders)
    full = [model.get_parameter(name) for name in segment.order]
    given = [p.detach().clone() if o is None else p.detach().flatten()[o] for p, o in zip(full, orders, strict=True)]
    x, ours, at, modes = batch(name, 20)[0], torch.empty(20, CLASSES), segment.addresses(given), segment.modes
    room.forward(x.data_ptr(), ours.data_ptr(), 20, modes, given, at)
    theirs = model(x)
    close(ours, theirs.detach())
    slope = torch.randn(20, CLASSES, generator=g)
    theirs.backward(slope)
    for found, p, o in zip(room.backward(slope.data_ptr(), 0, modes, at), full, orders, strict=True):
        assert p.grad is not None
        close(found, p.grad if o is None else p.grad.flatten()[o])


def test_replaced_data_are_taken_up() -> None:
    fast, model, _ = pair("mlp")
    x, _ = batch("mlp", 5)
    weight = fast.get_parameter("0.weight")
    ours = weight.data
    weight.data = ours * 2
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(2)
        close(fast(x), model(x))
        weight.data = ours
        model.get_parameter("0.weight").mul_(0.5)
        close(fast(x), model(x))
    weight.data = ours.double()
    with pytest.raises(InputError, match=r"'0\.weight' of a compiled net must stay contiguous float32"):
        fast(x)
    weight.data = ours
    y = fast(x).sum()
    weight.data = ours.clone()
    with pytest.raises(TombolaError, match="replaced between a forward pass and its backward pass"):
        y.backward()


def test_part_of_a_net_may_be_frozen_or_in_evaluation() -> None:
    fast, model, mask = pair("residual")
    x, y = batch("residual", 20)
    for net in (fast, model):
        net.get_parameter("conv1.weight").requires_grad_(False)
        net.get_submodule("norm1").eval()
        step(net, x, y)
    assert "conv1.weight" not in gradients(fast, mask)
    close(gradients(fast, mask), gradients(model, mask))
    close(dict(fast.state_dict()), dict(model.state_dict()))


def test_dropout_between_stretches_draws_as_torch_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, CLASSES))
    mask = mask_of(model)
    fast = compile(model, mask, torch.zeros(1, 12))
    mask.apply_(model)
    for net in (fast, model):
        torch.manual_seed(1)
        step(net, *batch("mlp", 20))
    close(gradients(fast, mask), gradients(model, mask))
    close(fast.eval()(batch("mlp", 3)[0]), model.eval()(batch("mlp", 3)[0]))


def test_a_copy_is_a_net_of_its_own() -> None:
    fast, model, _ = pair("residual")
    x, y = batch("residual", 20)
    fast(x)
    copied = copy.deepcopy(fast)
    model.load_state_dict(fast.state_dict())
    step(copied, x, y)
    torch.optim.SGD(copied.parameters(), lr=1.0).step()
    assert not torch.equal(copied.state_dict()["fc.bias"], fast.state_dict()["fc.bias"])
    close(fast.eval()(x), model.eval()(x))
    model.load_state_dict(copied.state_dict())
    close(copied.eval()(x), model(x))


def test_the_note_says_what_runs_where_and_why() -> None:
    fast, _, mask = pair("mixed")
    kept = int(mask["0.2.weight"].sum())
    assert f"0.2.weight {kept / 320:.2%} ({kept} of 320)" in fast.note
    assert "left to torch: operation GELU (_1)" in fast.note
    assert "left to torch: operation LayerNorm (_3)" in fast.note
    assert fast.note.splitlines()[0].strip() in repr(fast)
    assert "kept weights expanded for torch: embed.weight, attention.in_proj_weight" in pair("attention")[0].note


def test_a_module_used_twice_or_with_hooks_is_left_to_torch() -> None:
    torch.manual_seed(0)
    model = Twice()
    fast = compile(model, mask_of(model), torch.zeros(1, 12))
    mask_of(model).apply_(model)
    assert "the module is used 2 times" in fast.note
    close(fast(batch("mlp", 5)[0]), model(batch("mlp", 5)[0]))
    hooked = mlp()
    hooked.get_submodule("0").register_forward_hook(lambda module, inputs, result: result * 2)
    fast = compile(hooked, tb.Mask.full(hooked), torch.zeros(1, 12))
    assert "the module has hooks" in fast.note
    close(fast(batch("mlp", 5)[0]), hooked(batch("mlp", 5)[0]))


def test_what_cannot_be_is_refused() -> None:
    fast, model, mask = pair("normed")
    x = batch("normed", 5)[0]
    for moved in (lambda: fast.double(), lambda: fast.half(), lambda: fast.to("meta")):
        with pytest.raises(InputError, match="stays in float32 on the CPU"):
            moved()  # type: ignore[no-untyped-call]
    fast.float().cpu()
    with pytest.raises(InputError, match=r"takes float32 tensors on the CPU, but got torch\.float64"):
        fast(x.double())
    with pytest.raises(InputError, match=r"inputs of shape \(N, 12\), N > 0, but got \(5, 11\)"):
        fast(x[:, :11])
    with pytest.raises(InputError, match="a single value per channel"):
        fast.train()(x[:1])
    with pytest.raises(InputError, match=r"'1\.weight' has shape \(20, 12\) in the model, but got \(12,\)"):
        fast.load_state_dict({**model.state_dict(), "1.weight": torch.zeros(12)})
    with pytest.raises(TombolaError, match="can't be pickled"):
        pickle.dumps(fast)
    with pytest.raises(InputError, match="already"):
        compile(fast, mask, x)
    with pytest.raises(InputError, match=r"float32 on the CPU, but '1\.weight' is torch\.float64"):
        compile(copy.deepcopy(model).double(), mask, x)
    with pytest.raises(InputError, match="not Sequential and dict"):
        compile(model, dict(mask), x)  # type: ignore[call-overload]
    recurrent = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with pytest.raises(UnsupportedError, match=r"masked weights of LSTM '1' can't be compiled"):
        compile(recurrent, mask_of(recurrent), torch.zeros(2, 3, 4))
    with pytest.raises(TombolaError, match="create_graph"):
        torch.autograd.grad(fast(x).sum(), fast.get_parameter("1.weight"), create_graph=True)


def test_the_example_may_be_left_out_where_the_net_tells_what_it_takes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))
    mask, x = mask_of(model), torch.randn(5, 3, 4, requires_grad=True)
    fast, predict = compile(model, mask), compile(model, mask, inference=True)
    mask.apply_(model)
    for shaped in (x, x.flatten(1)):
        close(fast(shaped), model(shaped))
        close(predict(shaped.detach()), model(shaped))
        close(torch.from_numpy(predict(shaped.detach().numpy())), model(shaped))
    (ours,), (theirs,) = (torch.autograd.grad(net(x).square().sum(), x) for net in (fast, model))
    close(ours, theirs)
    with pytest.raises(InputError, match=r"\(N, 12\)"):
        predict(torch.zeros(5, 3, 5))
    images = nn.Sequential(nn.Conv2d(1, 2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 24 * 24, 3))
    close(compile(images, tb.Mask.full(images))(torch.ones(2, 1, 28, 28)), images(torch.ones(2, 1, 28, 28)))
    anything = nn.Sequential(nn.Conv2d(1, 2, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with pytest.raises(InputError, match="several sizes: give an example"):
        compile(anything, tb.Mask.full(anything))
    with pytest.raises(InputError, match="any usual input: give an example"):
        compile(nn.Conv1d(1, 2, 3), tb.Mask.full(nn.Conv1d(1, 2, 3)))


class Shortcut(nn.Module):
    """What goes in is summed with what comes out of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + self.first(x))


def test_the_gradient_of_an_input_that_is_summed_comes_out() -> None:
    torch.manual_seed(0)
    model = Shortcut()
    mask, x = mask_of(model), torch.randn(7, 8, requires_grad=True)
    fast = compile(model, mask)
    mask.apply_(model)
    for _ in range(2):
        (ours,), (theirs,) = (torch.autograd.grad(net(x).square().sum(), x) for net in (fast, model))
        close(ours, theirs)
