"""SST-2 and masked language modelling with nets of Transformers, as tasks among tasks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bert_tools import data, distilled, made, sentence, task, tokenizer
from cli_tools import call
from hypothesis import given
from hypothesis import strategies as st
from test_resume import interrupted, resumed
from toy import drawn, same
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining

import tombola as tb
from tombola.lab import Lab
from tombola.seeds import stream
from tombola.tasks.data.sst2 import load_sst2
from tombola.tasks.data.wikitext import load_wikitext2
from tombola.tasks.pretrained import TransformersTask
from tombola.tasks.pretrained.masking import NOT_ASKED, MaskedText, concluded, counted, in_rows, told
from tombola.tasks.pretrained.sentences import tokenised
from tombola.tasks.pretrained.tokens import SPECIAL, encoded, learned
from tombola.tasks.task import Task
from tombola.ticket import Ticket
from tombola.transferring.tickets import carried


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made(found := tmp_path_factory.mktemp("checkpoint") / "bert")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that has a pooler and a head for masked words, as BERT's own."""
    made(found := tmp_path_factory.mktemp("checkpoint") / "whole", BertForPreTraining)
    return found


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "data"))
    return data(tmp_path / "data")


ENCODER = 2 * (4 * 16 * 16 + 2 * 16 * 24)


# Fine-tuning


def test_masks_cover_the_body_and_nothing_else(folder: Path, whole: Path, store: tb.Store) -> None:
    for path, pooler in ((folder, 0), (whole, 16 * 16)):
        found = drawn(store, task(f"sst2-bert:{path}", steps="10it"), densities=[0.4])
        mask = found.rounds[-1].mask
        assert all(name.startswith(("bert.encoder.", "bert.pooler.")) for name in mask)
        assert mask.total == ENCODER + pooler
        assert mask.kept == round(0.4 * mask.total)


def test_reset_is_rewinding_to_the_pre_trained_values(folder: Path, store: tb.Store) -> None:
    found = drawn(store, task(f"sst2-bert:{folder}"), densities=[0.5, 0.2], survivors="reset")
    begin = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    for round in found.rounds[1:]:
        for name, kept in round.mask.items():
            assert torch.equal(round.run.start[name], begin[name] * kept)
            assert not bool(round.run.final[name][~kept].any())
            assert not torch.equal(round.run.final[name], round.run.start[name])
        shared = [name for name in begin if name in round.run.start and name not in round.mask]
        assert len(shared) > 10
        assert all(torch.equal(round.run.start[name], begin[name]) for name in shared)


def test_the_masked_engine_is_chosen_and_says_why(folder: Path, store: tb.Store) -> None:
    run = Lab(task(f"sst2-bert:{folder}", steps="10it"), store).train(0)
    assert run.summary["engine"] == "masked"
    assert "the sparse engine can't" in run.summary["engine_reason"]


def test_it_learns(folder: Path, store: tb.Store) -> None:
    run = Lab(task(f"sst2-bert:{folder}", steps="150it", evaluate_every="25it", lr=1e-2), store).train(0)
    assert run.summary["stop"]["test_accuracy"] > 0.8
    assert run.history[0]["validation_accuracy"] < 0.7


@pytest.mark.parametrize("family", ["sst2-bert", "wikitext2-mlm", "wikitext2-mlm-small"])
def test_a_resume_has_the_same_bits(folder: Path, store: tb.Store, other: tb.Store, family: str) -> None:
    found = task(f"{family}:{folder}")
    interrupted(found, store, 40)
    run, steps = resumed(found, store)
    assert steps == [40, 50, 60]
    straight = Lab(found, other).train(0)
    assert same(run.final, straight.final)
    assert run.history == straight.history


def test_controls_are_drawn_beside_a_ticket(folder: Path, store: tb.Store) -> None:
    options = {"controls": ["reinit", "shuffled"], "densities": [0.5]}
    found = drawn(store, task(f"sst2-bert:{folder}", steps="20it"), **options)
    ticket = found.rounds[-1]
    runs = {control.arm: control.run for control in found.controls}
    name = "bert.encoder.layer.0.output.dense.weight"
    assert runs["reinit"].mask == ticket.mask
    assert not torch.equal(runs["reinit"].start[name], ticket.run.start[name])
    assert runs["shuffled"].mask != ticket.mask


