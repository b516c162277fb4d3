"""The examples run as a reader would run them, and what they print is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def printed(name: str, folder: Path) -> dict[str, str]:
    """What an example prints when run in a folder: ``before the colon: after it``. It must leave nothing there."""
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return {key: value for key, _, value in lines}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_plain_loop_keeps_pruned_weights_at_zero_and_the_ticket_learns(tmp_path: Path) -> None:
    lines = printed("plain_loop.py", tmp_path)
    total = 64 * 300 + 300 * 100 + 100 * 10
    assert numbers(lines["mask"]) == [total // 10, total, 0.1]
    zeros, pruned = numbers(lines["after training"])
    assert zeros == pruned == total - total // 10
    dense, ticket = numbers(lines["dense net"])[0], numbers(lines["ticket"])[0]
    assert dense > 0.9
    assert ticket > 0.9


def test_own_task_draws_a_ticket_whose_file_gives_it_back(tmp_path: Path) -> None:
    lines = printed("own_task.py", tmp_path)
    (round_line,) = (key for key in lines if key.startswith("round"))
    number, rounds, density = numbers(round_line)
    assert rounds == 5
    assert 1 <= number <= rounds
    assert abs(density - 0.7**number) < 1e-3
    assert lines["file"].endswith("the same ticket: True")
    total = 20 * 64 + 64 * 64 + 64 * 2
    assert numbers(lines["net"]) == [total - round(0.7**number * total)] * 2
    dense, ticket = numbers(lines["dense net"])[0], numbers(lines["ticket"])[0]
    assert dense > 0.85
    assert ticket > dense - 0.03


def test_own_loop_sparse_trains_the_kept_weights_only(tmp_path: Path) -> None:
    lines = printed("own_loop_sparse.py", tmp_path)
    total, biases = 64 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    assert numbers(lines["numbers to train"]) == [total // 10 + biases, total + biases]
    assert "GELU" in lines["left to torch"]
    assert numbers(lines["ticket"])[0] > 0.9
    zeros, pruned = numbers(lines["after training"])
    assert zeros == pruned == total - total // 10


def test_transformers_trainer_fine_tunes_a_ticket_with_zeros_where_it_prunes(tmp_path: Path) -> None:
    lines = printed("transformers_trainer.py", tmp_path)
    total = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert numbers(lines["mask"]) == [total // 2, total]
    assert numbers(lines["after training"]) == [total - total // 2] * 2
    dense, ticket = numbers(lines["dense net"])[0], numbers(lines["ticket"])[0]
    assert dense > 0.85
    assert ticket > 0.85
