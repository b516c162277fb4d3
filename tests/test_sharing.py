"""Weight sharing: k-means against Lloyd's algorithm by brute force, its start and ties by hand, what is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tombola.errors import InputError
from tombola.mask import Mask
from tombola.sealed import tensor_bytes
from tombola.shipping.sharing import share, shared_ticket
from tombola.ticket import Ticket

torch.set_num_threads(1)


def shared(values: Tensor, bits: int) -> Tensor:
    """The values shared, all of them kept."""
    return share({"w": values}, Mask({"w": torch.ones(values.shape, dtype=torch.bool)}), bits)["w"]


def lloyd(values: list[float], clusters: int) -> list[float]:
    """Each value's centroid, by comparing every value to every centroid in every round."""
    low, high = min(values), max(values)
    centroids = [low + (high - low) * i / (clusters - 1) for i in range(clusters)]
    before: list[int] = []
    while True:
        nearest = [min(range(len(centroids)), key=lambda c: abs(v - centroids[c])) for v in values]
        used = sorted(set(nearest))
        members = [[v for v, c in zip(values, nearest, strict=True) if c == u] for u in used]
        centroids = [math.fsum(m) / len(m) for m in members]
        nearest = [used.index(c) for c in nearest]
        if nearest == before:
            return [centroids[c] for c in nearest]
        before = nearest


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 60), st.floats(0.2, 3))
@settings(deadline=None)
def test_k_means_is_lloyds_algorithm(seed: int, bits: int, count: int, skew: float) -> None:
    drawn = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values = drawn.sign() * drawn.abs() ** skew
    expected = values.tolist() if count <= 2**bits else lloyd(values.tolist(), 2**bits)
    torch.testing.assert_close(shared(values, bits), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_centroids_start_evenly_between_the_least_and_the_greatest_value() -> None:
    """From 0, 4, 8, 12 the two in the middle get nothing and are dropped, as (0.4 + 4) / 2 is above all but the last.

    From centroids on the values themselves each of the small ones would have had a cluster.
    """
    found = shared(torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 12.0]), 2)
    torch.testing.assert_close(found, torch.tensor([0.2] * 5 + [12.0]))
    # From 0 and 6: 4 and 5 go up, to (4 + 5 + 6) / 3; then the middle is (0.5 + 5) / 2, and nothing moves.
    assert shared(torch.tensor([0.0, 1.0, 4.0, 5.0, 6.0]), 1).tolist() == [0.5, 0.5, 5, 5, 5]


def test_of_two_equally_near_centroids_the_lower_one_counts() -> None:
    """5 lies between 0 and 10: below, it leaves (0 + 4 + 5) / 3 = 3 and 10; above, it would leave 2 and 7.5."""
    assert shared(torch.tensor([0.0, 4.0, 5.0, 10.0]), 1).tolist() == [3, 3, 3, 10]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 3))
@settings(deadline=None)
def test_few_values_each_in_its_cluster_whatever_the_numbers(numbers: list[float], bits: int) -> None:
    values = torch.tensor(numbers)
    found = shared(values, bits)
    assert found.dtype == values.dtype
    assert len(set(found.tolist())) <= 2**bits
    order = values.argsort(stable=True)
    assert bool((found[order].diff() >= 0).all())  # a cluster is a stretch of values
    for centroid in found.unique():
        members = values[found == centroid]
        assert bool((members.min() <= centroid) & (centroid <= members.max()))
    assert shared(found, bits).tolist() == found.tolist()  # what is shared already stays


def test_the_order_of_the_values_changes_nothing() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shared(values[order], 3), shared(values, 3)[order])
    assert torch.equal(shared(values.reshape(20, 25), 3), shared(values, 3).reshape(20, 25))


def test_a_layer_with_few_values_keeps_them_bit_for_bit() -> None:
    few = torch.tensor([0x7FC00001, -(2**31), 0, 0x3F800000] * 3, dtype=torch.int32).view(torch.float32)
    assert torch.equal(tensor_bytes(shared(few, 2)), tensor_bytes(few))  # NaN, -0.0, 0.0, 1.0
    assert shared(torch.tensor([True, False, True]), 1).tolist() == [True, False, True]
    assert shared(torch.empty(0), 1).shape == (0,)
    assert shared(torch.tensor(3.5), 1).tolist() == 3.5


