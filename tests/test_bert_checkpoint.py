"""Checkpoints in Transformers' format: what is taken from them, what makes their identity, what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_tools import config, distilled, made, task
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForMaskedLM, BertForSequenceClassification, BertModel

import tombola as tb
from tombola.tasks import is_known
from tombola.tasks.pretrained.checkpoint import MASKED_WORDS, checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_body_has_the_checkpoints_bits_and_a_head_those_of_the_seed(folder: Path) -> None:
    found = tb.get_task(f"sst2-bert:{folder}")
    stored = load_file(folder / "model.safetensors")
    one, again, other = (found.build(seed).state_dict() for seed in (0, 0, 1))
    body = {name for name in one if name in stored}
    assert {name for name in one if name not in body} == {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")
    }
    assert all(torch.equal(net[name], stored[name]) for name in body for net in (one, again, other))
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = one["classifier.weight"], other["classifier.weight"]
    assert not torch.equal(*drawn)
    assert 0.01 < float(torch.cat(drawn).std()) < 0.04, "normal with initializer_range 0.02"
    assert not bool(one["classifier.bias"].any())
    assert found.build(0).training


def test_names_are_the_librarys(folder: Path) -> None:
    net = tb.get_task(f"sst2-bert:{folder}").build(0)
    theirs = AutoModelForSequenceClassification.from_config(config())  # type: ignore[no-untyped-call]
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert type(net) is type(theirs)


def test_the_head_of_a_fine_tuned_checkpoint_is_not_taken(tmp_path: Path) -> None:
    net = made(tmp_path / "b", BertForSequenceClassification, num_labels=3)
    found = tb.get_task(f"sst2-bert:{tmp_path / 'b'}").build(0).state_dict()
    assert found["classifier.weight"].shape == (2, 16)
    pooler = "bert.pooler.dense.weight"
    assert torch.equal(found[pooler], net.state_dict()[pooler]), "a pooler that is there is part of the body"


def test_a_body_without_its_prefix_is_read(tmp_path: Path) -> None:
    net = made(tmp_path / "b", BertModel)
    found = tb.get_task(f"sst2-bert:{tmp_path / 'b'}").build(0).state_dict()
    assert all(torch.equal(found[f"bert.{name}"], value) for name, value in net.state_dict().items())


def test_the_head_for_masked_words_is_the_checkpoints(folder: Path, tmp_path: Path) -> None:
    found = tb.get_task(f"wikitext2-mlm:{folder}").build(0).state_dict()
    theirs = BertForMaskedLM.from_pretrained(folder).state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in found.items())
    made(tmp_path / "bare", BertModel)
    drawn = [tb.get_task(f"wikitext2-mlm:{tmp_path / 'bare'}").build(seed).state_dict() for seed in (0, 0, 1)]
    name = "cls.predictions.transform.dense.weight"
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


def test_a_checkpoint_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("not read")
    first, same = (tb.get_task(f"sst2-bert:{path}") for path in (folder, copy))
    assert first.name != same.name
    assert first.identity() == same.identity()
    made(copy, seed=1)
    assert tb.get_task(f"sst2-bert:{copy}").identity() != first.identity()
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(about | {"hidden_dropout_prob": 0.3}))
    assert tb.get_task(f"sst2-bert:{copy}").identity() != first.identity(), "other dropout, the same values"


def test_a_name_gives_one_task_for_as_long_as_the_checkpoint_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tb.get_task(f"sst2-bert:{folder}")
    assert is_known(first)
    monkeypatch.chdir(folder.parent)
    assert tb.get_task("sst2-bert:bert") is first
    assert first.name == f"sst2-bert:{folder.resolve()}"
    made(folder, seed=1)
    assert not is_known(first)
    with pytest.raises(tb.InputError, match="must stay as it is while it is used"):
        first.build(0)
    second = tb.get_task(f"sst2-bert:{folder}")
    assert second is not first
    second.build(0)


def test_controls_draw_the_body_too(folder: Path) -> None:
    found = task(f"sst2-bert:{folder}")
    own, fresh, another = (
        found.build(0, *names).state_dict() for names in ((), ("control", "reinit", 0), ("control", "reinit", 1))
    )
    weights = [name for name in own if name.endswith("dense.weight") or name.endswith("query.weight")]
    assert len(weights) > 8
    for name in weights:
        assert not torch.equal(own[name], fresh[name])
        assert not torch.equal(another[name], fresh[name])


def test_other_architectures_with_a_body_do(tmp_path: Path) -> None:
    made(tmp_path / "d", lambda _: distilled())
    found = tb.get_task(f"sst2-bert:{tmp_path / 'd'}")
    net = found.build(0)
    assert type(net).__name__ == "DistilBertForSequenceClassification"
    left = {name for name in found.prunable(net) if name not in found.unpruned}
    assert left == {n for n in found.prunable(net) if n.startswith("distilbert.transformer.")}


# What is refused


def test_a_family_without_a_checkpoint_says_what_to_do() -> None:
    for name in ("sst2-bert", "sst2-bert-small", "sst2-bert:"):
        with pytest.raises(tb.InputError, match=r"FOLDER, a folder in Transformers' format, or .*bert-base-uncased"):
            tb.get_task(name)
    with pytest.raises(tb.InputError, match="Did you mean 'sst2-bert'"):
        tb.get_task("sst2-brt")


def test_pickles_are_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(tb.InputError, match=r"only pytorch_model.bin, a pickle, which can run code and is never read"):
        tb.get_task(f"sst2-bert:{folder}")


@pytest.mark.parametrize(("gone", "rule"), [("config.json", "no config.json"), ("model.safetensors", "no model.saf")])
def test_a_folder_in_another_format_is_refused(folder: Path, gone: str, rule: str) -> None:
    (folder / gone).unlink()
    with pytest.raises(tb.InputError, match=rule):
        tb.get_task(f"sst2-bert:{folder}")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_hidden_layers": 3}, "lacks 16, 'bert.encoder.layer.2.attention.output.LayerNorm.bias' first"),
        ({"hidden_size": 32}, "lacks"),
        ({"model_type": "roberta"}, "lacks"),
        ({"model_type": "nothing"}, "can't read the configuration"),
    ],
)
def test_other_architectures_than_the_configuration_says_are_refused(
    folder: Path, changes: dict[str, Any], rule: str
) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))
    with pytest.raises(tb.InputError, match=rule):
        tb.get_task(f"sst2-bert:{folder}").build(0)


def test_damage_is_named(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((tb.InputError, tb.DataError), match=r"model.safetensors is damaged"):
        tb.get_task(f"sst2-bert:{folder}")


def test_a_missing_weight_is_named(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["bert.encoder.layer.1.output.dense.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(tb.InputError, match=r"lacks 1, 'bert.encoder.layer.1.output.dense.weight' first"):
        tb.get_task(f"sst2-bert:{folder}").build(0)


def test_a_path_with_an_at_is_refused(folder: Path) -> None:
    moved = folder.rename(folder.with_name("b@c"))
    with pytest.raises(tb.InputError, match="may not hold an @"):
        checkpoint(str(moved))


def test_a_failing_hub_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **_: Any) -> str:
        raise OSError("no route to the hub\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(tb.DataError, match=r"no folder 'bert-base-uncased'.* hub: no route to the hub\nName a folder"):
        tb.get_task("sst2-bert:bert-base-uncased")
    with pytest.raises(tb.InputError, match=r"'/no/such/folder' is none"):
        tb.get_task("sst2-bert:/no/such/folder")


def test_the_hubs_cache_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def given(name: str, *, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append((name, local_files_only))
        assert not [pattern for pattern in allow_patterns if "bin" in pattern or pattern.endswith(".py")]
        if local_files_only:
            raise FileNotFoundError
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", given)
    found = tb.get_task("sst2-bert:some/bert")
    assert found.name == "sst2-bert:some/bert"
    assert tb.get_task("sst2-bert:some/bert") is found
    assert asked == [("some/bert", True), ("some/bert", False)]
    assert found.identity() == tb.get_task(f"sst2-bert:{folder}").identity()


def test_without_the_library_the_error_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(tb.InputError, match=r"pip install 'tombola\[transformers\]'"):
        tb.get_task(f"sst2-bert:{folder}")


def test_a_tokenizer_without_padding_is_refused(folder: Path) -> None:
    about = json.loads((folder / "tokenizer_config.json").read_text())
    del about["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(tb.InputError, match="must have a padding token"):
        tb.get_task(f"sst2-bert:{folder}")


def test_a_skeleton_has_names_and_no_values(folder: Path) -> None:
    net = checkpoint(str(folder)).skeleton(MASKED_WORDS)
    assert all(parameter.is_meta for parameter in net.parameters())
