"""Methods that prune trained nets: thresholds, criteria of each round's net, compensated and shared values, costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import drawn
from torch import Tensor, nn
from toy import same, toy_task

import tombola as tb
from tombola.criteria import CRITERIA, compensated, score
from tombola.mask import Mask
from tombola.methods import METHODS, AtInit
from tombola.methods.base import Round
from tombola.methods.work import measured
from tombola.pruning import Allocation
from tombola.seeds import stream
from tombola.shipping.compressed import compress, decompress
from tombola.shipping.sharing import share
from tombola.tasks.balance import balanced

QUICK = {"recipe": {"steps": "30it"}}
STEPS = {"recipe": {"steps": "30it", "lr_schedule": "steps", "milestones": ("20it",)}}


def conv() -> nn.Module:
    body = (nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(48, 3))


def masked(values: Mapping[str, Tensor], mask: Mask) -> dict[str, Tensor]:
    return {n: v * mask[n] if n in mask else v for n, v in values.items()}


def scoring_batches(round: Round, per_class: int) -> list[Any]:
    train = round.run.lab.splits(round.run.seed).train
    index = balanced(train, per_class, stream(round.run.seed, "scoring"))
    return [train.take(part) for part in torch.split(index, 250)]


# ---- thresholds and rates


def test_han_prunes_at_one_number_of_standard_deviations(store: tb.Store) -> None:
    found = drawn(store, toy_task(**STEPS), method="han", rounds=3, rate=0.4)
    total = found.rounds[0].mask.total
    for before, now in zip(found.rounds, found.rounds[1:], strict=False):
        assert now.mask <= before.mask
        assert now.mask.kept == round(0.6**now.number * total)
        final = before.run.final
        deviations = {
            n: w.abs() / final[n][before.mask[n]].std(correction=0) for n, w in final.items() if n in now.mask
        }
        quality = min(float(d[now.mask[n]].min()) for n, d in deviations.items() if now.mask[n].any())
        dropped = [d[before.mask[n] & ~now.mask[n]] for n, d in deviations.items()]
        assert float(torch.cat(dropped).max()) < quality, "each layer's threshold is the same number of deviations"
        assert same(now.run.start, masked(final, now.mask)), "survivors keep their final values"
        assert (now.run.recipe.lr, now.run.recipe.lr_schedule) == (pytest.approx(0.001), "constant")
        assert now.run.summary["steps"] == 30


def test_lr_rewind_replays_the_whole_schedule_on_final_values(store: tb.Store) -> None:
    found = drawn(store, toy_task(**STEPS), method="lr_rewind", rounds=2)
    for before, now in zip(found.rounds, found.rounds[1:], strict=False):
        assert same(now.run.start, masked(before.run.final, now.mask))
        assert now.run.recipe == found.recipe.training
    part = drawn(store, toy_task(**STEPS), method="lr_rewind", rounds=1, back_to="10it")
    assert part.rounds[1].run.recipe == part.recipe.training.model_copy(update={"start": tb.Duration(10)})


def test_after_a_cosine_schedule_fine_tuning_still_trains(store: tb.Store) -> None:
    found = drawn(store, toy_task(recipe={"steps": "30it", "lr_schedule": "cosine"}), method="han", rounds=1)
    run = found.rounds[1].run
    assert run.recipe.lr == pytest.approx(found.recipe.training.lr / 100), "its last rate is as good as 0"
    assert run.recipe.lr_schedule == "constant"


# ---- second derivatives


@pytest.mark.parametrize("name", ["obd", "obs", "mlprune"])
def test_each_round_goes_by_the_net_of_the_round_before(store: tb.Store, name: str) -> None:
    task = toy_task(**QUICK)
    found = drawn(store, task, method=name, densities=(0.5, 0.2), score_per_class=20)
    assert [r.mask.kept for r in found.rounds] == [360, 180, 72]
    allocation: Allocation = tb.Layerwise(found.recipe.rate, {}) if name == "obs" else "global"
    for before, now in zip(found.rounds, found.rounds[1:], strict=False):
        given: dict[str, Any] = {"batches": scoring_batches(now, 20), "loss": task.loss, "mask": before.mask}
        model = before.run.model()
        scores = score(model, name, **given)
        by_hand = tb.prune(scores, now.mask.density, allocation, within=before.mask)
        assert now.mask == by_hand
        values = before.run.final | (compensated(model, name, by_hand, **given) or {})
        assert same(now.run.start, masked(values, now.mask))
        moved = any(not torch.equal(values[n][kept], before.run.final[n][kept]) for n, kept in now.mask.items())
        assert moved == (name == "obs"), "only obs compensates survivors for what is pruned"
        assert now.run.recipe.lr_schedule == "constant"


def test_second_derivatives_see_a_hundred_examples_of_a_class_by_default(store: tb.Store) -> None:
    for name in ("obd", "obs", "mlprune"):
        assert METHODS[name].per_class == 100
    found = drawn(store, toy_task(**QUICK), method="mlprune", density=0.5)
    assert found.recipe.score_per_class == 100
    dense = found.rounds[0]
    given: dict[str, Any] = {"batches": scoring_batches(dense, 100), "loss": found.lab.task.loss}
    assert found.rounds[1].mask == tb.prune(score(dense.run.model(), "mlprune", **given), 0.5)


# ---- deep compression


def test_deep_compression_shares_values_and_prunes_on_from_the_nets_before(store: tb.Store) -> None:
    task = toy_task(model=conv, allocation="global", **QUICK)
    found = drawn(store, task, method="deep_compression", rounds=3, settings={"bits": 2, "conv_bits": 3, "tuning": 0.2})
    pruned = drawn(store, task, method="han", rounds=3)
    for number in (1, 2, 3):
        now, plain = found.rounds[number], pruned.rounds[number]
        assert now.mask == plain.mask, "sharing changes nothing of the search"
        assert now.search[-1].id == plain.run.id
        assert now.run.recipe.trains == "centroids"
        assert now.run.recipe.lr == plain.run.recipe.lr
        assert now.run.summary["steps"] == 6
        shared = share(plain.run.final, now.mask, {"1.weight": 3, "*": 2})
        assert same(now.run.start, shared)
        assert same(dict(now.values), now.run.final), "the ticket is the tuned net"
        for name, most in (("1.weight", 8), ("5.weight", 4)):
            assert len(now.run.final[name][now.mask[name]].unique()) <= most
    assert same(found.ticket(found.rounds[2]).values | {}, found.rounds[2].run.final)


def test_deep_compression_is_stored_as_its_compressed_file(store: tb.Store, tmp_path: Path) -> None:
    found = drawn(store, toy_task(model=conv, **QUICK), method="deep_compression", rounds=2, settings={"bits": 2})
    dense, *rows = found.rows()
    assert dense["bytes"] == found.rounds[0].run.bytes
    for row, round in zip(rows, found.rounds[1:], strict=True):
        net = tb.Ticket(round.run.final_mask, round.run.final, {})
        compress(net, tmp_path / "net.tbc")
        assert row["bytes"] == (tmp_path / "net.tbc").stat().st_size
        assert same(dict(decompress(tmp_path / "net.tbc").values), dict(net.values))


# ---- costs


def test_costs_of_a_ticket_are_all_that_it_took(store: tb.Store) -> None:
    task = toy_task(**QUICK)
    imp = drawn(store, task, rounds=2)
    one, two = (drawn(store, task, rounds=2, method="one_shot"), drawn(store, task, rounds=3, strategy=2))
    for found, searches in ((imp, [[], [0], [0, 1]]), (one, [[], [0], [0]])):
        rows = found.rows()
        runs = [r.run for r in found.rounds]
        for row, run, earlier in zip(rows, runs, searches, strict=True):
            assert row["find_flops"] == sum(runs[number].flops or 0 for number in earlier)
            spent = sum(runs[number].seconds for number in earlier)
            assert spent <= row["find_seconds"] < spent + 1, "scoring by magnitude is next to nothing"
            assert (row["train_seconds"], row["train_flops"], row["bytes"]) == (run.seconds, run.flops, run.bytes)
            assert run.flops
    judged = [r.run.id for r in two.rounds[1:]]
    for round in two.rounds[1:]:
        assert len(round.search) == round.number
        assert [run.id for run in round.search[1:]] == [
            two.lab.train(0, start=dict(earlier.start), mask=earlier.mask).id for earlier in round.search[1:]
        ]
    assert two.rounds[3].search[2].id not in judged, "strategy 2 pays for the trainings it goes on with"


def test_scoring_is_part_of_what_finding_costs(store: tb.Store) -> None:
    task = toy_task(**QUICK)
    obd = drawn(store, task, method="obd", densities=(0.5, 0.2), score_per_class=5).rows()
    dense, first = obd[0]["train_flops"], obd[1]["train_flops"]
    scoring = [obd[1]["find_flops"] - dense, obd[2]["find_flops"] - dense - first]
    assert 0 < scoring[0] < scoring[1], "the second round has paid for the scoring of the first"
    snip = drawn(store, task, method="snip", densities=(0.5, 0.2)).rows()
    for row in snip[1:]:
        # forward and backward of 30 examples: the first layer's inputs want no gradient
        assert row["find_flops"] == 30 * 2 * (2 * 288 + 3 * 72)
    assert [row["find_flops"] for row in drawn(store, task, method="random_at_init", density=0.5).rows()] == [0, 0]


OF_WEIGHTS = {n for n, f in CRITERIA.items() if f.__module__ in ("tombola.criteria.zhou", "tombola.criteria.magnitude")}


@pytest.mark.parametrize("name", CRITERIA)
def test_measuring_changes_no_bit_of_any_score(name: str) -> None:
    task = toy_task(model=conv)
    model, start = task.build(0), task.build(1).state_dict()
    batches = [torch.empty(1, 12)] if name == "synflow" else [(task.train[0][:40], task.train[1][:40])]

    def scores() -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        given: dict[str, Any] = {"batches": batches, "loss": task.loss}
        found = score(model, name, initial=start, generator=stream(0, "criterion"), **given)
        return found, compensated(model, name, tb.prune(found, 0.3), **given)

    plain = scores()
    with measured() as work:
        counted = scores()
    assert same(plain[0], counted[0])
    assert (plain[1] is None) == (counted[1] is None)
    assert plain[1] is None or same(plain[1], counted[1] or {})
    assert (work.flops > 0) == (name not in OF_WEIGHTS)


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if isinstance(method, AtInit)])
def test_measuring_changes_no_mask_before_training(name: str) -> None:
    task, method = toy_task(model=conv), METHODS[name]
    assert isinstance(method, AtInit)
    by, rounds = method.criterion or "magnitude", None if method.rounds is None else 5

    def mask() -> Mask:
        batches = [torch.empty(1, 12)] if name == "synflow" else [(task.train[0][:40], task.train[1][:40])]
        return tb.prune_at_init(
            task.build(0), by, 0.2, batches, task.loss, rounds=rounds, generator=stream(0, "criterion")
        )

    plain = mask()
    with measured():
        assert mask() == plain


def test_operations_are_counted_two_a_multiply_add_also_under_vmap() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    with measured() as work:
        a @ b
        torch.vmap(lambda row: row @ b)(a)
    assert work.flops == 2 * (2 * 3 * 4 * 5)
    assert work.seconds >= 0


def test_measuring_imports_no_compiler() -> None:
    lines = (
        "import sys, torch",
        "from tombola.methods.work import measured",
        "with measured(): torch.ones(2, 2) @ torch.ones(2, 2)",
        "sys.exit('torch._dynamo' in sys.modules)",
    )
    assert subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False).returncode == 0


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "deep_compression", "settings": {"bits": 0}},
            "bits must be a whole number from 1 to 12, but got 0",
        ),
        ({"method": "deep_compression", "settings": {"conv_bits": 2.5}}, "conv_bits must be .* but got 2.5"),
        ({"method": "deep_compression", "settings": {"tuning": 0}}, "tuning must be .* above 0"),
        ({"method": "deep_compression", "settings": {"bit": 3}}, "has no setting 'bit'.*Did you mean 'bits'"),
        ({"method": "deep_compression", "controls": ["reinit"]}, "trains nothing from its ticket: leave controls out"),
        ({"method": "deep_compression", "survivors": "reset"}, "takes survivors fine-tune, but survivors is 'reset'"),
        ({"method": "han", "criterion": "movement"}, "goes by its own criterion, 'scaled_magnitude'"),
        ({"method": "han", "settings": {"q": 1}}, "has no setting 'q', but these: none"),
        ({"method": "imp", "settings": {"q": float("nan")}}, "settings.q: .*finite"),
        ({"method": "imp", "update_every": "5it"}, "updates no mask during training"),
        ({"method": "one_shot", "strategy": 2}, "which strategy 2 is about"),
        ({"method": "obs", "survivors": "keep"}, "takes survivors fine-tune or lr-rewind or reset or rewind"),
    ],
)
def test_what_does_not_go_with_a_method_is_refused_before_any_training(
    store: tb.Store, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.draw(toy_task(), store=store, **options)
    assert store.runs() == []


def test_a_straight_method_takes_a_schedule_too(store: tb.Store) -> None:
    found = drawn(store, toy_task(**QUICK), method="obd", density=0.2, rounds=2, schedule="linear", score_per_class=2)
    assert [r.mask.kept for r in found.rounds] == [360, 216, 72]