def test_a_ticket_is_drawn_by_the_command_and_its_file_fits_the_net(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    options = ["--densities", "0.5", "--steps", "10it", "--batch", "8", "--evaluate-every", "5it", "--json"]
    places = ("--no-figures", "--store", tmp_path / "runs", "--out", tmp_path / "out")
    done = call("draw", "sst2-bert:bert", *options, *places, "--control", "reinit")
    assert done.status == 0, done.err
    assert done.json["task"] == f"sst2-bert:{folder.resolve()}"
    (path,) = map(Path, done.json["tickets"])
    assert path.parent == tmp_path / "out"
    ticket = tb.load(path)
    net = AutoModelForMaskedLM.from_pretrained(folder)
    left = net.load_state_dict(ticket.values, strict=False)
    assert all(name.startswith("cls.") for name in left.missing_keys)
    ticket.model()


def test_sentences_are_padded_to_the_longest_of_a_batch() -> None:
    texts = [sentence(number)[0] for number in range(20)]
    found = tokenised(texts, [0, 1] * 10, tokenizer(), 12)
    batch = found.take(torch.tensor([5, 0, 3]))
    one_by_one = [tokenizer()(texts[n], truncation=True, max_length=12)["input_ids"] for n in (5, 0, 3)]
    longest = max(map(len, one_by_one))
    assert batch["input_ids"].tolist() == [row + [0] * (longest - len(row)) for row in one_by_one]
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row) for row in one_by_one]
    assert batch["labels"].tolist() == [1, 0, 1]
    assert max(int(found.lengths.max()), found.ids.shape[1]) == 12
    assert torch.cat([b["labels"] for b in found.batches(7)]).tolist() == [0, 1] * 10


def test_padding_changes_no_score(folder: Path) -> None:
    net = task(f"sst2-bert:{folder}").build(0).eval()
    found = tokenised([sentence(number)[0] for number in range(20)], [0] * 20, tokenizer())
    with torch.no_grad():
        alone, together = (
            [net(**{k: v for k, v in found.take(i).items() if k != "labels"}).logits for i in index]
            for index in (torch.arange(20)[:, None], [torch.arange(20)])
        )
    torch.testing.assert_close(torch.cat(alone), together[0], atol=1e-5, rtol=1e-5)


def test_parts_are_those_of_the_files(folder: Path, root: Path) -> None:
    splits = tb.get_task(f"sst2-bert:{folder}").splits(3, root)
    assert [len(splits.train), len(splits.validation), len(splits.test or ())] == [96, 24, 24]
    assert splits.digest == tb.get_task(f"sst2-bert:{folder}").splits(4, root).digest
    validation = load_sst2(root)[1]
    assert next(splits.validation.batches(100))["labels"].tolist() == list(validation.labels)


# Masked language modelling


def text(rows: int = 40, length: int = 102, size: int = 500) -> MaskedText:
    g = stream(0, "text")
    ids = torch.randint(5, size, (rows * (length - 2),), generator=g).tolist()
    return MaskedText(in_rows(ids, length, 2, 3, "a text"), 4, torch.arange(5, size))


def test_tokens_are_hidden_as_often_as_the_paper_says() -> None:
    found = text(rows=400)
    batch = found.take(torch.arange(400) + 400 * 7)
    inside, asked = found.rows[:, 1:-1], batch["labels"][:, 1:-1] != NOT_ASKED
    n = inside.numel()
    shown = batch["input_ids"][:, 1:-1]

    def near(count: float, of: int, share: float) -> bool:
        return abs(count - of * share) < 5 * math.sqrt(of * share * (1 - share))

    hidden = int(asked.sum())
    assert near(hidden, n, 0.15)
    assert near(int((shown == 4).sum()), hidden, 0.8)
    another = asked & (shown != 4) & (shown != inside)
    assert near(int(another.sum()), hidden, 0.1 * 494 / 495)
    assert near(int((asked & (shown == inside)).sum()), hidden, 0.1 + 0.1 / 495)
    assert torch.equal(shown[~asked], inside[~asked])
    assert torch.equal(batch["labels"][:, 1:-1][asked], inside[asked])
    assert batch["input_ids"][:, 0].eq(2).all()
    assert batch["input_ids"][:, -1].eq(3).all()
    assert batch["labels"][:, [0, -1]].eq(NOT_ASKED).all()
    assert int(shown[another].min()) >= 5


@given(st.integers(0, 2**30), st.integers(0, 39))
def test_an_index_says_all_about_what_is_hidden(code: int, row: int) -> None:
    found = text()
    alone = found.take(torch.tensor([row + 40 * code]))
    among = found.take(torch.tensor([3, row + 40 * code, 5]))
    assert torch.equal(alone["input_ids"][0], among["input_ids"][1])
    assert torch.equal(alone["labels"][0], among["labels"][1])
    again = found.take(torch.tensor([row + 40 * (code + 1)]))
    assert not torch.equal(alone["labels"], again["labels"])


