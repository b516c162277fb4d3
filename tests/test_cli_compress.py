"""``tombola compress`` and ``tombola decompress``: files, tables, one JSON document, evaluation, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_tools import call

import tombola as tb
from tombola.engines.evaluation import evaluate
from tombola.shipping.compressed import decompress
from tombola.shipping.sharing import shared_ticket

torch.set_num_threads(1)

TASK = "digits-mlp"


def digits_ticket(density: float = 0.5) -> tb.Ticket:
    model = tb.get_task(TASK).build(0)
    generator = torch.Generator().manual_seed(0)
    mask = tb.Mask({n: torch.rand(p.shape, generator=generator) < density for n, p in tb.prunable(model).items()})
    return tb.Ticket(mask, model.state_dict(), {"task": TASK, "seed": 0})


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    return digits_ticket().save(tmp_path / "a.ticket")


def test_there_and_back(ticket: Path) -> None:
    made = call("compress", ticket, "--bits", "3")
    assert (made.status, made.err) == (0, "")
    small = ticket.with_suffix(".tdc")
    size = small.stat().st_size
    assert f"{small}: {size:,} bytes on disk" in made.out
    assert "read back, it is the same bit for bit" in made.out
    total = sum(value.numel() for value in tb.load(ticket).values.values())
    assert f"{4 * total / size:.1f} times smaller than the {total:,} values" in made.out
    lines = {line.split()[0]: line.split() for line in made.out.splitlines() if line}
    assert next(iter(lines)) == "layer"
    assert lines["fc1.weight"][2] == "8"  # distinct values
    assert lines["ratio"][1] == "1.0x"

    back = call("decompress", small)
    assert (back.status, back.err) == (0, "")
    path = ticket.with_suffix(".decompressed.ticket")
    assert f"{path}: " in back.out
    assert tb.load(path) == shared_ticket(tb.load(ticket), 3)
    assert tb.load(ticket) == digits_ticket()  # the original is still there


def test_json_and_other_names(ticket: Path, tmp_path: Path) -> None:
    small, again = tmp_path / "small.bin", tmp_path / "again.ticket"
    made = call("compress", ticket, "-o", small, "--bits", "4", "--json").json
    assert made["file"] == str(small)
    assert made["bytes"] == small.stat().st_size
    assert made["ratio"] == made["layers"][-1]["dense"] / made["bytes"]
    assert [row["name"] for row in made["layers"]][-1] == "total"
    assert 8 < made["layers"][0]["distinct"] <= 16
    back = call("decompress", small, "--output", again, "--json").json
    assert back["file"] == str(again)
    assert back["digest"] == tb.load(again).digest == decompress(small).digest
    assert "test" not in back


def test_evaluation_is_that_of_the_ticket(ticket: Path) -> None:
    call("compress", ticket, "--bits", "5")
    small, shared, task = ticket.with_suffix(".tdc"), shared_ticket(tb.load(ticket), 5), tb.get_task(TASK)
    test = task.splits(0).test
    assert test is not None
    expected = evaluate(task, shared.model(), test)
    assert call("decompress", small, "--evaluate", "--json").json["test"] == expected
    said = call("decompress", small, "--evaluate").out
    assert f"test data of {TASK}: loss {expected['loss']:.4f}, accuracy {expected['accuracy']:.4f}" in said


def test_weights_that_are_not_shared_are_pointed_out(tmp_path: Path) -> None:
    ticket = digits_ticket(0.02).save(tmp_path / "a.ticket")
    made = call("compress", ticket)
    assert made.status == 0
    assert "Hardly any values are shared in" in made.out
    assert "--bits 5 shares them" in made.out
    assert decompress(tmp_path / "a.tdc") == tb.load(ticket)
    assert "Hardly any" not in call("compress", ticket, "--bits", "2").out


def test_bad_input_is_refused(ticket: Path, tmp_path: Path) -> None:
    for args, said in [
        (("compress", tmp_path / "none.ticket"), "no ticket file at"),
        (("compress", ""), "a folder, not a ticket file"),
        (("compress", ticket, "--bits", "13"), "13 is not in the range 1<=x<=12"),
        (("compress", ticket, "-o", ""), "must be a path"),
        (("compress", ticket, "-o", tmp_path / "none" / "a.tdc", "--bits", "5"), "can't write a compressed ticket"),
        (("compress", ticket), "share the weights first, or give bits"),
        (("decompress", tmp_path / "none.tdc"), "no compressed ticket at"),
        (("decompress", ticket), "expected a Tombola file of the kind 'compressed'"),
    ]:
        found = call(*args)
        assert found.status == 2, args
        assert said in found.err
        assert found.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ticket"]


def test_a_net_without_a_task_is_not_evaluated_and_nothing_is_written(tmp_path: Path) -> None:
    ticket = digits_ticket()
    tb.Ticket(ticket.mask, ticket.values, {}).save(tmp_path / "a.ticket")
    call("compress", tmp_path / "a.ticket", "--bits", "5")
    found = call("decompress", tmp_path / "a.tdc", "--evaluate")
    assert found.status == 2
    assert "origin names no task" in found.err
    assert not (tmp_path / "a.decompressed.ticket").exists()
    assert call("decompress", tmp_path / "a.tdc").status == 0
