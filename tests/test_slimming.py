"""Slimming: masks of weights from masks of channels, by hand and on random nets, and what engines make of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import random_net
from torch import Tensor, nn
from toy import same

import tombola as tb
from tombola.early_bird import channel_mask, scales
from tombola.engines import begin
from tombola.engines.compact import CompactSession
from tombola.engines.compaction import compact
from tombola.engines.masked import MaskedSession
from tombola.engines.slimming import slim_mask, slimmed
from tombola.engines.sparse.session import SparseSession
from tombola.engines.tracing import UnsupportedError
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.tasks.models.resnet import digits_resnet
from tombola.tasks.models.vgg import vgg
from tombola.tasks.task import Task, examples
from tombola.ticket import Ticket

CLOSE = {"rtol": 1e-8, "atol": 1e-9}
LOOSE = {"rtol": 1e-4, "atol": 1e-5}
# A large eps: else Adam makes as much of a gradient that is 0 but for rounding as of any other.
RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adam", "lr": 0.01, "eps": 1e-3},
    {"optimizer": "adamw", "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1},
]


def vector(text: str) -> Tensor:
    return torch.tensor([c == "1" for c in text])


def rows_and_columns(mask: Mask, name: str) -> tuple[str, str]:
    """The rows and columns of which a mask keeps all of each other, as pictures; nothing else is kept."""
    kernels = mask[name].reshape(*mask[name].shape[:2], -1)
    rows, columns = kernels.any(dim=2).any(dim=1), kernels.any(dim=2).any(dim=0)
    assert torch.equal(kernels, (rows[:, None] & columns)[:, :, None].expand_as(kernels))
    return tuple("".join("1" if on else "0" for on in line) for line in (rows, columns))


def stirred(net: nn.Module, seed: int) -> nn.Module:
    """The net with random scales, shifts and statistics."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.normal_(generator=g)
                module.running_var.uniform_(0.5, 2, generator=g)
    return net


