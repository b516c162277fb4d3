"""Translation: subwords, batches of like lengths, BLEU as sacrebleu gives it, tickets of a Transformer."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import corpus_bleu
from test_resume import interrupted, resumed
from toy import drawn, same

import tombola as tb
from tombola.cli.main import run as command_line
from tombola.engines.evaluation import evaluate
from tombola.engines.masked import epoch_order
from tombola.errors import InputError
from tombola.lab import Lab
from tombola.seeds import global_stream
from tombola.tasks.language.decoding import greedy
from tombola.tasks.language.pairs import Pairs
from tombola.tasks.language.subwords import FIRST, Subwords
from tombola.tasks.language.translation import (
    TRANSLATION,
    bleu_counts,
    multi30k_splits,
    smoothed_loss,
    translate,
    translation_metrics,
    translation_sums,
)
from tombola.tasks.models.transformer import BEGIN, END, PAD, Transformer

NAMES = {
    "one": "eins",
    "two": "zwei",
    "three": "drei",
    "four": "vier",
    "five": "f\N{LATIN SMALL LETTER U WITH DIAERESIS}nf",
}
WORDS = 300


def lines(count: int, first: int = 0) -> tuple[list[str], list[str]]:
    """Sentences of number words and what they are in German."""
    source, target = [], []
    for number in range(first, first + count):
        words = [list(NAMES)[(number * 7 + place * number) % 5] for place in range(1 + number % 6)]
        source.append(" ".join(words).capitalize() + ".")
        target.append(" ".join(NAMES[word] for word in words).capitalize() + ".")
    return source, target


SUBWORDS = Subwords.trained([line for texts in lines(200) for line in texts], WORDS)


def pairs(count: int, first: int = 0, group: int = 16) -> Pairs:
    return Pairs.of(*lines(count, first), SUBWORDS, group)


def small(dropout: float = 0.0) -> Transformer:
    return Transformer(WORDS, 16, heads=2, hidden=24, layers=2, dropout=dropout)


def task(**changes: Any) -> tb.Task:
    recipe = {"steps": "30it", "batch": 16, "lr": 0.01, "evaluate_every": "10it"} | changes.pop("recipe", {})
    fields: dict[str, Any] = {
        "model": lambda: small(0.1),
        "train": pairs(90),
        "validation": pairs(25, 100),
        "test": pairs(20, 200),
        "loss": smoothed_loss,
        "metrics": translation_sums,
        "conclude": translation_metrics,
        "metric": "bleu",
        "embeddings": True,
        "name": "numbers",
        "allocation": "global",
        "rounds": 1,
        "recipe": tb.Recipe(**recipe),
    }
    return tb.Task(**(fields | changes))


# Subwords


def test_the_same_lines_give_the_same_subwords() -> None:
    both = [line for texts in lines(200) for line in texts]
    again, other = Subwords.trained(both, WORDS), Subwords.trained(both[1:], WORDS)
    assert again.digest == SUBWORDS.digest
    assert other.numbers(["Eins zwei."]) != []
    assert other.digest != SUBWORDS.digest


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=5))
def test_every_line_is_read_back_as_it_was(texts: list[str]) -> None:
    numbers = SUBWORDS.numbers(texts)
    assert all(FIRST <= number < WORDS for line in numbers for number in line)
    assert SUBWORDS.texts(numbers) == [text.strip() for text in texts]
    ended = [[BEGIN, *line, END, PAD] for line in numbers]
    assert SUBWORDS.texts(ended) == SUBWORDS.texts(numbers)


def test_frequent_words_are_one_subword_wherever_they_stand() -> None:
    first, later = SUBWORDS.numbers(["zwei drei", "drei zwei"])
    assert len(first) == len(later) == 2
    assert first == later[::-1]


def test_subwords_need_room_for_every_byte() -> None:
    with pytest.raises(InputError, match="259 subwords or more, one for each byte, but got 258"):
        Subwords.trained(["a"], 258)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"translation needs .*sacrebleu.* pip install 'tombola\[language\]'"):
        tb.get_task("multi30k-transformer").splits(0, tmp_path)


# Batches


def test_pairs_by_hand() -> None:
    data = Pairs.of(["one", "one two"], ["eins", "eins zwei"], SUBWORDS, 2)
    one, two, eins, zwei = (SUBWORDS.numbers([word])[0] for word in ("one", "two", "eins", "zwei"))
    longest = max(len(one) + len(two), len(eins) + len(zwei)) + 2
    assert data.pairs.shape == (2, 2, longest)
    assert data.pairs[1, 0, : 2 + len(one + two)].tolist() == [BEGIN, *one, *two, END]
    assert data.pairs[1, 1, : 2 + len(eins + zwei)].tolist() == [BEGIN, *eins, *zwei, END]
    short, references = data.take(torch.tensor([0]))
    assert (references.texts, references.of) == (("eins",), 2)
    assert short.shape[2] == 2 + max(len(one), len(eins))
    assert (short[0, 0] != PAD).sum() == 2 + len(one)
    ((batch, references),) = data.batches(1000)
    assert torch.equal(batch, data.pairs)
    assert (references.texts, references.of) == (("eins", "eins zwei"), 2)


@given(count=st.integers(1, 60), group=st.integers(1, 20), seed=st.integers(0, 5))
def test_an_epoch_has_each_pair_once_and_like_lengths_together(count: int, group: int, seed: int) -> None:
    data = pairs(count, group=group)
    order = epoch_order(seed, 0, data)
    assert sorted(order.tolist()) == list(range(count))
    whole = count // group * group
    groups = data.lengths[order[:whole]].view(-1, group)
    by_length = groups[groups[:, 0].argsort(stable=True)]
    ranges = sorted((int(g.min()), int(g.max())) for g in by_length)
    assert all(high <= low for (_, high), (low, _) in itertools.pairwise(ranges)), "they don't overlap"


def test_another_epoch_and_another_draw_have_another_order() -> None:
    data = pairs(60)
    orders = {tuple(epoch_order(0, epoch, data, draw).tolist()) for epoch in (0, 1) for draw in (0, 1)}
    assert len(orders) == 4
    assert {frozenset(order[:16]) for order in orders} != {frozenset(next(iter(orders))[:16])}


def test_data_that_differ_have_another_digest() -> None:
    data = pairs(20)
    others = [pairs(20, group=8), pairs(21), pairs(20, 1), Pairs(data.pairs, ("x",) * 20, SUBWORDS)]
    assert len({data.digest, *(other.digest for other in others)}) == 5
    assert pairs(20).digest == data.digest
    for wrong in (data.pairs[:, 0], data.pairs[:19], data.pairs.int()):
        with pytest.raises(InputError, match="pairs must be int64 of shape"):
            Pairs(wrong, data.texts, SUBWORDS)


# Loss and BLEU


@torch.no_grad()
def test_the_loss_is_smoothed_over_tokens_that_are_no_padding() -> None:
    with global_stream(1, "init"):
        model = small().eval()
    batch = pairs(5).take(torch.arange(5))
    total, count = 0.0, 0
    for row in batch[0]:
        length = int((row[1] != PAD).sum())
        logs = model(row[None])[0].log_softmax(dim=1)
        for place in range(length - 1):
            total -= 0.9 * float(logs[place, row[1, place + 1]]) + 0.1 * float(logs[place].mean())
            count += 1
    assert float(smoothed_loss(model, batch)) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("at_once", [60, 2**13])
@torch.no_grad()
def test_metrics_are_those_of_the_whole_set(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("tombola.tasks.language.pairs._AT_ONCE", at_once)
    known = task()
    with global_stream(1, "init"):
        model = small().eval()
    data = pairs(25, 100)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(0))
    found = evaluate(known, model, data)
    whole, _ = data.take(torch.arange(25))
    scores, targets = model(whole), whole[:, 1, 1:]
    counted = targets != PAD
    assert found["loss"] == pytest.approx(float(F.cross_entropy(scores[counted], targets[counted])), rel=1e-5)
    right = (scores.argmax(dim=2) == targets)[counted].float().mean()
    assert found["token_accuracy"] == pytest.approx(float(right))
    texts = SUBWORDS.texts(greedy(model, whole[:, 0]))
    assert found["bleu"] == corpus_bleu(texts, [list(data.texts)], force=True).score


WORD = st.sampled_from(["Ein", "Hund", "l\N{LATIN SMALL LETTER A WITH DIAERESIS}uft", "schnell,", "und", "bellt.", "."])


@given(st.lists(st.tuples(st.lists(WORD, max_size=9), st.lists(WORD, min_size=1, max_size=9)), min_size=1, max_size=8))
def test_bleu_of_counts_is_sacrebleus_of_all_sentences(sentences: list[tuple[list[str], list[str]]]) -> None:
    found, wanted = ([" ".join(side[i]) for side in sentences] for i in (0, 1))
    totals: dict[str, float] = {}
    for part in (slice(0, 3), slice(3, None)):  # batch by batch, as means over all sentences
        if found[part]:
            for name, count in bleu_counts(found[part], tuple(wanted[part])).items():
                totals[name] = totals.get(name, 0.0) + count
    means = {name: total / len(found) for name, total in totals.items()}
    metrics = translation_metrics(means | {"pairs": float(len(found)), "loss": 1.0, "tokens": 2.0, "right": 1.0})
    assert metrics["bleu"] == corpus_bleu(found, [wanted], force=True).score
    assert (metrics["loss"], metrics["token_accuracy"]) == (0.5, 0.5)


def test_translations_are_in_order_and_their_bleu_is_sacrebleus() -> None:
    model, data = _taught(), pairs(25, 100)
    found = translate(model.train(), data, beam=2)
    assert model.training
    assert found.bleu == corpus_bleu(list(found.texts), [list(data.texts)]).score
    assert found.bleu > 30
    assert found.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    alone = translate(model, Pairs.of(*lines(1, 117), SUBWORDS), beam=2)
    assert alone.texts == (found.texts[17],)
    with pytest.raises(InputError, match="the net is a Linear"):
        translate(torch.nn.Linear(2, 2), data)


def _taught() -> Transformer:
    """A net that has learnt to translate number words."""
    with global_stream(0, "init"):
        model = small()
    optimizer, data = torch.optim.Adam(model.parameters(), lr=0.01), pairs(90)
    for epoch in range(18):
        for index in torch.split(epoch_order(0, epoch, data), 16):
            loss = smoothed_loss(model, data.take(index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


# Trainings and tickets


def test_a_resume_has_the_same_bits(tmp_path: Path) -> None:
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(task(), store, 20)
        run, steps = resumed(task(), store)
        assert steps == [20, 30]
        straight = Lab(task(), calm).train(0)
        assert same(run.final, straight.final)
        assert run.history == straight.history
        assert {f"validation_{name}" for name in ("loss", "token_accuracy", "bleu")} < set(run.history[0])
        assert run.summary["engine"] == "masked"
        assert run.summary["flops"] > 0


@pytest.mark.parametrize("method", ["imp", "snip", "grasp", "rigl"])
def test_tickets_are_drawn(tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"method": method, "controls": ["reinit"]} if method == "imp" else {"method": method}
    options |= {"rounds": 1} if method == "imp" else {"densities": [0.6]}
    if method == "rigl":
        options["update_every"] = "10it"
    with tb.Store(tmp_path) as store:
        found = drawn(store, task(), **options)
        last = found.rounds[-1]
        assert "words.weight" in last.mask
        assert sum(name.endswith("query.weight") for name in last.mask) == 2 + 4
        for name, kept in last.run.final_mask.items():
            assert not bool(last.run.final[name][~kept].any())


@pytest.mark.parametrize("known", TRANSLATION, ids=lambda t: t.name)
def test_the_built_in_tasks_can_be_drawn_as_they_stand(known: tb.Task) -> None:
    assert tb.get_task(known.name) is known
    with torch.device("meta"):
        model, half = known.model(), known.scaled(0.5)  # type: ignore[misc]
    weights = sum(p.numel() for p in known.prunable(model).values())
    assert weights == {"multi30k-transformer": 9_388_032, "multi30k-transformer-small": 1_039_360}[known.name]
    name = "encoder.0.feedforward.inner.weight"
    assert [2 * size for size in half.get_parameter(name).shape] == list(model.get_parameter(name).shape)


# The commands


def written(root: Path) -> Path:
    """A data root with number words in place of Multi30k."""
    folder = root / "multi30k"
    folder.mkdir(parents=True)
    for part, count, first in (("train", 60, 0), ("val", 10, 60), ("test_2016_flickr", 8, 70)):
        for language, texts in zip(("en", "de"), lines(count, first), strict=True):
            (folder / f"{part}.{language}.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    return root


def test_the_splits_are_the_data_sets_own(tmp_path: Path) -> None:
    data = multi30k_splits(WORDS, group=8)(written(tmp_path), 0, None)
    assert isinstance(data.train, Pairs)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 10, 8)
    assert data.train.group == 8
    assert data.digest == multi30k_splits(WORDS, group=8)(tmp_path, 1, None).digest


def test_a_net_is_trained_and_translates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--store", str(tmp_path / "runs"), "--data-root", str(written(tmp_path / "data"))]
    training = "train multi30k-transformer-small --steps 2it --evaluate-every 2it --json"
    assert command_line([*training.split(), *places]) == 0
    made = json.loads(capsys.readouterr().out)
    assert command_line(["translate", made["run"][:12], "--beam", "2", "--json", *places]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], found["data"], found["sentences"], found["beam"]) == (made["run"], "test", 8, 2)
    assert found["bleu"] >= 0
    assert "tok:13a" in found["signature"]
    assert "translations" not in found

    given = ["translate", made["run"][:12], "--beam", "1", "--data", "validation", "--translations", *places]
    assert command_line(given) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 10 + 1
    assert shown[-1].startswith("BLEU ")
    assert "validation" in shown[-1]
    assert all(line.isprintable() for line in shown)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["translate", "abcdef"], "the beginning of one run's id, but none has 'abcdef'"),
        (["translate", "abc"], "4 to 64"),
        (["translate", "nothing.ticket"], "nothing.ticket"),
        (["translate", "abcdef", "--beam", "0"], "beam"),
        (["translate", "abcdef", "--length-penalty", "-1"], "length-penalty"),
    ],
)
def test_what_cannot_be_translated_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], rule: str
) -> None:
    with tb.Store(tmp_path):
        pass
    assert command_line([*arguments, "--store", str(tmp_path)]) == 2
    assert rule in capsys.readouterr().err


def test_tickets_translate_and_other_nets_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = written(tmp_path / "data")
    known = tb.get_task("multi30k-transformer-small")
    model = known.build(0)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    mask = tb.Mask.full(model)
    path = tb.Ticket(mask, state, {"task": known.name}).save(tmp_path / "a.ticket")
    assert command_line(["translate", str(path), "--data-root", str(root), "--beam", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ticket"] == str(path)
    other = tb.get_task("digits-mlp").build(0)
    state = {name: value.detach() for name, value in other.state_dict().items()}
    path = tb.Ticket(tb.Mask.full(other), state, {"task": "digits-mlp"}).save(tmp_path / "b.ticket")
    assert command_line(["translate", str(path)]) == 2
    assert "'digits-mlp' is no translator" in capsys.readouterr().err