def test_every_epoch_hides_other_tokens_and_validation_the_same() -> None:
    found = text()
    order = torch.randperm(40, generator=stream(0, "order"))
    one, two = (found.vary(order, stream(0, "augment", epoch)) for epoch in (0, 1))
    assert torch.equal(one % 40, order)
    assert not torch.equal(one, two)
    assert bool((one >= 40).all()), "never as it is judged"
    first, second = ([batch["labels"] for batch in found.batches(15)] for _ in range(2))
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), found.take(torch.arange(40))["labels"])


def test_rows_are_running_text_and_the_rest_is_left_out() -> None:
    rows = in_rows(list(range(10, 21)), 6, 2, 3, "a text")
    assert rows.tolist() == [[2, 10, 11, 12, 13, 3], [2, 14, 15, 16, 17, 3]]
    with pytest.raises(tb.DataError, match="a text must have at least 4 tokens for one row, but has 3"):
        in_rows([1, 2, 3], 6, 2, 3, "a text")


@torch.no_grad()
def test_the_loss_is_the_librarys(folder: Path, root: Path) -> None:
    found = task(f"wikitext2-mlm:{folder}")
    for net in (found.build(0).eval(), distilled().eval()):
        batch = found.splits(0, root).validation.take(torch.arange(6))
        theirs = net(input_ids=batch["input_ids"], labels=batch["labels"])
        torch.testing.assert_close(told(net, batch), theirs.loss, atol=1e-6, rtol=1e-6)
        asked = batch["labels"] != NOT_ASKED
        hits = (theirs.logits.argmax(dim=2) == batch["labels"])[asked]
        values = counted(net, batch)
        means = concluded({name: float(value) for name, value in values.items()})
        assert means["loss"] == pytest.approx(float(theirs.loss), rel=1e-5)
        assert means["accuracy"] == pytest.approx(float(hits.float().mean()))


@torch.no_grad()
def test_metrics_of_a_set_are_ratios_of_sums(folder: Path, root: Path) -> None:
    from tombola.engines.evaluation import evaluate

    found = task(f"wikitext2-mlm:{folder}")
    net, part = found.build(0).eval(), found.splits(0, root).validation
    assert len(part) > 5
    batches = [part.take(index) for index in torch.split(torch.arange(len(part)), 1)]
    sums = [counted(net, batch) for batch in batches]
    loss, hits, hidden = (sum(float(one[name]) for one in sums) for name in ("loss", "hits", "hidden"))
    judged = evaluate(found, net, part)
    assert judged["loss"] == pytest.approx(loss / hidden, rel=1e-5)
    assert judged["accuracy"] == pytest.approx(hits / hidden)
    assert judged.keys() == {"loss", "accuracy"}
    nothing = {"input_ids": batches[0]["input_ids"], "labels": torch.full_like(batches[0]["labels"], NOT_ASKED)}
    assert float(told(net, nothing)) == 0.0


def test_a_vocabulary_is_learned_the_same_every_time(root: Path) -> None:
    words = tuple(load_wikitext2(root)[0])
    made = []
    for _ in range(2):
        learned.cache_clear()
        made.append(learned(words, 300, 64))
    assert made[0].backend_tokenizer.to_str() == made[1].backend_tokenizer.to_str()
    assert [made[0].convert_ids_to_tokens(i) for i in range(5)] == list(SPECIAL)
    assert made[0].decode(made[0]("The FILM is Dull")["input_ids"]) == "[CLS] the film is dull[SEP]"


