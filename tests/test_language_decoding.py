"""The Transformer and its decoding: what positions may see, and translations found step by step, greedy or by beam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tombola.costs import cost
from tombola.errors import InputError
from tombola.seeds import global_stream, stream
from tombola.tasks.language.decoding import Hypothesis, beam_search, greedy, limits
from tombola.tasks.models.transformer import BEGIN, END, PAD, Transformer, positions

WORDS = 14


def net(seed: int = 0, *, spread: float = 1.0) -> Transformer:
    """A net with weights of such a size that its scores differ."""
    with global_stream(seed, "init"):
        model = Transformer(WORDS, 8, heads=2, hidden=12, layers=2, dropout=0.3)
        for p in model.parameters():
            if p.dim() > 1:
                p.data.mul_(spread)
    return model.eval()


def sentences(count: int, longest: int = 9, seed: int = 1) -> Tensor:
    g = stream(seed, "sentences")
    made = torch.full((count, longest), PAD)
    for row in range(count):
        length = 2 + int(torch.randint(longest - 1, (), generator=g))
        made[row, :length] = torch.randint(3, WORDS, (length,), generator=g)
        made[row, 0], made[row, length - 1] = BEGIN, END
    return made


def both(count: int = 6) -> Tensor:
    return torch.stack((sentences(count), sentences(count, seed=2)), dim=1)


# What positions may see


def test_what_comes_later_does_not_matter() -> None:
    model, pairs = net(), both()
    scores = model(pairs)
    for place in range(1, pairs.shape[2]):
        changed = pairs.clone()
        changed[:, 1, place:] = torch.randint(PAD, WORDS, changed[:, 1, place:].shape, generator=stream(3, "other"))
        again = model(changed)
        assert torch.allclose(again[:, :place], scores[:, :place], atol=1e-6)
        if place < pairs.shape[2] - 1:
            assert not torch.allclose(again[:, place:], scores[:, place:], atol=1e-3), "what comes before does"
    changed = pairs.clone()
    changed[:, 0, 1] = torch.where(pairs[:, 0, 1] == 5, 6, 5)
    assert not torch.allclose(model(changed)[:, 0], scores[:, 0], atol=1e-3), "and so does the source"


def test_padding_does_not_matter() -> None:
    model, pairs = net(), both()
    wider = torch.nn.functional.pad(pairs, (0, 5), value=PAD)
    assert torch.allclose(model(wider)[:, : pairs.shape[2] - 1], model(pairs), atol=1e-6)
    for row in pairs:
        source, target = (side[side != PAD] for side in row)
        length = max(len(source), len(target))
        alone = torch.stack([torch.nn.functional.pad(side, (0, length - len(side))) for side in (source, target)])
        scores = model(alone[None])[0, : len(target) - 1]
        assert torch.allclose(scores, model(row[None])[0, : len(target) - 1], atol=1e-6)


def test_positions_are_vaswanis() -> None:
    found = positions(3, 4, 6, torch.device("cpu"))
    for row in range(4):
        for pair in range(3):
            angle = (row + 3) / 10_000 ** (2 * pair / 6)
            assert found[row, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[row, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_token_by_token_it_gives_what_it_gives_at_once() -> None:
    model, pairs = net(), both()
    whole, under_way = model(pairs), model.begin(pairs[:, 0])
    parts = [model.go_on(under_way, part) for part in pairs[:, 1, :-1].split([1, 3, 1, 3], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-6)
    assert under_way.length == 8


def test_translations_under_way_can_be_chosen_and_repeated() -> None:
    model, pairs = net(), both()
    under_way = model.begin(pairs[:, 0])
    model.go_on(under_way, pairs[:, 1, :4])
    rows = torch.tensor([4, 0, 4])
    under_way.select(rows)
    scores = model.go_on(under_way, pairs[rows, 1, 4:5])
    assert torch.allclose(scores[:, 0], model(pairs)[rows, 4], atol=1e-6)


def test_dropout_is_there_in_training_only() -> None:
    model, pairs = net(), both()
    assert torch.equal(model(pairs), model(pairs))
    assert not torch.equal(model.train()(pairs), model(pairs))


def test_the_matrix_of_words_is_one_parameter_that_counts_as_a_linear_layer() -> None:
    model = net()
    assert sum(p.shape == (WORDS, 8) for p in model.parameters()) == 1
    found = cost(model, example=both(3))
    assert found.uncounted == ()
    uses = {layer.name: layer.uses for layer in found.layers}
    assert uses["words.weight"] == uses["decoder.0.attention.key.weight"] == 8
    assert uses["encoder.0.attention.key.weight"] == uses["decoder.0.cross.key.weight"] == 9
    assert uses["decoder.0.cross.query.weight"] == 8


@pytest.mark.parametrize(("width", "heads"), [(9, 3), (10, 4)])
def test_a_width_that_cannot_be_divided_is_refused(width: int, heads: int) -> None:
    with pytest.raises(InputError, match=f"even and a multiple of the heads, {heads}, but got {width}"):
        Transformer(WORDS, width, heads=heads)


# Decoding


def from_scratch(model: Transformer, source: Tensor) -> tuple[int, ...]:
    """The greedy translation of one source, computed anew for each token."""
    most, found = 2 * int((source != PAD).sum()) + 10, [BEGIN]
    while len(found) <= most and found[-1] != END:
        pair = torch.full((1, 2, max(len(source), len(found) + 1)), PAD)
        pair[0, 0, : len(source)], pair[0, 1, : len(found)] = source, torch.tensor(found)
        scores = model(pair)[0, len(found) - 1].clone()
        scores[[PAD, BEGIN]] = -math.inf
        found.append(int(scores.argmax()))
    return tuple(found[1:])


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_greedy_step_by_step_is_greedy_from_scratch(seed: int) -> None:
    model, source = net(seed, spread=1.5), sentences(8)
    found = greedy(model, source)
    assert found == [from_scratch(model, row) for row in source]
    assert len({len(line) for line in found}) > 1
    assert all(PAD not in line and BEGIN not in line and END not in line[:-1] for line in found)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    model, source = net(seed, spread=1.5), sentences(8)
    assert [h.tokens for h in beam_search(model, source, 1)] == greedy(model, source)


def scored(model: Transformer, source: Tensor, tokens: tuple[int, ...], penalty: float) -> float:
    """The score of a translation, from one pass over all of it."""
    length = max(len(source), len(tokens) + 1)
    pair = torch.full((1, 2, length), PAD)
    pair[0, 0, : len(source)] = source
    pair[0, 1, : len(tokens) + 1] = torch.tensor([BEGIN, *tokens])
    scores = model(pair)[0, : len(tokens)].clone()
    scores[:, [PAD, BEGIN]] = -math.inf
    logs = scores.log_softmax(dim=1)
    return sum(float(logs[place, token]) for place, token in enumerate(tokens)) / len(tokens) ** penalty


@pytest.mark.parametrize(("beam", "penalty"), [(1, 1.0), (3, 0.0), (4, 1.0), (6, 0.6)])
@torch.no_grad()
def test_scores_of_translations_are_those_of_one_pass_over_them(beam: int, penalty: float) -> None:
    model, source = net(1, spread=1.5), sentences(8)
    for row, found in zip(source, beam_search(model, source, beam, penalty), strict=True):
        assert found.score == pytest.approx(scored(model, row, found.tokens, penalty), rel=1e-4)


def by_hand(model: Transformer, source: Tensor, beam: int, penalty: float) -> Hypothesis:
    """Beam search for one source in plain Python, every prefix computed anew."""
    most, prefixes, complete = int(limits(source[None])), [((), 0.0)], []
    for length in range(1, most + 1):
        extended = []
        for prefix, total in prefixes:
            pair = torch.full((1, 2, max(len(source), len(prefix) + 2)), PAD)
            pair[0, 0, : len(source)] = source
            pair[0, 1, : len(prefix) + 1] = torch.tensor([BEGIN, *prefix])
            scores = model(pair)[0, len(prefix)].clone()
            scores[[PAD, BEGIN]] = -math.inf
            extended += [((*prefix, t), total + s) for t, s in enumerate(scores.log_softmax(dim=0).tolist())]
        extended.sort(key=lambda one: -one[1])
        ended = [one for one in extended[:beam] if one[0][-1] == END or length == most]
        complete += [Hypothesis(tokens, total / length**penalty) for tokens, total in ended]
        if length == most or len(complete) >= beam:
            break
        prefixes = [one for one in extended if one[0][-1] != END][:beam]
    return max(complete, key=lambda one: one.score)


@pytest.mark.parametrize(("beam", "penalty"), [(2, 1.0), (4, 0.0), (3, 0.6)])
@torch.no_grad()
def test_beam_search_is_that_of_plain_python(beam: int, penalty: float) -> None:
    model, source = net(2, spread=1.5), sentences(6, longest=5)
    for row, found in zip(source, beam_search(model, source, beam, penalty), strict=True):
        expected = by_hand(model, row, beam, penalty)
        assert found.tokens == expected.tokens
        assert found.score == pytest.approx(expected.score, rel=1e-4)


def test_a_wider_beam_finds_likelier_translations() -> None:
    model, source = net(3, spread=1.5), sentences(10)
    means = [sum(h.score for h in beam_search(model, source, beam, 0.0)) for beam in (1, 8)]
    assert means[1] > means[0]


def test_a_translation_depends_on_no_other_sentence() -> None:
    model, source = net(1, spread=1.5), sentences(8)
    assert [greedy(model, row[None])[0] for row in source] == greedy(model, source)
    assert [beam_search(model, row[None], 3)[0].tokens for row in source] == [
        h.tokens for h in beam_search(model, source, 3)
    ]


def test_no_translation_is_longer_than_its_limit() -> None:
    model, source = net(), sentences(5)
    model.words.weight.data[END] = 0
    model.decoder_norm.bias.data.copy_(10 * model.words.weight.data[5])  # always 5, and never an end
    found = greedy(model, source)
    assert [len(line) for line in found] == limits(source).tolist() == (2 * (source != PAD).sum(dim=1) + 10).tolist()
    for beam in (1, 3):
        assert [len(h.tokens) for h in beam_search(model, source, beam)] == limits(source).tolist()


@pytest.mark.parametrize(("beam", "penalty"), [(0, 1.0), (101, 1.0), (2, -0.1), (2, math.inf), (2, math.nan)])
def test_a_beam_that_is_none_is_refused(beam: int, penalty: float) -> None:
    with pytest.raises(InputError, match="a beam must be 1 to 100 and a length penalty 0 or more"):
        beam_search(net(), sentences(2), beam, penalty)
