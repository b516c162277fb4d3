"""Streams of random numbers: stable, unrelated, and leaving the global state alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tombola.seeds import global_stream, stream, stream_seed

NAMES = st.lists(st.one_of(st.sampled_from(["init", "order", "control", ""]), st.integers(0, 3)), max_size=3)


@pytest.mark.parametrize(
    ("seed", "names", "derived"),
    [
        (0, (), 2_033_344_993_903_900_207),
        (0, ("init",), 3_330_654_677_893_223_573),
        (0, ("order", 3), 5_172_884_068_272_721_061),
        (1, ("order", 3), 6_344_472_847_082_523_721),
        (2**40, ("control", "reinit", 0), 1_095_532_769_508_273_551),
    ],
)
def test_derived_seeds_are_stable(seed: int, names: tuple[str | int, ...], derived: int) -> None:
    assert stream_seed(seed, *names) == derived


def test_a_stream_is_stable() -> None:
    assert torch.randint(1000, (5,), generator=stream(0, "init")).tolist() == [412, 29, 140, 474, 226]
    assert torch.randperm(6, generator=stream(3, "order", 1)).tolist() == [1, 2, 3, 4, 5, 0]


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), NAMES)
def test_derived_seeds_fit_a_generator(seed: int, names: list[str | int]) -> None:
    derived = stream_seed(seed, *names)
    assert 0 <= derived < 2**63
    assert stream(seed, *names).initial_seed() == derived


@settings(deadline=None)
@given(st.tuples(st.integers(0, 50), NAMES), st.tuples(st.integers(0, 50), NAMES))
def test_different_words_give_different_seeds(a: tuple[int, list[str | int]], b: tuple[int, list[str | int]]) -> None:
    words = ["/".join(map(str, (seed, *names))) for seed, names in (a, b)]
    assert (stream_seed(a[0], *a[1]) == stream_seed(b[0], *b[1])) == (words[0] == words[1])


def test_words_are_told_apart_by_their_text_alone() -> None:
    assert stream_seed(0, "order", 3) == stream_seed(0, "order", "3") == stream_seed(0, "order/3")
    assert stream_seed(0, "order", 3) != stream_seed(0, "order3")


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(4000, generator=stream(seed, name)) for seed in (0, 1) for name in ("a", "b")])
    correlation = torch.corrcoef(draws)
    assert (correlation - torch.eye(4)).abs().max() < 5 / 4000**0.5


def test_a_stream_neither_reads_nor_moves_the_global_state() -> None:
    torch.manual_seed(0)
    first, before = torch.rand(3, generator=stream(5, "x")), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3, generator=stream(5, "x")), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_global_stream_decides_the_block_and_restores_the_state(seed: int, outer: int) -> None:
    torch.manual_seed(outer)
    before = torch.get_rng_state()
    with global_stream(seed, "init"):
        inside = torch.rand(3)
        with global_stream(seed, "noise"):
            torch.rand(7)
        after_inner = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    g = stream(seed, "init")
    assert torch.equal(inside, torch.rand(3, generator=g))
    assert torch.equal(after_inner, torch.rand(3, generator=g))


def test_global_stream_restores_the_state_when_the_block_fails() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="after a draw"), global_stream(0, "init"):
        raise ValueError(f"after a draw: {torch.rand(3)}")
    assert torch.equal(torch.get_rng_state(), before)
