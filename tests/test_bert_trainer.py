"""Masks in transformers.Trainer: exactly zero throughout, kept weights as without the callback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_tools import config
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import tombola as tb
from tombola.integrations.trainer import MaskCallback
from tombola.seeds import stream


def net() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(config())


def examples() -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 40, (64, 8), generator=stream(0, "examples"))
    return [{"input_ids": row, "labels": (row[0] > 20).long()} for row in ids]


def masked(model: nn.Module, density: float = 0.3) -> tb.Mask:
    scores = {name: score for name, score in tb.score(model, "magnitude").items() if ".encoder." in name}
    return tb.prune(scores, density=density)


def trainer(folder: Path, model: nn.Module, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    fields: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-2}
    fields |= {"weight_decay": 0.1, "per_device_train_batch_size": 8, "use_cpu": True, "seed": 0, "report_to": []}
    fields |= {"disable_tqdm": True, "dataloader_pin_memory": False, "logging_strategy": "no"}
    arguments = TrainingArguments(str(folder), **(fields | options))
    return Trainer(model, arguments, train_dataset=examples(), callbacks=list(callbacks))


def zeros(state: dict[str, Tensor], mask: tb.Mask) -> bool:
    """Whether everything pruned is exactly 0, and hardly anything kept is."""
    kept = torch.cat([state[name][keep] for name, keep in mask.items()])
    return not any(bool(state[name][~keep].any()) for name, keep in mask.items()) and float((kept == 0).sum()) == 0


class Watching(TrainerCallback):
    """Looks at the weights after every step."""

    def __init__(self, mask: tb.Mask) -> None:
        self.mask = mask
        self.seen: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(zeros(dict(kwargs["model"].state_dict()), self.mask))


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()  # the Trainer prints how long it took


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.1},
        {"bf16": True},
        {"optim": "adamw_torch", "adam_beta1": 0.5},
        {"optim": "sgd"},
    ],
)
def test_pruned_weights_are_zero_after_every_step_and_in_checkpoints(tmp_path: Path, options: dict[str, Any]) -> None:
    model = net()
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    mask = masked(model)
    watching = Watching(mask)
    trainer(tmp_path, model, MaskCallback(mask), watching, **options).train()
    assert watching.seen == [True] * 8
    for step in (4, 8):
        assert zeros(load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors"), mask)
    moved = [not torch.equal(model.state_dict()[n][keep], begin[n][keep]) for n, keep in mask.items()]
    assert all(moved), "what is kept trains"


def test_without_the_callback_they_are_not(tmp_path: Path) -> None:
    model = net()
    mask = masked(model)
    mask.apply_(model)
    watching = Watching(mask)
    trainer(tmp_path, model, watching).train()
    assert not any(watching.seen)


def test_a_mask_that_prunes_nothing_changes_nothing(tmp_path: Path) -> None:
    plain, guarded = net(), net()
    trainer(tmp_path / "a", plain).train()
    trainer(tmp_path / "b", guarded, MaskCallback(masked(guarded, 1.0))).train()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, guarded.state_dict()[name])


def test_kept_weights_train_as_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    """With SGD and neither dropout nor schedule, a step is: clear the pruned gradients, step, clear the weights."""
    model, own = net().eval(), net().eval()  # type: ignore[no-untyped-call]
    mask = masked(model)
    options = {"optim": "sgd", "weight_decay": 0.0, "lr_scheduler_type": "constant", "max_steps": 1, "seed": 0}
    seen: list[dict[str, Tensor]] = []

    class Spy(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append({name: value.clone() for name, value in inputs.items()})
            model.eval()
            return super().compute_loss(model, inputs, *args, **kwargs)

    made = trainer(tmp_path, model, MaskCallback(mask), max_grad_norm=0.0, **options)
    made.__class__ = Spy
    made.train()
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-2)
    with tb.guard(own, optimizer, mask):
        own(**seen[0]).loss.backward()
        optimizer.step()
    for name, value in own.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-7, rtol=1e-6)


def test_a_training_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    straight, resumed = net(), net()
    mask = masked(straight)
    trainer(tmp_path / "a", straight, MaskCallback(mask)).train()
    for parameter in resumed.parameters():
        nn.init.normal_(parameter)
    watching = Watching(mask)
    made = trainer(tmp_path / "a", resumed, MaskCallback(mask), watching)
    made.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert watching.seen == [True] * 4
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


def test_what_a_dense_checkpoint_remembers_of_pruned_weights_is_cleared(tmp_path: Path) -> None:
    model = net()
    mask = masked(model)
    trainer(tmp_path, model).train()
    watching = Watching(mask)
    made = trainer(tmp_path, model, MaskCallback(mask), watching, max_steps=12)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert watching.seen == [True] * 4
    assert made.optimizer is not None
    moments = {id(p): state for p, state in made.optimizer.state.items()}
    for name, parameter in mask.parameters(model).items():
        assert not bool(moments[id(parameter)]["exp_avg"][~mask[name]].any())


class FailingError(Exception):
    pass


class Failing(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise FailingError


def test_the_guard_ends_with_the_training(tmp_path: Path) -> None:
    model = net()
    callback = MaskCallback(masked(model))
    trainer(tmp_path, model, callback).train()
    hooks = [p._post_accumulate_grad_hooks for p in model.parameters()]
    assert not any(hooks)
    with pytest.raises(FailingError):
        trainer(tmp_path, model, callback, Failing()).train()
    assert any(p._post_accumulate_grad_hooks for p in model.parameters())
    callback.remove()
    callback.remove()
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_mask_of_another_net_is_refused_before_the_first_step(tmp_path: Path) -> None:
    other = tb.Mask({"bert.encoder.layer.7.output.dense.weight": torch.ones(16, 24, dtype=torch.bool)})
    with pytest.raises(
        tb.InputError, match=r"'bert.encoder.layer.7.output.dense.weight', which the model doesn't have"
    ):
        trainer(tmp_path, net(), MaskCallback(other)).train()


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tombola.integrations.trainer")
    with pytest.raises(tb.InputError, match=r"pip install 'tombola\[transformers\]'"):
        import tombola.integrations.trainer  # noqa: F401