def test_words_are_split_as_their_line_is() -> None:
    words = ["the", "film", ",", "n't", "@-@", "1930s", "<unk>", "(", "Café", "<eos>", "'s"]
    ids = encoded(words, tokenizer())
    line = tokenizer()(" ".join(w for w in words if w not in ("<unk>", "<eos>")), add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 1
    assert [token for token in ids if token != 1] == line


def test_the_small_bert_is_pre_trained_and_written_for_the_library(tmp_path: Path, folder: Path) -> None:
    out, options = tmp_path / "out", ["--steps", "3it", "--batch", "4", "--evaluate-every", "3it", "--json"]
    done = call("train", "wikitext2-mlm-small", *options, "--store", tmp_path / "runs", "--out", out)
    assert done.status == 0, done.err
    assert done.json["net"] == str(out / "transformers")
    assert done.json["status"] == "finished"
    net = AutoModelForMaskedLM.from_pretrained(out / "transformers")
    assert (net.config.num_hidden_layers, net.config.hidden_size) == (4, 128)
    assert net.config.hidden_dropout_prob == net.config.attention_probs_dropout_prob == 0
    read = AutoTokenizer.from_pretrained(out / "transformers")
    assert read("a fine film")["input_ids"][0] == read.cls_token_id
    found = tb.get_task(f"sst2-bert-small:{out / 'transformers'}")
    body = {name: value for name, value in net.state_dict().items() if name.startswith("bert.")}
    begin = found.build(0).state_dict()
    assert all(torch.equal(begin[name], value) for name, value in body.items())
    with tb.Store(tmp_path / "runs") as store:
        record = store.run(done.json["run"])
        assert record is not None
        final = Ticket.from_bytes(store.read(record, "final")).values
    assert same(dict(final), dict(net.state_dict()))


def test_positions_of_the_small_bert_begin_as_waves_as_long_as_its_words() -> None:
    begin = tb.get_task("wikitext2-mlm-small").build(0).state_dict()
    places, words = (begin[f"bert.embeddings.{name}_embeddings.weight"] for name in ("position", "word"))
    assert places[:, 0] == pytest.approx(0.05 * math.sqrt(2) * torch.arange(128).sin(), abs=1e-6)
    assert places.square().sum(1).sqrt() == pytest.approx(torch.full((128,), 0.05 * math.sqrt(128)), rel=1e-4)
    assert words[5:].square().mean().sqrt().item() == pytest.approx(0.05, rel=0.02)


def test_other_nets_are_written_as_their_state(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    options = ["--steps", "5it", "--evaluate-every", "5it"]
    done = call("train", "digits-mlp", *options, "--store", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert str(tmp_path / "out" / "model.safetensors") in done.out
    net = tb.get_task("digits-mlp").build(0)
    net.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))


# Tickets from one task to another


def test_a_ticket_goes_from_masked_words_to_sentences_and_back(folder: Path, store: tb.Store) -> None:
    mlm, sst2 = (task(f"{family}:{folder}", steps="20it") for family in ("wikitext2-mlm", "sst2-bert"))
    for source, target in ((mlm, sst2), (sst2, mlm)):
        assert tb.get_task(f"{target.name}@{source.name}") is tb.get_task(target.name), "nothing differs in the body"
        ticket = drawn(store, source, densities=[0.3]).ticket()
        moved = carried(ticket, target, seed=0)
        assert moved.mask == ticket.mask
        begin = target.build(0).state_dict()
        assert moved.values.keys() == begin.keys()
        for name, value in moved.values.items():
            theirs = ticket.values.get(name, begin[name])
            assert torch.equal(value, theirs if name not in moved.mask else theirs * moved.mask[name])
        run = Lab(target, store).train(0, start=dict(moved.values), mask=moved.mask)
        assert run.record.status == "finished"
        for name, kept in moved.mask.items():
            assert not bool(run.final[name][~kept].any())


def test_what_the_source_does_not_have_stays_outside_the_mask(whole: Path, store: tb.Store) -> None:
    mlm, sst2 = (f"{family}:{whole}" for family in ("wikitext2-mlm", "sst2-bert"))
    both = tb.get_task(f"{sst2}@{mlm}")
    pooler = "bert.pooler.dense.weight"
    assert both.name == f"{tb.get_task(sst2).name}@{tb.get_task(mlm).name}"
    assert pooler in both.unpruned
    assert pooler not in tb.get_task(sst2).unpruned
    assert both.identity() != tb.get_task(sst2).identity()
    assert str(whole) not in str(both.identity())
    assert tb.get_task(f"{mlm}@{sst2}") is tb.get_task(mlm)
    ticket = drawn(store, task(sst2, steps="10it"), densities=[0.3]).ticket()
    moved = carried(ticket, tb.get_task(mlm), seed=0)
    assert set(ticket.mask) - set(moved.mask) == {pooler}


def test_tickets_of_other_checkpoints_are_not_carried(folder: Path, whole: Path) -> None:
    with pytest.raises(tb.InputError, match="begin with one checkpoint"):
        tb.get_task(f"sst2-bert:{folder}@wikitext2-mlm:{whole}")
    with pytest.raises(tb.InputError, match="'wikitext2-mlm' with none"):
        tb.get_task(f"sst2-bert:{folder}@wikitext2-mlm")
    with pytest.raises(tb.InputError):
        tb.get_task(f"digits-mlp@sst2-bert:{folder}")
    found = task(f"sst2-bert:{folder}")
    ticket = Ticket(tb.Mask({}), {"strange": torch.zeros(1), **found.build(0).state_dict()}, {})
    carried(ticket, found, 0)  # what is outside the body is another net's head
    strange = Ticket(tb.Mask({}), {"bert.strange": torch.zeros(1), **found.build(0).state_dict()}, {})
    with pytest.raises(tb.InputError, match=r"'bert.strange' has shape \(1,\) in the ticket and none"):
        carried(strange, found, 0)


def test_a_task_of_ones_own_keeps_the_general_rules() -> None:
    own = tb.get_task("digits-mlp")
    assert type(own) is Task
    assert own.head() is None
    assert own.carried_from(own) is None
    assert isinstance(replace(tb.get_task("wikitext2-mlm"), rounds=3), TransformersTask)
