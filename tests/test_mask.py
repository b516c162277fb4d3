"""Masks: what they cover, count, compare, change, and refuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tombola.errors import InputError
from tombola.mask import LayerDensity, Mask, prunable


def bools(*rows: str) -> Tensor:
    """``bools("10", "01")`` is the 2x2 identity."""
    return torch.tensor([[c == "1" for c in row] for row in rows])


def drawn(shapes: dict[str, tuple[int, ...]], seed: int, density: float = 0.5) -> Mask:
    g = torch.Generator().manual_seed(seed)
    return Mask({n: torch.rand(shape, generator=g) < density for n, shape in shapes.items()})


SHAPES = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4
)
SEEDS = st.integers(0, 2**31)
DENSITIES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


# What is prunable.


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.bag = nn.EmbeddingBag(7, 4)
        self.fc = nn.Linear(4, 3)
        self.pair = nn.Bilinear(2, 3, 4)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.back = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.bn = nn.BatchNorm2d(6)
        self.ln = nn.LayerNorm(6)
        self.gn = nn.GroupNorm(2, 6)
        self.prelu = nn.PReLU()
        self.lstm = nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3)
        self.cell = nn.GRUCell(4, 5)
        self.joint = nn.MultiheadAttention(4, 2)
        self.apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)
        self.own = nn.Parameter(torch.zeros(3, 3))


def test_prunable_covers_weights_and_neither_biases_nor_normalisation() -> None:
    lstm = [
        f"lstm.weight_{kind}_l{layer}{side}"
        for layer in (0, 1)
        for side in ("", "_reverse")
        for kind in ("ih", "hh", "hr")
    ]
    model = Everything()
    found = prunable(model)
    assert list(found) == [
        "fc.weight",
        "pair.weight",
        "conv.weight",
        "back.weight",
        *lstm,
        "cell.weight_ih",
        "cell.weight_hh",
        "joint.in_proj_weight",
        "joint.out_proj.weight",
        "apart.q_proj_weight",
        "apart.k_proj_weight",
        "apart.v_proj_weight",
        "apart.out_proj.weight",
    ]
    assert tuple(found["conv.weight"].shape) == (6, 2, 3, 3)
    own = dict(model.named_parameters())
    assert all(found[name] is own[name] for name in found)


def test_prunable_covers_embeddings_where_asked() -> None:
    model = Everything()
    assert list(prunable(model, embeddings=True)) == ["words.weight", "bag.weight", *prunable(model)]
    assert list(Mask.full(model, embeddings=True)) == list(prunable(model, embeddings=True))


def test_prunable_follows_subclasses_of_layers() -> None:
    class Scaled(nn.Linear):
        pass

    assert list(prunable(nn.Sequential(Scaled(2, 2), nn.Conv1d(2, 2, 1), nn.Conv3d(2, 2, 1)))) == [
        "0.weight",
        "1.weight",
        "2.weight",
    ]


def test_a_shared_weight_is_listed_once_under_its_first_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=False))
    model[2].weight = model[0].weight
    # The output layer's weight is the embedding's: prunable as the former, known by the latter's name.
    assert list(prunable(model)) == ["0.weight", "1.weight"]
    assert list(prunable(model, embeddings=True)) == ["0.weight", "1.weight"]


def test_a_module_used_twice_is_listed_once() -> None:
    layer = nn.Linear(3, 3)
    assert list(prunable(nn.Sequential(layer, nn.ReLU(), layer))) == ["0.weight"]


def test_full_keeps_every_entry() -> None:
    mask = Mask.full(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)))
    assert (mask.kept, mask.total, mask.density) == (10, 10, 1.0)
    assert mask.layers() == [LayerDensity("0.weight", (2, 3), 6, 6), LayerDensity("2.weight", (2, 2), 4, 4)]


# A mask is a value.


def test_tensors_are_copied_in() -> None:
    given_in = bools("10")
    mask = Mask({"a": given_in})
    given_in.fill_(True)
    assert mask["a"].tolist() == [[True, False]]
    assert mask.kept == 1


def test_a_mask_is_a_read_only_mapping_in_the_order_given() -> None:
    mask = Mask({"b": bools("1"), "a": bools("0")})
    assert list(mask) == ["b", "a"]
    assert len(mask) == 2
    assert "a" in mask
    assert "c" not in mask
    with pytest.raises(TypeError):
        mask["a"] = bools("1")  # type: ignore[index]
    with pytest.raises(KeyError):
        mask["c"]


@pytest.mark.parametrize(
    ("value", "named"),
    [(torch.ones(2), "torch.float32"), (torch.ones(2, dtype=torch.uint8), "torch.uint8"), ([True], "list")],
)
def test_anything_but_bool_tensors_is_refused(value: object, named: str) -> None:
    with pytest.raises(InputError, match=f"a mask holds bool tensors, but 'w' is {named}; compare with a threshold"):
        Mask({"w": value})  # type: ignore[dict-item]


def test_equality_and_hash_look_at_names_and_entries_alone() -> None:
    a = Mask({"a": bools("10"), "b": bools("1")})
    assert a == Mask({"b": bools("1"), "a": bools("10")})
    assert hash(a) == hash(Mask({"b": bools("1"), "a": bools("10")}))
    assert a != Mask({"a": bools("01"), "b": bools("1")})
    assert a != Mask({"a": bools("1", "0"), "b": bools("1")})
    assert a != Mask({"a": bools("10")})
    assert a != {"a": bools("10"), "b": bools("1")}
    assert copy.deepcopy(a) == a


def test_digest_is_stable_across_versions_and_machines() -> None:
    mask = Mask({"fc1.weight": bools("101", "010"), "fc2.weight": bools("11")})
    assert mask.digest == "ee28406f3bd9a89805f208d83f0d37273d31929a7e630f2b0034ce1d2e76f6b8"


def test_digest_depends_on_names_shapes_and_entries_and_not_on_memory_order() -> None:
    base = Mask({"a": bools("100", "010")})
    assert base.digest == Mask({"a": bools("10", "01", "00").T}).digest
    others = [Mask({"b": bools("100", "010")}), Mask({"a": bools("10", "00", "10")}), Mask({"a": bools("100", "011")})]
    assert len({base.digest, *(m.digest for m in others)}) == 4


def test_repr_says_how_much_is_kept() -> None:
    assert repr(Mask({"a": bools("1000")})) == "Mask(1 of 4 kept in 1 layers, density 25.0000%)"


def test_a_mask_of_nothing_is_dense() -> None:
    for mask in (Mask({}), Mask({"a": torch.zeros(0, 3, dtype=torch.bool)})):
        assert (mask.kept, mask.total, mask.density, mask.collapsed()) == (0, 0, 1.0, [])
        assert mask.distance(mask) == 0.0
        assert mask.overlap(mask) == 1.0
        assert all(layer.density == 1.0 for layer in mask.layers())


def test_a_scalar_parameter_can_be_covered() -> None:
    mask = Mask({"gain": torch.tensor(False), "a": bools("11")})
    assert (mask.kept, mask.total) == (2, 3)
    assert mask.channels()["gain"].tolist() == [False]


# Counts, collapse, channels.


def test_layers_and_collapse_by_hand() -> None:
    mask = Mask({"a": bools("110", "000"), "b": bools("00"), "none": torch.zeros(0, 2, dtype=torch.bool)})
    assert [(layer.name, layer.shape, layer.kept, layer.total) for layer in mask.layers()] == [
        ("a", (2, 3), 2, 6),
        ("b", (1, 2), 0, 2),
        ("none", (0, 2), 0, 0),
    ]
    assert [layer.density for layer in mask.layers()] == [1 / 3, 0.0, 1.0]
    assert mask.collapsed() == ["b"]
    assert Mask({"a": bools("0"), "b": bools("0")}).collapsed() == []  # nothing kept anywhere: no collapse of a layer


def test_channels_by_hand() -> None:
    conv = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    conv[1, 0, 1, 1] = True
    mask = Mask({"conv": conv, "bias": torch.tensor([True, False]), "none": torch.zeros(2, 0, dtype=torch.bool)})
    channels = {name: rows.tolist() for name, rows in mask.channels().items()}
    assert channels == {"conv": [False, True, False], "bias": [True, False], "none": [False, False]}


def test_of_channels_by_hand() -> None:
    shapes = {"conv": (2, 1, 1, 2), "fc": (2, 3), "gain": ()}
    mask = Mask.of_channels(shapes, {"conv": torch.tensor([False, True])})
    assert mask["conv"].flatten().tolist() == [False, False, True, True]
    assert mask["fc"].all()
    assert mask["gain"].shape == ()
    assert {n: tuple(t.shape) for n, t in mask.items()} == shapes


@settings(deadline=None)
@given(SHAPES, SEEDS)
def test_of_channels_gives_back_its_channels(shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    wide = {n: shape for n, shape in shapes.items() if shape and math.prod(shape) > 0}
    rows = drawn({n: shape[:1] for n, shape in wide.items()}, seed)
    mask = Mask.of_channels(wide, rows)
    assert {n: t.tolist() for n, t in mask.channels().items()} == {n: t.tolist() for n, t in rows.items()}
    assert mask.kept == sum(int(rows[n].sum()) * math.prod(wide[n][1:]) for n in wide)


def test_of_channels_refuses_what_does_not_fit() -> None:
    shapes = {"fc1.weight": (2, 3), "gain": ()}
    with pytest.raises(InputError, match=r"no parameter 'fc.weight' to take channels from. Did you mean 'fc1.weight'"):
        Mask.of_channels(shapes, {"fc.weight": torch.tensor([True, False])})
    with pytest.raises(InputError, match=r"'fc1.weight' has 2 output channels, but got a vector of shape \(3,\)"):
        Mask.of_channels(shapes, {"fc1.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"'gain' has no output channels, but got a vector of shape \(1,\)"):
        Mask.of_channels(shapes, {"gain": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"a mask holds bool tensors, but 'fc1\.weight' is"):
        Mask.of_channels(shapes, {"fc1.weight": torch.ones(2)})


# Comparing masks.


def test_distance_and_overlap_by_hand() -> None:
    a = Mask({"a": bools("1100"), "b": bools("1")})
    b = Mask({"a": bools("1010"), "b": bools("1")})
    assert a.distance(b) == 2 / 5
    assert a.overlap(b) == 2 / 4
    assert Mask({"a": bools("10")}).distance(Mask({"a": bools("01")})) == 1.0
    assert Mask({"a": bools("00")}).overlap(Mask({"a": bools("00")})) == 1.0
    assert Mask({"a": bools("10")}).overlap(Mask({"a": bools("00")})) == 0.0


@settings(deadline=None)
@given(SHAPES, SEEDS, SEEDS, SEEDS, DENSITIES)
def test_distance_is_a_metric(shapes: dict[str, tuple[int, ...]], x: int, y: int, z: int, density: float) -> None:
    a, b, c = drawn(shapes, x), drawn(shapes, y, density), drawn(shapes, z)
    assert a.distance(a) == 0.0
    assert a.distance(b) == b.distance(a)
    assert 0.0 <= a.distance(b) <= 1.0
    assert (a.distance(b) == 0.0) == (a == b)
    assert a.distance(c) <= a.distance(b) + b.distance(c) + 1e-12


@settings(deadline=None)
@given(SHAPES, SEEDS, SEEDS, DENSITIES)
def test_overlap_and_order_agree_with_sets(shapes: dict[str, tuple[int, ...]], x: int, y: int, density: float) -> None:
    a, b = drawn(shapes, x), drawn(shapes, y, density)
    sets = [{(n, i) for n, t in m.items() for i in t.flatten().nonzero().flatten().tolist()} for m in (a, b)]
    assert a.kept == len(sets[0])
    assert a.overlap(b) == b.overlap(a)
    assert a.overlap(b) == (len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0)
    assert (a <= b) == (sets[0] <= sets[1])
    both = a & b
    assert both.kept == len(sets[0] & sets[1])
    assert both <= a
    assert both <= b
    assert list(both) == list(a)


def test_masks_of_other_parameters_are_not_compared() -> None:
    a = Mask({"a": bools("10"), "b": bools("1"), "c": bools("1")})
    b = Mask({"a": bools("1", "0"), "b": bools("1"), "d": bools("1")})
    for compare in (a.distance, a.overlap, a.__le__, a.__and__):
        with pytest.raises(InputError, match="the two masks don't cover the same parameters; they differ at a, c, d"):
            compare(b)


# Shuffling.


@settings(deadline=None)
@given(SHAPES, SEEDS, SEEDS, DENSITIES)
def test_shuffled_keeps_counts_and_differs_wherever_it_can(
    shapes: dict[str, tuple[int, ...]], x: int, y: int, density: float
) -> None:
    mask = drawn(shapes, x, density)
    other = mask.shuffled(torch.Generator().manual_seed(y))
    assert [layer.kept for layer in other.layers()] == [layer.kept for layer in mask.layers()]
    assert list(other) == list(mask)
    for layer in mask.layers():
        can_differ = 0 < layer.kept < layer.total
        assert torch.equal(other[layer.name], mask[layer.name]) != can_differ


def test_shuffled_differs_even_where_one_permutation_in_two_changes_nothing() -> None:
    mask = Mask({"a": bools("10")})
    for seed in range(20):
        assert mask.shuffled(torch.Generator().manual_seed(seed)) == Mask({"a": bools("01")})


def test_shuffled_is_decided_by_its_generator() -> None:
    mask = drawn({"a": (20, 20)}, 0)
    first, again, other = (mask.shuffled(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_shuffled_reaches_every_position() -> None:
    mask, g = Mask({"a": bools("100", "000")}), torch.Generator().manual_seed(0)
    reached = {int(mask.shuffled(g)["a"].flatten().nonzero()) for _ in range(200)}
    assert reached == {1, 2, 3, 4, 5}


# On a model.


@pytest.mark.parametrize("value", [2.0, -2.0, -0.0, math.nan, math.inf, -math.inf])
def test_apply_gives_pruned_weights_all_zero_bits_and_leaves_the_rest(value: float) -> None:
    first = nn.Linear(2, 2)
    nn.init.constant_(first.weight, value)
    model = nn.Sequential(first, nn.Linear(2, 1))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    Mask({"0.weight": bools("10", "01")}).apply_(model)
    bits = first.weight.detach().view(torch.int32)
    assert bits.flatten()[[1, 2]].tolist() == [0, 0]
    assert torch.equal(bits.flatten()[[0, 3]], before["0.weight"].view(torch.int32).flatten()[[0, 3]])
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])


@settings(deadline=None)
@given(SEEDS, DENSITIES)
def test_apply_is_the_product_with_the_mask(seed: int, density: float) -> None:
    model = nn.Linear(4, 3)
    start = model.weight.detach().clone()
    mask = drawn({"weight": (3, 4)}, seed, density)
    mask.apply_(model)
    assert torch.equal(model.weight, torch.where(mask["weight"], start, 0.0))
    assert model.weight.requires_grad


def test_a_mask_that_does_not_fit_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = copy.deepcopy(model.state_dict())
    fits = {"0.weight": bools("00", "00")}
    with pytest.raises(InputError, match=r"covers '1.weigt', which the model doesn't have. Did you mean '1.weight'\?"):
        Mask({**fits, "1.weigt": bools("00")}).apply_(model)
    with pytest.raises(InputError, match=r"the mask of '1.weight' has shape \(2, 1\), but the model's is \(1, 2\)"):
        Mask({**fits, "1.weight": bools("0", "0")}).apply_(model)
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in before)


def test_parameters_are_the_models_own_in_the_masks_order() -> None:
    last = nn.Linear(2, 1)
    found = Mask({"1.weight": bools("10"), "0.bias": torch.tensor([True, False])}).parameters(
        nn.Sequential(nn.Linear(2, 2), last)
    )
    assert list(found) == ["1.weight", "0.bias"]
    assert found["1.weight"] is last.weight
