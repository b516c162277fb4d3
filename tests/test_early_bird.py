"""Early-Bird tickets: scales, channel masks and the rule that draws, worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import toy_net

import tombola as tb
from tombola.early_bird import channel_mask, distances, drawn_at, scales, settled
from tombola.errors import InputError
from tombola.mask import Mask


def mask_of(text: str) -> Mask:
    """A channel mask from a picture such as ``"11010 011"``: a layer a word."""
    return Mask({f"norm{n}.weight": torch.tensor([c == "1" for c in word]) for n, word in enumerate(text.split())})


def picture(mask: Mask) -> str:
    return " ".join("".join("1" if kept else "0" for kept in layer) for layer in mask.values())


def vectors(*layers: list[float]) -> dict[str, Tensor]:
    return {f"norm{n}.weight": torch.tensor(layer) for n, layer in enumerate(layers)}


# ---- scales


def test_scales_are_the_absolute_gammas_of_every_affine_batch_normalisation_in_order() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.BatchNorm2d(2),
        nn.Sequential(nn.BatchNorm2d(2, affine=False), nn.GroupNorm(1, 2), nn.Flatten(), nn.BatchNorm1d(3)),
        nn.BatchNorm3d(1),
    )
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([-2.0, 0.5]))
        net[3].weight.fill_(-7.0)
    found = scales(net)
    assert {name: scale.tolist() for name, scale in found.items()} == {
        "1.weight": [2.0, 0.5],
        "2.3.weight": [1.0, 1.0, 1.0],
        "3.weight": [7.0],
    }
    found["1.weight"].zero_()
    assert net[1].weight.tolist() == [-2.0, 0.5]


def test_a_net_without_scales_is_refused() -> None:
    with pytest.raises(InputError, match="ranks channels by the scales of batch normalisation, and this net has none"):
        scales(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))


# ---- the channel mask


def test_one_ranking_over_the_net_by_hand() -> None:
    found = vectors([0.9, 0.1, 0.5, 0.4], [0.3, 0.8], [0.2, 0.6, 0.7, 0.05])
    # In order: .9 .8 .7 .6 .5 | .4 .3 .2 .1 .05
    assert picture(channel_mask(found, 0.5)) == "1010 01 0110"
    assert picture(channel_mask(found, 1.0)) == "1111 11 1111"


def test_a_layer_that_would_be_emptied_keeps_its_best_in_place_of_the_worst_of_the_others() -> None:
    found = vectors([0.9, 0.8, 0.7, 0.6], [0.01, 0.03, 0.02], [0.5, 0.4, 0.3])
    # Half of 10 channels: the plain ranking takes .9 .8 .7 .6 .5 and nothing of the second layer.
    assert picture(tb.prune(found, 0.5)) == "1111 000 100"
    assert picture(channel_mask(found, 0.5)) == "1110 010 100"
    assert picture(channel_mask(found, 0.3)) == "1000 010 100"  # one each is all there is


def test_equal_scales_are_kept_from_the_first_on() -> None:
    found = vectors([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert picture(channel_mask(found, 0.5)) == "110 100"
    assert picture(channel_mask(found, 2 / 3)) == "111 100"


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    density=st.floats(0, 1),
    levels=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_the_count_is_exact_and_no_layer_is_empty(sizes: list[int], density: float, levels: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    found = vectors(*(torch.randint(levels, (size,), generator=g).tolist() for size in sizes))
    count = round(density * sum(sizes))
    if count < len(sizes):
        with pytest.raises(
            InputError, match=f"there are {len(sizes)} of them, but density .* keeps {count} of {sum(sizes)}"
        ):
            channel_mask(found, density)
        return
    mask = channel_mask(found, density)
    assert mask.kept == count
    assert all(layer.kept >= 1 for layer in mask.layers())
    plain = tb.prune(found, density)
    if not plain.collapsed():
        assert mask == plain
    for name, kept in mask.items():  # inside a layer the ranking is the plain one
        if not bool(kept.all()):
            assert found[name][kept].min() >= found[name][~kept].max()


def test_what_cannot_be_ranked_or_kept_is_refused() -> None:
    with pytest.raises(InputError, match=r"between 0 and 1, but got 1\.5"):
        channel_mask(vectors([1.0]), 1.5)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"those of 'norm1\.weight' are not: did the training diverge"):
            channel_mask(vectors([1.0], [wrong, 2.0]), 0.5)


def test_the_scales_of_a_net_give_its_mask() -> None:
    net = toy_net()
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1, 0.9, 24))
    mask = channel_mask(scales(net), 0.25)
    assert {name: kept.nonzero().flatten().tolist() for name, kept in mask.items()} == {
        "1.weight": [0, 1, 2, 3, 22, 23]
    }


# ---- distances and the rule

# Ten channels in two layers, five kept; beside each the number of channels on which it differs from the one before.
STREAM = [
    mask_of("11111 00000"),  # 0
    mask_of("11110 10000"),  # 1: 2
    mask_of("11100 11000"),  # 2: 2
    mask_of("11100 11000"),  # 3: 0
    mask_of("11100 11000"),  # 4: 0
    mask_of("11100 10100"),  # 5: 2
    mask_of("11100 11000"),  # 6: 2
    mask_of("11100 11000"),  # 7: 0
]
# Differing channels of each with each.
DIFFERING = [
    [0, 2, 4, 4, 4, 4, 4, 4],
    [2, 0, 2, 2, 2, 2, 2, 2],
    [4, 2, 0, 0, 0, 2, 0, 0],
    [4, 2, 0, 0, 0, 2, 0, 0],
    [4, 2, 0, 0, 0, 2, 0, 0],
    [4, 2, 2, 2, 2, 0, 2, 2],
    [4, 2, 0, 0, 0, 2, 0, 0],
    [4, 2, 0, 0, 0, 2, 0, 0],
]


def test_distances_are_the_shares_of_differing_channels() -> None:
    found = distances(STREAM)
    assert found.dtype == torch.float64
    assert found.tolist() == [[count / 10 for count in row] for row in DIFFERING]
    assert distances([]).shape == (0, 0)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_distances_are_those_of_masks(rows: list[list[bool]]) -> None:
    masks = [Mask({"a": torch.tensor(row[:3]), "b": torch.tensor(row[3:])}) for row in rows]
    found = distances(masks)
    assert all(found[i, j] == a.distance(b) for i, a in enumerate(masks) for j, b in enumerate(masks))


@pytest.mark.parametrize(
    ("window", "distance", "drawn"),
    [
        # Looks at which the newest of a full queue is near enough to each of the others. Window 3: looks 2 to 7 have
        # largest distances 4, 2, 0, 2, 2 (against look 5), 2 channels of ten.
        (3, 0.0, [4]),
        (3, 0.1, [4]),
        (3, 0.2, [3, 4, 5, 6, 7]),
        (3, 0.4, [2, 3, 4, 5, 6, 7]),
        # Window 5: looks 4 to 7 have 4, 2, 2, 2.
        (5, 0.1, []),
        (5, 0.2, [5, 6, 7]),
        (5, 0.19, []),
        (2, 0.0, [3, 4, 7]),
        (9, 1.0, []),  # the queue is never full
    ],
)
def test_a_ticket_is_drawn_where_no_distance_in_a_full_queue_exceeds_the_threshold(
    window: int, distance: float, drawn: list[int]
) -> None:
    found = [n for n in range(len(STREAM)) if settled(STREAM[: n + 1], window, distance)]
    assert found == drawn
    assert drawn_at(STREAM, window, distance) == (drawn[0] if drawn else None)


def test_a_distance_of_exactly_a_tenth_draws_and_one_more_channel_does_not() -> None:
    """The authors' rule: no ticket while a distance is above 0.1."""
    channels = 30
    first = Mask({"a": torch.arange(channels) < 15})

    def off(count: int) -> Mask:
        return Mask({"a": first["a"] ^ (torch.arange(channels) < count)})

    assert settled([off(3), off(0), off(1), off(2), first])
    assert not settled([off(4), off(0), off(1), off(2), first])
    # It is the newest mask that is compared: the others may be further from each other.
    last = Mask({"a": first["a"] ^ (torch.arange(channels) >= 27)})
    assert last.distance(off(3)) == 0.2
    assert settled([off(3), last, off(0), off(0), first])


def test_a_mask_that_has_left_the_queue_does_not_matter() -> None:
    far, near = mask_of("00000 11111"), mask_of("11111 00000")
    assert not settled([far, near, near, near, near])
    assert settled([far, near, near, near, near, near])
    assert not settled([near, near, near, near, near, far])
    assert not settled([near] * 4)


def test_windows_distances_and_masks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="window of 2 or more, but got 1"):
        settled(STREAM, window=1)
    with pytest.raises(InputError, match=r"between 0 and 1, but got -0\.1"):
        drawn_at(STREAM, distance=-0.1)
    other = Mask({"another": torch.ones(10, dtype=torch.bool)})
    for use in (distances, lambda masks: settled(masks, 2)):
        with pytest.raises(InputError, match="don't cover the same parameters"):
            use([STREAM[0], other])
