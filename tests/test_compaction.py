"""Compaction: the compact net is the masked net, on random nets, and by hand on small ones."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nets import literal, masked, random_mask, random_net
from torch import Tensor, nn

from tombola.engines.compaction import Compaction, compact
from tombola.engines.tracing import UnsupportedError
from tombola.errors import InputError
from tombola.mask import Mask
from tombola.tasks.models.lenet import lenet5, lenet300

SEEDS = st.integers(0, 2**31)
CLOSE = {"rtol": 1e-8, "atol": 1e-9}


def compacted(seed: int, fold: bool = False) -> tuple[nn.Module, Tensor, Mask, Compaction]:
    net, x = random_net(seed)
    mask = random_mask(net, seed)
    found = compact(net, mask, x[:2], fold=fold)
    return masked(net, mask), x, mask, found


def widths(found: Compaction) -> dict[str, list[int]]:
    """How many channels of each parameter stay, by name."""
    return {name: list(value.shape) for name, value in found.model.named_parameters()}


# On random nets.


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_outputs_gradients_and_batch_statistics_are_those_of_the_masked_net(seed: int) -> None:
    net, x, mask, found = compacted(seed)
    torch.testing.assert_close(found.model.eval()(x), net.eval()(x), **CLOSE)
    outputs = [model.train()(x) for model in (net, found.model)]
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    toward = torch.randn(outputs[0].shape, dtype=torch.float64)
    for output in outputs:
        (F.softplus(output) * toward).sum().backward()
    whole = {name: p.grad * mask[name] if name in mask else p.grad for name, p in net.named_parameters()}
    gradients = {name: p.grad for name, p in found.model.named_parameters()}
    rebuilt = {name: torch.zeros_like(value) for name, value in whole.items() if name in gradients}
    small = {name: g * found.mask[name] if name in found.mask else g for name, g in gradients.items()}
    found.expand(small, rebuilt)
    for name, gradient in rebuilt.items():  # also says that what was dropped gets none
        torch.testing.assert_close(gradient, whole[name], **CLOSE)
    for name, value in found.shrink(net.state_dict()).items():
        torch.testing.assert_close(found.model.state_dict()[name], value, **CLOSE)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_folded_net_computes_the_same_in_evaluation(seed: int) -> None:
    net, x, _, found = compacted(seed, fold=True)
    torch.testing.assert_close(found.model(x), net.eval()(x), **CLOSE)
    assert not found.model.training
    size = sum(p.numel() for p in found.model.parameters())
    assert size <= sum(p.numel() for p in net.parameters()) + sum(p.shape[0] for p in net.parameters())
    assert all(bool((found.model.get_parameter(name)[~kept] == 0).all()) for name, kept in found.mask.items())


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_way_back_loses_nothing(seed: int) -> None:
    net, _, mask, found = compacted(seed)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    small, dropped = found.shrink(before), found.dropped(before)
    assert {n: v.shape for n, v in small.items()} == {n: v.shape for n, v in found.model.state_dict().items()}
    assert all(torch.equal(found.model.state_dict()[name], value) for name, value in small.items())
    assert small.keys() == before.keys()
    again = {name: value.clone() for name, value in before.items()}
    for name, parameter in net.named_parameters():
        again[name] = torch.full_like(parameter, 7.0) * mask.get(name, torch.tensor(True))
    found.expand(small, again)
    found.restore(dropped, again)
    assert all(torch.equal(again[name], value) for name, value in before.items())
    total = sum(len(values) for values in dropped.values())
    kept = sum(int(mask[n].sum()) if n in mask else p.numel() for n, p in net.named_parameters())
    stay = sum(int(found.mask[n].sum()) if n in found.mask else p.numel() for n, p in found.model.named_parameters())
    assert stay + total == kept


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_net_compacts_no_further_and_a_full_mask_leaves_all(seed: int) -> None:
    _, x, _, found = compacted(seed)
    again = compact(found.model, found.mask, x)
    assert widths(again) == widths(found)
    net, x = random_net(seed)
    plain = compact(net, Mask({}), x)
    assert all(value.shape == plain.model.state_dict()[name].shape for name, value in net.state_dict().items())
    assert plain.gone == {}


# By hand.


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.constant_(layer.weight, 0.5)
    return layer


TWO_LAYERS = literal(
    {
        #   input: 0  1  2  3
        "0.weight": [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]],  # the third unit hears nothing
        "2.weight": [[1, 0, 1], [1, 0, 1]],  # nobody hears the second
    }
)


def test_a_unit_without_inputs_stays_for_its_bias_and_goes_without() -> None:
    net = nn.Sequential(linear(4, 3), nn.ReLU(), linear(3, 2))
    found = compact(net, TWO_LAYERS, torch.zeros(1, 4))
    assert [list(i) if i is not None else i for i in found.kept["0.weight"]] == [[0, 2], [0]]
    assert found.kept["0.bias"][0].tolist() == [0, 2]
    assert found.kept["2.weight"][0] is None
    assert found.kept["2.weight"][1].tolist() == [0, 2]
    assert found.kept["2.bias"] == (None,)
    assert found.mask == literal({"0.weight": [[1], [0]], "2.weight": [[1, 1], [1, 1]]})
    assert found.model.select_input_1.index.tolist() == [0]
    assert {name: places.tolist() for name, places in found.gone.items()} == {"0.weight": [5, 7], "0.bias": [1]}

    net = nn.Sequential(linear(4, 3, bias=False), nn.ReLU(), linear(3, 2))
    found = compact(net, TWO_LAYERS, torch.zeros(1, 4))
    assert found.kept["0.weight"][0].tolist() == [0]
    assert {name: places.tolist() for name, places in found.gone.items()} == {"0.weight": [5, 7], "2.weight": [2, 5]}


def test_sigmoid_of_nothing_is_a_half_and_batch_norm_of_nothing_is_its_bias() -> None:
    for between in (nn.Sigmoid(), nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)):
        net = nn.Sequential(linear(4, 3, bias=False), between, linear(3, 2))
        found = compact(net, TWO_LAYERS, torch.zeros(2, 4))
        assert found.kept["0.weight"][0].tolist() == [0, 2]


def test_constants_fold_into_the_next_bias() -> None:
    net = nn.Sequential(linear(4, 3), nn.ReLU(), linear(3, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        net[2].bias.copy_(torch.tensor([10.0, 20.0]))
    found = compact(net, TWO_LAYERS, torch.zeros(1, 4), fold=True)
    assert widths(found) == {"0.weight": [1, 1], "0.bias": [1], "2.weight": [2, 1], "2.bias": [2]}
    assert found.model.get_parameter("2.bias").tolist() == [11.5, 21.5]  # 0.5 x relu(3) each
    net[2] = linear(3, 2, bias=False)
    found = compact(net, TWO_LAYERS, torch.zeros(1, 4), fold=True)
    assert found.model.get_parameter("2.bias").tolist() == [1.5, 1.5]


def test_padding_keeps_a_constant_from_folding() -> None:
    for padding, stays in ((1, 2), (0, 1)):
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=padding))
        nn.init.constant_(net[0].bias, 1.0)
        mask = Mask({**Mask.full(net), "0.weight": torch.tensor([True, False]).reshape(2, 1, 1, 1)})
        x = torch.randn(2, 1, 4, 4)
        found = compact(net, mask, x, fold=True)
        assert found.model.get_parameter("0.weight").shape[0] == stays
        torch.testing.assert_close(found.model(x), masked(net, mask)(x), rtol=1e-5, atol=1e-6)


def test_batch_norm_folds_into_the_convolution_before_it() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[1].weight.copy_(torch.tensor([2.0, 3.0]))
        net[1].running_mean.copy_(torch.tensor([1.0, 0.0]))
        net[1].running_var.fill_(4.0 - net[1].eps)
    found = compact(net, Mask.full(net), torch.zeros(1, 1, 3, 3), fold=True)
    assert list(found.model.state_dict()) == ["0.weight", "0.bias"]
    weight, bias = (found.model.get_parameter(name) for name in ("0.weight", "0.bias"))
    assert weight[:, 0, 0, 0].tolist() == pytest.approx([1.0, 1.5])
    assert bias.tolist() == pytest.approx([-1.0, 0.0])
    with pytest.raises(InputError, match="a folded net has no way back"):
        found.shrink(net.state_dict())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(x))


def test_a_sum_ties_the_channels_of_both_its_sides() -> None:
    def as_kernels(rows: list[list[int]]) -> list[list[list[list[int]]]]:
        return [[[[entry]] for entry in row] for row in rows]

    mask = literal(
        {
            "stem.weight": as_kernels([[1], [1], [0], [0]]),
            # Channel 1 feeds channel 2, which the stem leaves empty; 3 stays empty on both sides.
            "branch.weight": as_kernels([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
            "head.weight": as_kernels([[1, 0, 1, 1]]),
        }
    )
    net = Residual()
    found = compact(net, mask, torch.zeros(1, 1, 2, 2))
    # The head hears 0 and 2 of the sum: both sides have both. The branch hears 1, which the sum doesn't take.
    assert found.kept["head.weight"][1].tolist() == [0, 2]
    assert [list(i) if i is not None else i for i in found.kept["branch.weight"][:2]] == [[0, 2], [1]]
    assert found.kept["stem.weight"][0].tolist() == [0, 1, 2]
    assert sorted(n for n, _ in found.model.named_children() if "select" in n) == ["select_stem", "select_stem_2"]
    x = torch.randn(3, 1, 2, 2)
    torch.testing.assert_close(found.model(x), masked(net, mask)(x))


def test_a_channel_flattens_to_all_its_pixels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), linear(12, 2))
    features = torch.zeros(2, 12, dtype=torch.bool)
    features[0, 5], features[1, 6] = True, True  # both of the second channel, 2x2 pixels
    found = compact(net, Mask({"3.weight": features}), torch.zeros(1, 1, 3, 3))
    assert found.kept["0.weight"][0].tolist() == [1]
    assert found.kept["3.weight"][1].tolist() == [5, 6]
    assert found.model.select__2.index.tolist() == [1, 2]


def test_a_dead_net_still_gives_its_constant() -> None:
    for net, x in ((lenet300(), torch.randn(4, 1, 28, 28)), (lenet5(), torch.randn(4, 1, 28, 28))):
        last = list(net.children())[-1]
        nn.init.normal_(last.bias)
        nothing = Mask({name: torch.zeros_like(kept) for name, kept in Mask.full(net).items()})
        for fold in (False, True):
            found = compact(net, nothing, x, fold=fold)
            assert torch.equal(found.model(x), last.bias.expand(4, 10))
            assert all(value.shape[0] in (1, 10) for value in found.model.parameters())


def test_lenet_takes_the_pixels_it_hears() -> None:
    net = lenet300()
    pixels = torch.zeros(784, dtype=torch.bool)
    pixels[100:150] = True
    mask = Mask({"fc1.weight": pixels.expand(300, 784)})
    found = compact(net, mask, torch.zeros(1, 1, 28, 28))
    assert widths(found)["fc1.weight"] == [300, 50]
    assert widths(found)["fc2.weight"] == [100, 300]


# What is out of the ordinary.


class Wild(nn.Module):
    """Operations that no rule knows, a module called twice, a weight read from outside, and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = linear(4, 4), linear(4, 4), linear(4, 4), linear(4, 2)
        self.norm, self.idle, self.own = nn.LayerNorm(4), linear(2, 2), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x)) * self.own
        x = self.b(torch.relu(self.b(x)))
        return self.d(F.linear(torch.softmax(self.c(x), dim=1), self.c.weight))


