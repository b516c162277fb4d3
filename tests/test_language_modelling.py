"""Language modelling: a state that is carried, exact perplexity, trainings and tickets of an LSTM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_resume import interrupted, resumed
from torch import Tensor
from toy import drawn, same

import tombola as tb
from tombola.durations import Duration
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import epoch_order
from tombola.errors import DataError, InputError
from tombola.lab import Lab
from tombola.mask import Mask
from tombola.seeds import global_stream, stream
from tombola.tasks.language.corpus import Streams, Stretches
from tombola.tasks.language.modelling import MODELLING, next_word_loss, next_word_sums, perplexity, wikitext2_splits
from tombola.tasks.models.lstm import LSTMLanguageModel
from tombola.training.costs import training_cost

WORDS = 12


def text(length: int) -> Tensor:
    """A word is mostly followed by the next one."""
    words = torch.randint(WORDS, (length,), generator=stream(5, "text"))
    for place in range(1, length):
        if place % 5:
            words[place] = (words[place - 1] + 1) % WORDS
    return words


def small(dropout: float = 0.0, streams: int = 4) -> LSTMLanguageModel:
    return LSTMLanguageModel(WORDS, 8, 10, dropout=dropout, streams=streams)


def task(**changes: Any) -> tb.Task:
    recipe = {"steps": "30it", "batch": 4, "lr": 0.02, "evaluate_every": "5it"} | changes.pop("recipe", {})
    fields: dict[str, Any] = {
        "model": partial(small, 0.3),
        "train": Streams(text(300), streams=4, segment=6),
        "validation": Stretches(text(61), length=9),
        "test": Stretches(text(50), length=9),
        "loss": next_word_loss,
        "metrics": next_word_sums,
        "conclude": perplexity,
        "metric": "perplexity",
        "higher_is_better": False,
        "embeddings": True,
        "name": "words",
        "allocation": "global",
        "rounds": 2,
        "recipe": tb.Recipe(**recipe),
    }
    return tb.Task(**(fields | changes))


# The state that is carried


def test_segment_by_segment_it_reads_what_it_reads_in_one_pass() -> None:
    data = Streams(text(300), 4, 6)
    with global_stream(0, "init"):
        model = small()
    model.train()
    order = epoch_order(3, 0, data)
    first, *_ = data.take(order[:4])
    start = int(order[0]) // len(data) - 1
    assert torch.equal(first[1], text(300)[(start + 75 + torch.arange(6)) % 300])
    scores = [model(*data.take(index)[:1], *data.take(index)[2:]) for index in torch.split(order, 4)]
    places = start + torch.arange(4)[:, None] * 75 + torch.arange(72)
    whole, (h, c) = model.lstm(model.embedding(text(300)[places % 300]))
    assert torch.allclose(torch.cat(scores, dim=1), model.output(whole), atol=1e-6)
    assert torch.allclose(model.carried[:, :, :4], torch.stack((h, c)), atol=1e-6)
    assert not model.carried.requires_grad
    # The next epoch begins with nothing carried, and so do smaller batches of the same streams.
    parts = [model(t, s, b) for t, _, s, b in map(data.take, torch.split(order[:4], 3))]
    assert torch.allclose(torch.cat(parts), scores[0], atol=1e-6)


def test_gradients_end_where_a_segment_begins() -> None:
    data, model = Streams(text(300), 4, 6), small().train()
    order = epoch_order(3, 0, data)
    next_word_loss(model, data.take(order[:4]))
    before = model.carried.clone()
    loss = next_word_loss(model, data.take(order[4:8]))
    loss.backward()
    tokens, targets, *_ = data.take(order[4:8])
    again = small().train()
    again.load_state_dict(model.state_dict())
    given = before[:, :, :4].clone().requires_grad_()
    scores = again.output(again.lstm(again.embedding(tokens), (given[0], given[1]))[0])
    F.cross_entropy(scores.flatten(0, 1), targets.flatten()).backward()
    assert given.grad is not None
    assert bool(given.grad.any()), "what is carried matters"
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-7), name  # type: ignore[arg-type]


def test_alone_and_in_evaluation_nothing_is_carried() -> None:
    data, model = Streams(text(300), 4, 6), small().train()
    order = epoch_order(3, 0, data)
    model(*_inputs(data, order[:4]))
    carried = model.carried.clone()
    tokens = data.take(order[4:8])[0]
    zero = model.output(model.lstm(model.embedding(tokens))[0])
    assert not torch.allclose(model(*_inputs(data, order[4:8])), zero)
    after = model.carried.clone()
    model(*_inputs(data, torch.arange(40)))
    assert torch.equal(model.carried[:, :, :4], after[:, :, :4]), "segments by themselves touch no stream's row"
    model.eval()
    assert torch.equal(model(*_inputs(data, order[4:8])), zero)
    assert torch.equal(model.carried[:, :, :4], after[:, :, :4])
    assert not torch.equal(carried, after)


def _inputs(data: Streams, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tokens, _, streams, begins = data.take(index)
    return tokens, streams, begins


# Perplexity


@pytest.mark.parametrize("at_once", [1, 7, 1024])
def test_perplexity_is_that_of_the_whole_text(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("tombola.tasks.language.modelling._SCORED_AT_ONCE", at_once)
    monkeypatch.setattr("tombola.tasks.language.corpus._AT_ONCE", 18)  # two stretches at once
    words, model = text(61), small().eval()
    total = 0.0
    with torch.no_grad():
        for first in range(0, 60, 9):
            state = None
            for place in range(first, min(first + 9, 60)):
                out, state = model.lstm(model.embedding(words[place : place + 1])[None], state)
                total -= float(model.output(out)[0, 0].log_softmax(dim=0)[words[place + 1]])
    found = evaluate(task(), model, Stretches(words, 9))
    assert found == pytest.approx({"loss": total / 60, "perplexity": math.exp(total / 60)}, rel=1e-5)
    model.train()(*_inputs(Streams(words, 4, 6), epoch_order(0, 0, Streams(words, 4, 6))[:4]))
    assert evaluate(task(), model, Stretches(words, 9)) == found, "whatever was carried in training"


def test_a_hopeless_net_has_a_finite_perplexity() -> None:
    assert perplexity({"loss": 9000.0, "tokens": 9.0})["perplexity"] == math.exp(700)


# Trainings and tickets


def test_it_learns(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        run = Lab(task(recipe={"steps": "100it", "evaluate_every": "50it"}), store).train(0)
        assert run.history[0]["validation_perplexity"] == pytest.approx(WORDS, rel=0.1)
        assert run.history[-1]["validation_perplexity"] < 6
        assert run.summary["engine"] == "masked"
        assert run.summary["flops"] == 3 * 2 * 6 * (40 * (8 + 10 + 10 + 10) + 10 * WORDS) * 4 * 100


@pytest.mark.parametrize("stop", [10, 20])  # goes on from step 5 or 15; an epoch has 12
def test_a_resume_goes_on_with_the_state_that_was_carried(tmp_path: Path, stop: int) -> None:
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task(), store, stop)
        run, steps = resumed(task(), store)
        assert steps == list(range(stop, 31, 5))
        straight = Lab(task(), calm).train(0)
        assert same(run.final, straight.final)
        assert run.history == straight.history
        assert bool(run.final["carried"].any())


def test_a_training_rewound_to_the_middle_of_an_epoch_goes_on_with_what_was_carried_there(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        lab = Lab(task(recipe={"optimizer": "sgd", "lr": 0.5}), store)  # which remembers nothing by itself
        dense = lab.train(0)
        start = dense.at(Duration(15))
        assert bool(start["carried"].any())
        again = lab.train(0, start=start, recipe=lab.recipe.model_copy(update={"start": Duration(15)}))
        assert same(again.final, dense.final)
        start = start | {"carried": torch.zeros_like(start["carried"])}
        other = lab.train(0, start=start, recipe=lab.recipe.model_copy(update={"start": Duration(15)}))
        assert not same(other.final, dense.final)


def test_a_ticket_is_drawn_with_controls_embeddings_and_all(tmp_path: Path) -> None:
    options = {"rounds": 2, "survivors": "rewind", "back_to": "1ep", "controls": ["reinit", "inverted", "fine_tune"]}
    with tb.Store(tmp_path) as store:
        found = drawn(store, task(), **options)
        last = found.rounds[-1]
        layers = ["embedding.weight", *(f"lstm.weight_{kind}_l{n}" for n in (0, 1) for kind in ("ih", "hh"))]
        assert list(last.mask) == [*layers, "output.weight"]
        for name, kept in last.mask.items():
            assert not bool(last.run.final[name][~kept].any())
            assert torch.equal(last.run.start[name], found.rounds[0].run.at(Duration(12))[name] * kept)


@pytest.mark.parametrize("method", ["snip", "grasp", "set", "rigl", "gradual"])
def test_other_methods_draw_there_too(tmp_path: Path, method: str) -> None:
    options = {} if method in ("snip", "grasp") else {"update_every": "5it"}
    with tb.Store(tmp_path) as store:
        found = drawn(store, task(), method=method, densities=[0.5], **options)
        assert found.rounds[-1].run.final_mask.density == pytest.approx(0.5, abs=0.01)


def test_a_criterion_that_cannot_take_tokens_says_so(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(InputError, match="synflow gives the net one input of ones"):
        drawn(store, task(), method="synflow", densities=[0.5])


def test_scores_by_gradients_are_those_of_segments_read_by_themselves() -> None:
    data, model = Streams(text(300), 4, 6), small(0.3).train()
    batches = [data.take(index) for index in torch.split(torch.arange(20), 8)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask = Mask.full(model, embeddings=True)
    scores = tb.score(model, "snip", batches=batches, loss=next_word_loss, mask=mask, mode="train")
    assert same(dict(model.state_dict()), before)
    plain = small().eval()
    plain.load_state_dict(before)
    sum(next_word_loss(plain, b) * len(b[0]) for b in batches).backward()  # type: ignore[union-attr]
    for name, value in scores.items():
        p = plain.get_parameter(name)
        expected = (p.grad * p).abs()  # type: ignore[operator]
        assert torch.allclose(value / value.sum(), expected / expected.sum(), atol=1e-6), name


# The built-in tasks


@pytest.mark.parametrize("known", MODELLING, ids=lambda t: t.name)
def test_the_built_in_tasks_fit_their_nets_data_and_recipes(known: tb.Task) -> None:
    assert tb.get_task(known.name) is known
    with torch.device("meta"):
        model, half = known.model(), known.scaled(0.5)  # type: ignore[misc]
    weights = sum(p.numel() for p in known.prunable(model).values())
    assert weights == {"wikitext2-lstm": 50_021_400, "wikitext2-lstm-small": 774_144}[known.name]
    assert half.get_parameter("lstm.weight_hh_l0").shape[1] == model.get_parameter("lstm.weight_hh_l0").shape[1] // 2
    assert known.recipe.batch == model.get_buffer("carried").shape[2] - 1


def test_the_full_recipe_is_the_papers() -> None:
    known = tb.get_task("wikitext2-lstm")
    r = known.recipe
    assert (r.batch, r.optimizer, r.lr, r.eps, r.betas, str(r.steps)) == (30, "adam", 1e-3, 1e-3, (0.9, 0.999), "10ep")


def written(root: Path) -> Mapping[str, int]:
    """Texts of words in place of WikiText-2; how many tokens each has."""
    (root / "wikitext-2").mkdir(parents=True)
    counts = {}
    for part, lines in (("train", 300), ("valid", 40), ("test", 30)):
        words = text(lines * 8).view(-1, 8).tolist()
        content = "\n".join(" ".join(f"w{n}" for n in line) for line in words)
        (root / "wikitext-2" / f"{part}.txt").write_text(content)
        counts[part] = lines * 9
    return counts


def test_texts_of_ones_own_are_cut_into_parts_and_words(tmp_path: Path) -> None:
    counts = written(tmp_path)
    data = wikitext2_splits(9, streams=5, segment=7, stretch=20, tokens=2000)(tmp_path, 0, None)
    assert isinstance(data.train, Streams)
    assert isinstance(data.validation, Stretches)
    assert len(data.train.tokens) == 2000
    assert len(data.validation.tokens) == counts["valid"]
    assert int(data.train.tokens.max()) == 8, "the rarest words are unknown"
    other = wikitext2_splits(9, streams=5, segment=7, stretch=20, tokens=2000)(tmp_path, 1, None)
    assert other.digest == data.digest, "no part of it depends on the seed"


def test_the_small_task_is_drawn_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tombola.cli.main import run

    written(tmp_path / "data")
    command = "draw wikitext2-lstm-small --rounds 1 --steps 3it --evaluate-every 3it --control reinit --no-figures"
    places = ["--store", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--data-root", str(tmp_path / "data")]
    assert run([*command.split(), *places]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert run(["draw", "wikitext2-lstm-small", "--batch", "64", "--steps", "3it", "--no-figures", *places]) == 2
    said = capsys.readouterr().err
    assert "the batch is 64: set it to 20 or less" in said, "refused by its size, before anything is evaluated"


def test_without_the_text_the_task_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("tombola.tasks.data.sources.mirrors", lambda name: ["http://127.0.0.1:9"])
    with pytest.raises(DataError, match=r"WikiText-2|wikitext-2"):
        tb.get_task("wikitext2-lstm").splits(0, tmp_path)


def test_costs_of_a_training_count_every_layer() -> None:
    model, data = small(), Streams(text(300), 4, 6)
    found = training_cost(model, Mask.full(model, embeddings=True), data)
    assert found is not None
    assert found.uncounted == ("embedding.weight",), "looked up, not multiplied by"
    assert {layer.uses for layer in found.layers} == {0, 6}