def test_only_kept_values_count_and_a_kept_zero_stays_kept() -> None:
    values = {"w": torch.tensor([[-1.0, 100.0, 0.0], [1.0, 100.0, 0.0]]), "b": torch.tensor([7.0])}
    mask = Mask({"w": torch.tensor([[True, False, True], [True, False, False]])})
    found = share(values, mask, 1)
    # From -1 and 1 the 0 goes down: (-1 + 0) / 2.
    assert found["w"].tolist() == [[-0.5, 0, -0.5], [1, 0, 0]]
    assert found["b"] is values["b"]
    assert values["w"][0, 1] == 100  # what was given is left as it was
    zero = Ticket(mask, {"w": torch.tensor([[-3.0, 0.0, 0.0], [3.0, 0.0, 0.0]])}, {})
    again = shared_ticket(zero, 2)
    assert again.mask.kept == 3
    assert again is zero


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_centroids_are_rounded_to_the_dtype(dtype: torch.dtype) -> None:
    found = shared(torch.tensor([0, 1, 1, 10], dtype=dtype), 1)
    assert found.dtype == dtype
    assert found.tolist() == [torch.tensor(2 / 3, dtype=torch.float64).to(dtype).item()] * 3 + [10]


def test_the_greatest_and_the_smallest_numbers_neither_overflow_nor_end_in_a_warning() -> None:
    huge = torch.tensor([-1.7e308, -1.6e308, 1.6e308, 1.7e308], dtype=torch.float64)
    torch.testing.assert_close(shared(huge, 1), torch.tensor([-1.65e308] * 2 + [1.65e308] * 2, dtype=torch.float64))
    tiny = torch.tensor([0.0, 5e-324, 1e-322, 1.05e-322], dtype=torch.float64)
    assert shared(tiny, 1).tolist() == [0, 0, 1e-322, 1e-322]


def test_bits_by_pattern() -> None:
    values = {name: torch.linspace(-1, 1, 100) ** 3 for name in ("conv1", "conv2", "fc", "other")}
    mask = Mask({name: torch.ones(100, dtype=torch.bool) for name in values})
    found = share(values, mask, {"conv1": 1, "conv*": 3, "fc": 2})
    sizes = {name: value.unique().numel() for name, value in found.items()}
    assert sizes["conv1"] == 2
    assert 4 < sizes["conv2"] <= 8
    assert 2 < sizes["fc"] <= 4
    assert 8 < sizes["other"] <= 32


def test_a_ticket_says_that_its_values_are_shared() -> None:
    ticket = Ticket(Mask({"w": torch.ones(9, dtype=torch.bool)}), {"w": torch.arange(9.0)}, {"task": "t"})
    found = shared_ticket(ticket, 1)
    assert found.origin == {"task": "t", "shared": {"bits": 1}}
    assert found.values["w"].tolist() == [2.0] * 5 + [6.5] * 4
    assert found.mask == ticket.mask
    assert shared_ticket(ticket, 4) is ticket


@pytest.mark.parametrize(
    ("values", "bits", "said"),
    [
        (torch.arange(9.0), 0, "1 to 12 bits, but got 0"),
        (torch.arange(9.0), 13, "1 to 12 bits, but got 13"),
        (torch.arange(9.0), 5.0, "1 to 12 bits, but got 5.0"),
        (torch.arange(9.0), {"w": 0}, "1 to 12 bits, but got 0"),
        (torch.arange(9.0), {"v*": 2}, r"fits the pattern 'v\*'"),
        (torch.arange(9), 1, "'w' is torch.int64"),
        (torch.arange(9).to(torch.complex64), 1, "'w' is torch.complex64"),
        (torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, math.inf]), 1, "finite weights can be shared, but 'w'"),
        (torch.arange(8.0), 1, r"shape \(9,\), but its values have shape \(8,\)"),
    ],
)
def test_bad_input_is_refused(values: Tensor, bits: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        share({"w": values}, Mask({"w": torch.ones(9, dtype=torch.bool)}), bits)


def test_a_mask_of_other_parameters_is_refused() -> None:
    with pytest.raises(InputError, match="covers 'w', which has no values"):
        share({"v": torch.ones(1)}, Mask({"w": torch.ones(1, dtype=torch.bool)}), 1)