def test_what_no_rule_knows_keeps_its_channels() -> None:
    net, x = Wild(), torch.randn(5, 4)
    keep = torch.tensor([True, False, False, True])
    mask = Mask(
        {f"{name}.weight": keep.expand(4, 4) & keep[:, None] for name in "abc"} | {"d.weight": keep.expand(2, 4)}
    )
    found = compact(net, mask, x)
    torch.testing.assert_close(found.model(x), masked(net, mask)(x))
    assert widths(found)["a.weight"] == [4, 2]  # its inputs are known, its outputs go to LayerNorm
    assert widths(found)["b.weight"] == widths(found)["c.weight"] == [4, 4]
    assert widths(found)["d.weight"] == [2, 2]
    assert "idle.weight" not in found.model.state_dict()
    assert found.kept["idle.weight"][0].tolist() == []
    assert "idle.weight" not in found.gone


class Bad(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc, self.other = kind, nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(()))
        if kind == "tied":
            self.other.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.kind == "control" and y.sum() > 0:
            return x
        if self.kind == "mode":
            y = F.dropout(y, training=self.training)
        if self.kind == "in place":
            y = y + torch.relu_(y)
            return y + self.other(x).relu_() if self.training else y
        if self.kind == "in place later":
            z = self.other(y)
            y.relu_()
            return z + y
        if self.kind == "buffer":
            self.count += 1
        return self.other(y)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("control", "control flow"),
        ("mode", "training and evaluation"),
        ("in place", "training and evaluation"),
        ("in place later", "'fc' is changed in place and then read again"),
        ("buffer", "changes a buffer"),
        ("tied", "'fc.weight' and 'other.weight' are one parameter"),
    ],
)
def test_what_cannot_be_traced_says_why(kind: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        compact(Bad(kind), Mask({}), torch.zeros(2, 3))


def test_hooks_on_the_net_itself_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    net.register_forward_hook(lambda module, inputs, output: output + 1)
    with pytest.raises(UnsupportedError, match="forward hooks"):
        compact(net, Mask({}), torch.zeros(2, 3))


def test_bad_input_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"can't run on an example of shape \(2, 4\)"):
        compact(net, Mask({}), torch.zeros(2, 4))
    with pytest.raises(InputError, match="an example is a batch"):
        compact(net, Mask({}), torch.tensor(0.0))
    with pytest.raises(InputError, match="the mask"):
        compact(net, Mask.full(nn.Linear(3, 3)), torch.zeros(2, 3))
    found = compact(net, Mask({"0.weight": torch.eye(3).bool() & (torch.arange(3) < 2)}), torch.zeros(2, 3))
    with pytest.raises(InputError, match="no 'weight'"):
        found.expand({"weight": torch.zeros(3)}, {})
    with pytest.raises(InputError, match=r"has shape \(3, 2\) in the compact net, but got \(3, 3\)"):
        found.expand({"0.weight": torch.zeros(3, 3)}, net.state_dict())
    with pytest.raises(InputError, match=r"has shape \(3, 3\), but got \(2, 3\)"):
        found.shrink({"0.weight": torch.zeros(2, 3)})


def test_the_original_is_untouched_and_nothing_is_shared() -> None:
    net, x = random_net(5)
    net[1].eval() if isinstance(net, nn.Sequential) else net.act.eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    found = compact(net, random_mask(net, 5), x)
    with torch.no_grad():
        for tensor in found.model.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert set(found.model.state_dict()) == set(before)
    flags = {name: m.training for name, m in net.named_modules()}
    assert all(m.training == flags[n] for n, m in found.model.named_modules() if n in flags)
