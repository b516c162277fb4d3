"""Texts as data: vocabularies, streams that are read side by side, stretches; all worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_language_modelling import text

from tombola.engines.masked import epoch_order
from tombola.errors import InputError
from tombola.tasks.language.corpus import Streams, Stretches, Vocabulary

# Words


def test_a_vocabulary_has_the_most_frequent_words_first() -> None:
    tokens = ["b", "a", "b", "c", "a", "b", "<unk>", "d"]
    whole = Vocabulary.of(tokens, 99)
    assert whole.words == ("b", "a", "<unk>", "c", "d")
    assert whole.numbers(["d", "b", "never seen"]).tolist() == [4, 0, 2]
    few = Vocabulary.of(tokens, 3)
    assert few.words == ("b", "a", "<unk>")
    assert few.numbers(tokens).tolist() == [0, 1, 0, 2, 1, 0, 2, 2]
    assert Vocabulary.of(["x", "y"], 2).words == ("x", "<unk>"), "there is always a word for what is unknown"


# Batches


def test_streams_by_hand() -> None:
    data = Streams(torch.arange(23), streams=2, segment=3)  # 11 tokens a stream: 3 segments, 2 tokens left over
    assert len(data) == 6
    tokens, targets, streams, begins = data.take(torch.tensor([0, 1, 2, 5]))
    assert tokens.tolist() == [[0, 1, 2], [11, 12, 13], [3, 4, 5], [17, 18, 19]]
    assert torch.equal(targets, tokens + 1)
    assert streams.tolist() == [2, 2, 2, 2], "by themselves they are of no stream"
    assert begins.tolist() == [True] * 4
    tokens, targets, streams, begins = data.take(torch.tensor([2, 3]) + 6 * (1 + 20))  # from place 20 of the ring
    assert tokens.tolist() == [[0, 1, 2], [11, 12, 13]]
    assert targets.tolist() == [[1, 2, 3], [12, 13, 14]]
    assert (streams.tolist(), begins.tolist()) == ([0, 1], [False, False])
    tokens, targets, *_, begins = data.take(torch.tensor([0 + 6 * (1 + 20)]))
    assert (tokens.tolist(), targets.tolist(), begins.tolist()) == ([[20, 21, 22]], [[21, 22, 0]], [True])


@given(
    length=st.integers(8, 60),
    streams=st.integers(1, 4),
    segment=st.integers(1, 5),
    batch=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_an_epoch_goes_on_in_each_stream_where_it_stopped(
    length: int, streams: int, segment: int, batch: int, seed: int
) -> None:
    if length < streams * segment:
        with pytest.raises(InputError, match="a text must be"):
            Streams(torch.arange(length), streams, segment)
        return
    data = Streams(torch.arange(length), streams, segment)
    order = epoch_order(seed, 0, data)
    assert len(order) == len(data)
    last: dict[int, int] = {}
    read: list[int] = []
    for index in torch.split(order, min(batch, streams)):
        tokens, targets, numbers, begins = data.take(index)
        assert len(set(numbers.tolist())) == len(numbers), "a stream is read at one place at a time"
        assert torch.equal(targets[:, :-1], tokens[:, 1:])
        for row, number in enumerate(numbers.tolist()):
            assert bool(begins[row]) == (number not in last)
            if number in last:
                assert int(tokens[row, 0]) == last[number]
            last[number] = int(targets[row, -1])
        read += targets.flatten().tolist()
    assert len(set(read)) == len(read) == len(data) * segment, "no token is a target twice in an epoch"
    again, other = epoch_order(seed, 0, data), epoch_order(seed, 0, data, draw=1)
    assert torch.equal(order, again)
    assert torch.equal(order % len(data), other % len(data))


def test_epochs_and_draws_begin_at_places_of_their_own() -> None:
    data = Streams(text(300), 4, 6)
    orders = [epoch_order(0, epoch, data, draw) for epoch in (0, 1, 2) for draw in (0, 1)]
    assert len({int(order[0]) for order in orders}) == 6
    assert epoch_order(0, 1, data).tolist() == (torch.arange(len(data)) + orders[2][0]).tolist()


def test_a_batch_may_not_read_a_stream_at_two_places() -> None:
    data = Streams(text(300), 4, 6)
    with pytest.raises(InputError, match="read in 4 streams, but the batch is 5: set it to 4 or less"):
        data.take(epoch_order(0, 0, data)[:5])
    assert len(data.take(torch.arange(40))[0]) == 40, "by themselves, any number"


def test_stretches_by_hand() -> None:
    data = Stretches(torch.arange(8), length=3)
    ((tokens, targets),) = data.batches(1000)
    assert tokens.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 7]]
    assert targets.tolist() == [[1, 2, 3], [4, 5, 6], [7, -1, -1]]
    assert [len(part) for part, _ in data.batches(2)] == [2, 1]


@given(length=st.integers(2, 40), stretch=st.integers(1, 45))
def test_every_token_but_the_first_is_a_target_once(length: int, stretch: int) -> None:
    data = Stretches(torch.arange(length), stretch)
    pairs = [
        (t, w) for tokens, targets in data.batches(3) for t, w in zip(tokens.flatten(), targets.flatten(), strict=True)
    ]
    assert [(int(t), int(w)) for t, w in pairs if w >= 0] == [(i, i + 1) for i in range(length - 1)]


def test_data_of_another_text_or_reading_have_another_digest() -> None:
    tokens = text(60)
    data = [Streams(tokens, 4, 6), Streams(tokens, 3, 6), Streams(tokens, 4, 5), Streams(tokens.flip(0), 4, 6)]
    data += [Stretches(tokens, 6), Stretches(tokens, 7)]  # type: ignore[list-item]
    assert len({part.digest for part in data}) == 6
    assert Streams(tokens.clone(), 4, 6).digest == data[0].digest


@pytest.mark.parametrize(
    "make",
    [
        lambda: Streams(torch.zeros(60)),
        lambda: Streams(torch.zeros(60, dtype=torch.int64), streams=0),
        lambda: Stretches(torch.zeros(1, dtype=torch.int64)),
        lambda: Stretches(torch.zeros(9, dtype=torch.int64), length=0),
        lambda: Vocabulary.of(["a"], 0),
    ],
)
def test_what_is_no_text_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match=r"but got|but is"):
        make()