def small_vgg(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return stirred(vgg(11, width=3, classes=4), seed), torch.randn(6, 3, 16, 16)


def small_resnet(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return stirred(digits_resnet(width=4, classes=4), seed), torch.randn(6, 1, 8, 8)


def dense_head(seed: int) -> tuple[nn.Module, Tensor]:
    """Biases under the normalisation, a flattened image, and normalised linear layers."""
    torch.manual_seed(seed)
    layers = (nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    head = (nn.Linear(24, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return stirred(nn.Sequential(*layers, *head), seed), torch.randn(6, 2, 4, 4)


NETS = [small_vgg, small_resnet, dense_head]


# ---- by hand


def test_a_dropped_channel_takes_its_filter_and_what_reads_it() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(16, 2),
    )
    channels = Mask({"1.weight": vector("101"), "4.weight": vector("0110")})
    mask = slim_mask(net, channels, torch.zeros(2, 1, 4, 4))
    assert list(mask) == ["0.weight", "1.weight", "1.bias", "3.weight", "4.weight", "4.bias", "8.weight"]
    assert rows_and_columns(mask, "0.weight") == ("101", "1")
    assert rows_and_columns(mask, "3.weight") == ("0110", "101")
    assert rows_and_columns(mask, "8.weight") == ("11", "0000111111110000")  # 2x2 pixels a channel
    for name in ("1", "4"):
        assert torch.equal(mask[f"{name}.weight"], channels[f"{name}.weight"])
        assert torch.equal(mask[f"{name}.bias"], channels[f"{name}.weight"])
    small = slimmed(net, mask, torch.zeros(2, 1, 4, 4))
    assert {name: list(p.shape) for name, p in small.named_parameters()} == {
        **{"0.weight": [2, 1, 3, 3], "0.bias": [2], "1.weight": [2], "1.bias": [2]},
        **{"3.weight": [2, 2, 3, 3], "4.weight": [2], "4.bias": [2], "8.weight": [2, 8], "8.bias": [2]},
    }


class Residual(nn.Module):
    """A stem and a block, both ending in a normalisation; the head reads the rectified sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.head(F.relu(x + y))


def test_a_stream_stays_where_a_branch_adds_nothing_and_goes_where_nothing_is_left() -> None:
    torch.manual_seed(0)
    net, x = stirred(Residual(), 0), torch.randn(5, 1, 3, 3)
    # The stem lacks channels 0 and 3, the branch 1 and 3: the stream lacks 3 alone.
    channels = Mask({"norm.weight": vector("0110"), "norm1.weight": vector("110"), "norm2.weight": vector("1010")})
    mask = slim_mask(net, channels, x)
    assert rows_and_columns(mask, "stem.weight") == ("0110", "1")
    assert rows_and_columns(mask, "conv1.weight") == ("110", "0110")
    assert rows_and_columns(mask, "conv2.weight") == ("1010", "110")
    assert rows_and_columns(mask, "head.weight") == ("11", "1110")
    small = slimmed(net, mask, x)
    assert {name: list(p.shape)[:2] for name, p in small.named_parameters()} == {
        **{"stem.weight": [2, 1], "norm.weight": [2], "norm.bias": [2]},
        **{"conv1.weight": [2, 2], "norm1.weight": [2], "norm1.bias": [2]},
        **{"conv2.weight": [2, 2], "norm2.weight": [2], "norm2.bias": [2], "head.weight": [2, 3], "head.bias": [2]},
    }
    mask.apply_(net)
    torch.testing.assert_close(small(x), net(x))


def test_a_branch_of_which_nothing_is_left_goes_whole() -> None:
    torch.manual_seed(0)
    net, x = stirred(Residual(), 1), torch.randn(5, 1, 3, 3)
    channels = Mask({"norm2.weight": vector("0000")})
    mask = slim_mask(net, channels, x)
    assert [layer.kept for layer in mask.layers() if layer.name in ("conv1.weight", "conv2.weight")] == [0, 0]
    assert [layer.density for layer in mask.layers() if layer.name in ("stem.weight", "head.weight")] == [1, 1]
    small = slimmed(net, mask, x)
    mask.apply_(net)
    torch.testing.assert_close(small(x), net(x))


def test_names_that_are_no_scales_and_shapes_that_do_not_fit_are_refused() -> None:
    net, x = small_resnet(0)
    with pytest.raises(InputError, match=r"'norm\.wieght' is none\. Did you mean 'norm\.weight'"):
        slim_mask(net, Mask({"norm.wieght": vector("1111")}), x)
    with pytest.raises(InputError, match=r"the mask of 'norm\.weight' has shape \(3,\), but the model's is \(4,\)"):
        slim_mask(net, Mask({"norm.weight": vector("111")}), x)
    with pytest.raises(InputError, match="scales of batch normalisation, and this net has none"):
        slim_mask(nn.Linear(2, 2), Mask({}), torch.zeros(1, 2))


# ---- on random nets


def random_channels(net: nn.Module, seed: int) -> Mask:
    """A random channel mask; a layer in six is empty, one in six whole."""
    g = torch.Generator().manual_seed(seed)
    shares = [0.0, 0.3, 0.5, 0.5, 0.8, 1.0]

    def drawn(channels: int) -> Tensor:
        return torch.rand(channels, generator=g) < shares[int(torch.randint(6, (), generator=g))]

    return Mask({name: drawn(len(scale)) for name, scale in scales(net).items()})


def silenced(channels: Mask) -> Mask:
    """Scales and shifts alone."""
    shifts = {name.replace("weight", "bias"): kept for name, kept in channels.items()}
    return Mask({**channels, **shifts})


def normalised_net(seed: int) -> tuple[nn.Module, Tensor]:
    """A random net that has scales."""
    net, x = random_net(seed)
    has_scales = any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and m.affine for m in net.modules())
    return (net, x) if has_scales else normalised_net((seed * 31 + 7) % 2**31)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_what_a_slim_mask_prunes_has_no_influence(seed: int, other: int) -> None:
    """Without the dropped channels the net gives the same under its mask, and no gradient to what that prunes."""
    net, x = normalised_net(seed)
    channels = random_channels(net, other)
    mask = slim_mask(net, channels, x)
    assert set(mask) == set(tb.prunable(net)) | set(silenced(channels))
    assert Mask({name: mask[name] for name in silenced(channels)}) == silenced(channels)
    silenced(channels).apply_(net)
    whole, weights = net(x), tb.prunable(net)
    loss = (F.softplus(whole) * torch.randn(whole.shape, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            assert bool((gradient[~mask[name]].abs() <= 1e-12 * (1 + gradient.abs().max())).all()), name
    mask.apply_(net)
    torch.testing.assert_close(net(x), whole, **CLOSE)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_slimmed_net_computes_what_the_masked_net_does(seed: int, other: int) -> None:
    net, x = normalised_net(seed)
    mask = slim_mask(net, random_channels(net, other), x[:2])
    found = compact(net, mask, x[:2])
    small, folded = found.model, compact(net, mask, x[:2], fold=True).model
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert same(dict(slimmed(net, mask, x[:2]).state_dict()), dict(small.state_dict()))
    assert same(dict(net.state_dict()), before)
    mask.apply_(net)
    torch.testing.assert_close(folded(x), net.eval()(x), **CLOSE)
    torch.testing.assert_close(small.eval()(x), net(x), **CLOSE)
    torch.testing.assert_close(small.train()(x), net.train()(x), **CLOSE)
    for name, value in found.shrink(net.state_dict()).items():  # the running statistics as well
        torch.testing.assert_close(small.state_dict()[name], value, **CLOSE)


def first_two(model: nn.Module, batch: Any) -> Tensor:
    """Smooth everywhere, so that rounding stays rounding."""
    x, y = batch
    return F.softplus(model(x) * y[:, None]).mean()


def output(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return {"output": model(batch[0]).mean()}


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.sampled_from(RECIPES))
@settings(max_examples=25, deadline=None)
def test_engines_train_alike_step_by_step(seed: int, other: int, recipe: dict[str, Any]) -> None:
    net, x = normalised_net(seed)
    g = torch.Generator().manual_seed(seed)
    data = torch.randn(20, *x.shape[1:], generator=g).double(), torch.randn(20, generator=g).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    mask = slim_mask(net, random_channels(net, other), x)
    task = Task(model=lambda: net, train=data, loss=first_two, metrics=output, name="random", metric="output")
    whole = tb.Recipe(batch=8, steps="10it", **recipe)
    kinds = (MaskedSession, CompactSession)
    masked, small = (k(copy.deepcopy(net), mask, task, examples(data), whole, 3) for k in kinds)
    kept = small._compaction.kept
    for _ in range(3):
        assert small.stretch(1) == pytest.approx(masked.stretch(1), rel=1e-6, abs=1e-9)
        states = masked.state(), small.state()
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            found = states[1][name]
            index = kept[name.removeprefix("model.")][0] if "running_" in name else None
            if index is not None:  # statistics of dropped channels stay as they were
                value, found = value[index], found[index]
            torch.testing.assert_close(
                found, value, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
            )
    for name, entries in mask.items():
        assert bool((small.model.get_parameter(name)[~entries] == 0).all())


# ---- on nets of the library


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("density", [0.3, 0.5, 0.7])
def test_a_slimmed_net_has_nothing_but_what_the_mask_keeps(make: Any, density: float) -> None:
    net, x = make(0)
    mask = slim_mask(net, channel_mask(scales(net), density), x)
    found = compact(net, mask, x)
    assert found.mask.density == 1
    assert found.mask.kept == mask.kept
    mask.apply_(net)
    torch.testing.assert_close(found.model(x), net(x))
    torch.testing.assert_close(found.model.eval()(x), net.eval()(x))


def taught(model: nn.Module, x: Tensor, mask: Mask) -> list[float]:
    """The losses of three steps, guarded by a mask."""
    target, optimizer = torch.linspace(-1, 1, 4 * len(x)).reshape(-1, 4), torch.optim.SGD(model.parameters(), 0.02, 0.9)
    losses = []
    with tb.guard(model, optimizer, mask):
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("make", NETS)
def test_guarded_channels_stay_silent_in_a_loop_of_ones_own(make: Any) -> None:
    net, x = make(1)
    mask = slim_mask(net, channel_mask(scales(net), 0.5), x)
    small = slimmed(net, mask, x)
    assert taught(net, x, mask) == pytest.approx(taught(small, x, Mask({})), rel=1e-4)
    for name, kept in mask.items():
        assert torch.equal(net.get_parameter(name) != 0, kept)


@pytest.mark.parametrize("make", NETS)
def test_tickets_and_costs_take_masks_of_channels(make: Any, tmp_path: Path) -> None:
    net, x = make(2)
    mask = slim_mask(net, channel_mask(scales(net), 0.5), x)
    ticket = Ticket(mask, net.state_dict(), {"method": "early_bird"})
    again = Ticket.load(ticket.save(tmp_path / "a.ticket"))
    assert again == ticket
    assert again.mask == mask
    model = again.model(lambda: make(2)[0])
    torch.testing.assert_close(model(x), slimmed(net, mask, x)(x))
    whole, small = tb.cost(net, mask, example=x), tb.cost(slimmed(net, mask, x), example=x)
    assert whole.kept_flops == small.flops
    assert sum(layer.kept for layer in whole.layers) == mask.kept


def images(x: Tensor) -> Task:
    g = torch.Generator().manual_seed(5)
    data = torch.randn(48, *x.shape[1:], generator=g), torch.randint(4, (48,), generator=g)
    return Task(model=lambda: None, train=data, name="images")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("make", [small_vgg, dense_head])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_sparse_engine_trains_a_net_whose_dropped_channels_can_go(make: Any, recipe: dict[str, Any]) -> None:
    net, x = make(3)
    task, whole = images(x), tb.Recipe(batch=16, steps="6it", **recipe)
    mask = slim_mask(net, channel_mask(scales(net), 0.6), x)
    train = examples(task.train)
    masked, sparse = (k(copy.deepcopy(net), mask, task, train, whole, 0) for k in (MaskedSession, SparseSession))
    for _ in range(3):
        assert sparse.stretch(1) == pytest.approx(masked.stretch(1), rel=1e-4)
    kept = compact(net, mask, x).kept
    for name, value in masked.model.state_dict().items():
        found, index = sparse.model.state_dict()[name], kept[name][0] if "running_" in name else None
        torch.testing.assert_close(*((found, value) if index is None else (found[index], value[index])), **LOOSE)
    for name, entries in mask.items():
        assert bool((sparse.model.get_parameter(name)[~entries] == 0).all())


def test_the_sparse_engine_refuses_a_residual_net_and_the_compact_one_takes_it() -> None:
    net, x = small_resnet(4)
    task, recipe = images(x), tb.Recipe(batch=16, steps="6it")
    mask = slim_mask(net, channel_mask(scales(net), 0.5), x)
    train = examples(task.train)
    reason = "the mask prunes some of 'norm.weight', and these channels are still there"
    with pytest.raises(UnsupportedError, match=reason):
        SparseSession(copy.deepcopy(net), mask, task, train, recipe, 0)
    plan, session = begin(copy.deepcopy(net), mask, task, train, recipe, 0)
    assert plan.engine == "compact"
    assert reason in plan.reason
    masked = MaskedSession(copy.deepcopy(net), mask, task, train, recipe, 0)
    assert session.stretch(3) == pytest.approx(masked.stretch(3), rel=1e-4)


@pytest.mark.parametrize("make", NETS)
def test_a_compiled_net_leaves_masked_normalisation_to_torch(make: Any) -> None:
    net, x = make(5)
    mask = slim_mask(net, channel_mask(scales(net), 0.6), x)
    fast = tb.compile(net, mask, x)
    assert "left to torch: operation BatchNorm" in fast.note
    assert taught(net, x, mask) == pytest.approx(taught(fast, x, Mask({})), rel=1e-4)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, **LOOSE)


@pytest.mark.parametrize("make", NETS)
def test_inference_is_compiled_whole(make: Any) -> None:
    net, x = make(6)
    mask = slim_mask(net, channel_mask(scales(net), 0.5), x)
    found = tb.compile(net, mask, x, inference=True)(x)
    mask.apply_(net)
    torch.testing.assert_close(found, net.eval()(x), **LOOSE)


def test_a_slimmed_net_compiles_whole_where_its_channels_are_gone() -> None:
    net, x = small_vgg(5)
    found = compact(net, slim_mask(net, channel_mask(scales(net), 0.6), x), x)
    fast = tb.compile(found.model, found.mask, x)
    assert "left to torch" not in fast.note
    torch.testing.assert_close(fast(x), found.model(x), **LOOSE)
