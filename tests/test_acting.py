"""Trainings whose data come of acting: a bandit whose right arm depends on what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import interrupted, resumed
from torch import Tensor, nn
from toy import drawn, same, toy_task

import tombola as tb
from tombola.batches import size_of
from tombola.durations import Duration
from tombola.lab import Lab
from tombola.seeds import stream

RIGHT = torch.randn(12, 3, generator=stream(3, "right"))


class Bandit:
    """So many games a batch; the more have been played, the farther from 0 is what they show."""

    def __init__(self, size: int, order: int) -> None:
        self.size, self.order, self.played, self.paid = size, order, 0, 0.0

    def batch(self, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        assert model.training
        x = torch.randn(self.size, 12) * (1 + self.played / 10_000) + self.order
        with torch.no_grad():
            arm = torch.distributions.Categorical(logits=model(x)).sample()
        paid = ((x @ RIGHT).argmax(dim=1) == arm).float()
        self.played, self.paid = self.played + self.size, float(paid.mean())
        return x, arm, paid - 1 / 3

    @property
    def seen(self) -> Mapping[str, float]:
        return {"paid": self.paid}

    def state(self) -> dict[str, Tensor]:
        return {"played": torch.tensor(self.played), "paid": torch.tensor(self.paid)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.played, self.paid = int(state["played"]), float(state["paid"])


class Games:
    """An epoch of 250 games; untaught, they are those of an arm drawn at random."""

    digest = "games"

    def __len__(self) -> int:
        return 250

    def take(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = stream(int(index.sum()), "untaught")
        x, arm = torch.randn(len(index), 12, generator=g), torch.randint(3, (len(index),), generator=g)
        return x, arm, ((x @ RIGHT).argmax(dim=1) == arm).float() - 1 / 3

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        yield self.take(torch.arange(250))

    def to(self, device: str) -> Games:
        return self

    def play(self, seed: int, recipe: tb.Recipe) -> Bandit:
        return Bandit(recipe.batch, recipe.order)

    def forward_passes(self, steps: int, recipe: tb.Recipe) -> int:
        return steps * recipe.batch


def policy_loss(model: nn.Module, batch: Any) -> Tensor:
    x, arm, advantage = batch
    return -(advantage * model(x).log_softmax(dim=1).gather(1, arm[:, None])[:, 0]).mean()


def paid(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    right = ((batch[0] @ RIGHT).argmax(dim=1) == model(batch[0]).argmax(dim=1)).float().mean()
    return {"loss": -right, "paid": right}


def bandit(**changes: Any) -> tb.Task:
    fields = {"train": Games(), "validation": Games(), "test": None, "loss": policy_loss, "metrics": paid}
    return toy_task(**(fields | {"metric": "paid", "name": "bandit"} | changes))


def test_it_learns_and_tells_what_it_has_seen(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        run = Lab(bandit(recipe={"steps": "400it"}), store).train(0)
    assert run.summary["engine"] == "masked"
    assert "acting" in run.summary["engine_reason"]
    assert run.history[0]["validation_paid"] < 0.5
    assert run.summary["stop"]["validation_paid"] > 0.6
    assert all(0 <= row["train_paid"] <= 1 for row in run.history)
    assert run.history[0]["train_paid"] == 0, "nothing has been played before the first step"


def test_a_resume_goes_on_with_the_games_under_way(tmp_path: Path) -> None:
    with tb.Store(tmp_path / "a") as store, tb.Store(tmp_path / "b") as calm:
        interrupted(bandit(), store, 40)
        run, steps = resumed(bandit(), store)
        assert steps == [40, 50, 60]
        straight = Lab(bandit(), calm).train(0)
        assert same(run.final, straight.final)
        assert run.history == straight.history


def test_a_ticket_is_drawn_pruned_to_zero_and_rewound(tmp_path: Path) -> None:
    options = {"rounds": 2, "survivors": "rewind", "back_to": "10it", "controls": ["reinit", "shuffled"]}
    with tb.Store(tmp_path) as store:
        found = drawn(store, bandit(), **options)
        last = found.rounds[-1]
        for name, kept in last.mask.items():
            assert not bool(last.run.final[name][~kept].any())
            assert torch.equal(last.run.start[name], found.rounds[0].run.at(Duration(10))[name] * kept)


@pytest.mark.parametrize("method", ["snip", "set", "dsr", "deep_r", "gradual"])
def test_other_methods_draw_there_too(tmp_path: Path, method: str) -> None:
    with tb.Store(tmp_path) as store:
        found = drawn(
            store, bandit(), method=method, densities=[0.3], **({} if method == "snip" else {"update_every": "5it"})
        )
        assert found.rounds[-1].run.final_mask.density == pytest.approx(0.3, abs=0.01)


def test_another_order_plays_other_games(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store:
        one, other = (Lab(bandit(recipe={"order": order}), store).train(0).final for order in (0, 1))
    assert not same(one, other)


@pytest.mark.parametrize("recipe", [{"engine": "sparse"}, {"engine": "compact"}])
def test_what_needs_its_data_beforehand_is_refused(tmp_path: Path, recipe: dict[str, Any]) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match="acting"):
        Lab(bandit(recipe=recipe), store).train(0)


def test_rules_that_need_a_batch_beforehand_are_refused_at_once(tmp_path: Path) -> None:
    with tb.Store(tmp_path) as store, pytest.raises(tb.InputError, match="rigl need the gradients of a batch before"):
        drawn(store, bandit(), method="rigl", densities=[0.3], update_every="5it")


def test_a_metric_that_is_no_mean_is_made_of_means(tmp_path: Path) -> None:
    def conclude(means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "perplexity": 2 ** means["loss"]}

    task = toy_task(conclude=conclude, metric="perplexity", higher_is_better=False)
    with tb.Store(tmp_path) as store:
        run = Lab(task, store).train(0)
        assert run.summary["engine"] != "sparse"
        for row in run.history:
            assert row["validation_perplexity"] == 2 ** row["validation_loss"]
            assert "validation_accuracy" not in row
        assert run.metric("stop", "test") == 2 ** run.summary["stop"]["test_loss"]


def test_the_size_of_a_batch_is_that_of_its_games() -> None:
    assert size_of(Bandit(32, 0).batch(nn.Linear(12, 3))) == 32
