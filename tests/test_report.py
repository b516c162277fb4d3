"""Tables and sentences of a draw, on rows whose results are worked out by hand."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_draws import fake_draw, run
from rich.console import Console

from tombola.errors import InputError
from tombola.report.tables import arms, rounds_markdown, rounds_table, save_tables, sentence


def text_of(table: Any, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# ---- tables

LADDER = [
    run(0, density=1.0, stop_step=1200, stop_metric=0.9604, end_metric=0.955, seconds=21.0),
    run(13, density=0.0557, stop_step=700, stop_metric=0.963, end_metric=0.9575, seconds=1.25),
    run(13, "reinit", density=0.0557, stop_step=2400, stop_metric=0.939, end_metric=0.93, seconds=1.5),
]


def test_markdown_of_one_seed() -> None:
    assert rounds_markdown(LADDER, "accuracy") == (
        "| round | density % | arm | early-stop step | accuracy at early stop % | accuracy at the end % | seconds |\n"
        "| ---: | ---: | :--- | ---: | ---: | ---: | ---: |\n"
        "| 0 | 100.00 | ticket | 1,200 | 96.04 | 95.50 | 21.0 |\n"
        "| 13 | 5.57 | ticket | 700 | 96.30 | 95.75 | 1.2 |\n"
        "| 13 | 5.57 | reinit | 2,400 | 93.90 | 93.00 | 1.5 |\n"
    )


def test_markdown_without_controls_has_no_column_of_arms() -> None:
    assert rounds_markdown(LADDER[:1], "perplexity") == (
        "| round | density % | early-stop step | perplexity at early stop | perplexity at the end | seconds |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 0 | 100.00 | 1,200 | 0.9604 | 0.955 | 21.0 |\n"
    )


def test_markdown_of_seeds_gives_means_and_ranges_and_counts_what_diverged() -> None:
    rows = [
        run(3, density=0.5, seed=0, stop_step=1000, stop_metric=0.96, end_metric=0.95, seconds=2),
        run(3, density=0.5, seed=1, stop_step=2000, stop_metric=0.98, end_metric=0.97, seconds=3),
        run(3, "a|b", density=0.5, seed=0, status="diverged", stop_step=None, stop_metric=None, end_metric=math.nan),
        run(3, "a|b", density=0.5, seed=1, stop_step=50, stop_metric=0.5, end_metric=None),
    ]
    lines = rounds_markdown(rows, "accuracy").splitlines()[2:]
    dash = "\N{EN DASH}"
    assert lines == [
        f"| 3 | 50.00 | ticket | 2 | 1,500 (1,000{dash}2,000) | 97.00 (96.00{dash}98.00)"
        f" | 96.00 (95.00{dash}97.00) | 2.5 |",
        "| 3 | 50.00 | a\\|b | 0 of 2 | 50 | 50.00 | diverged | 2.0 |",
    ]
    missing = rounds_markdown([run(1, stop_metric=None, stop_step=None, end_metric=math.inf)], "accuracy")
    assert missing.splitlines()[2] == f"| 1 | 80.00 | 0 of 1 | {dash} | {dash} | {dash} | 2.0 |"


def test_table_puts_controls_below_their_round_dims_them_and_stars_the_chosen_one() -> None:
    table = rounds_table([LADDER[2], LADDER[1], LADDER[0]], "accuracy", chosen=13)
    assert [row.style for row in table.rows] == ["", "bold", "dim"]
    rows = text_of(table, 120).splitlines()
    assert rows[1].split() == ["0", "100.00", "ticket", "1,200", "96.04", "95.50", "21.0"]
    assert rows[2].split()[:3] == ["*", "13", "5.57"]
    assert rows[3].split()[:4] == ["13", "5.57", "reinit", "2,400"]
    assert rows[4].strip() == "* the chosen round"


def test_table_loses_nothing_on_eighty_columns() -> None:
    text = text_of(rounds_table(fake_draw()[0], "accuracy", 9), 80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "(96.43\N{EN DASH}96.47)" in text
    assert "2 of 3" in text


def test_arms_stand_in_one_order_everywhere() -> None:
    rows = [run(1, arm) for arm in ("zebra", "shuffled", "reinit", "apple", "random", "ticket")]
    assert arms(rows) == ["ticket", "reinit", "random", "shuffled", "apple", "zebra"]


def test_csv_keeps_every_row_in_stable_columns(tmp_path: Path) -> None:
    rounds, curves, layers = fake_draw(seeds=1, rounds=12, draws=1)
    paths = save_tables(tmp_path / "new", [{**row, "extra": 1} for row in rounds], curves, layers)
    assert [path.name for path in paths] == ["rounds.csv", "curves.csv", "layers.csv"]
    heads = [path.read_text().splitlines()[0] for path in paths]
    assert heads[0] == (
        "seed,arm,draw,round,density,status,stop_step,stop_metric,end_metric,validation_metric,seconds,extra"
    )
    assert heads[1] == "seed,arm,draw,round,density,step,train_loss,validation_loss,validation_metric"
    assert heads[2] == "seed,round,density,layer,layer_density,kept,total"
    for path, rows in zip(paths, (rounds, curves, layers), strict=True):
        with path.open(newline="") as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(rows)
        assert [float(row["density"]) for row in read] == [row["density"] for row in rows]
    save_tables(tmp_path, [run(1, stop_step=None)], [], [])
    assert (tmp_path / "rounds.csv").read_text().splitlines()[1] == "0,ticket,0,1,0.8,finished,,0.96,0.95,0.97,2.0"


# ---- the sentence


def test_sentence_of_one_seed() -> None:
    assert sentence(LADDER, 13, "accuracy", "digits-mlp") == (
        "At 5.6 % density (round 13) the ticket of digits-mlp reaches 96.3 % test accuracy at early stop (step 700), "
        "against 96.0 % (step 1,200) for the dense net and 93.9 % (step 2,400) for the same mask reinitialised."
    )


def test_sentence_without_controls_or_dense_net() -> None:
    assert sentence(LADDER[:2], 13, "accuracy", "digits-mlp") == (
        "At 5.6 % density (round 13) the ticket of digits-mlp reaches 96.3 % test accuracy at early stop (step 700), "
        "against 96.0 % (step 1,200) for the dense net."
    )
    assert sentence(LADDER[1:2], 13, "accuracy", "x") == (
        "At 5.6 % density (round 13) the ticket of x reaches 96.3 % test accuracy at early stop (step 700)."
    )


def test_sentence_of_several_draws_and_other_controls() -> None:
    rows = [*LADDER, run(13, "reinit", draw=1, density=0.0557, stop_step=2600, stop_metric=0.949)]
    rows += [run(13, "random", stop_metric=0.9, stop_step=None), run(13, "shrunk", stop_metric=0.8, stop_step=90)]
    assert sentence(rows, 13, "accuracy", "digits-mlp") == (
        "At 5.6 % density (round 13) the ticket of digits-mlp reaches 96.3 % test accuracy at early stop (step 700), "
        "against 96.0 % (step 1,200) for the dense net, 94.4 % (step 2,500; mean of 2 draws) for the same mask "
        "reinitialised, 90.0 % for a random mask of that density and 80.0 % (step 90) for the control 'shrunk'."
    )


def test_sentence_of_several_seeds() -> None:
    rows = [{**row, "seed": seed, "stop_metric": row["stop_metric"] + seed / 100} for row in LADDER for seed in (0, 1)]
    assert sentence(rows, 13, "accuracy", "digits-mlp") == (
        "On average over 2 seeds, at 5.6 % density (round 13) the tickets of digits-mlp reach 96.8 % test accuracy at "
        "early stop (step 700), against 96.5 % (step 1,200) for the dense nets and 94.4 % (step 2,400) for the same "
        "masks reinitialised."
    )
    rows = [row for row in rows if row["arm"] == "ticket" or row["seed"] == 0]
    rows.append(run(13, "random", seed=1, draw=0, stop_metric=0.9))
    rows.append(run(13, "random", seed=1, draw=1, stop_metric=None, status="diverged"))
    assert sentence(rows, 13, "accuracy", "digits-mlp").endswith(
        "93.9 % (step 2,400; 1 draw) for the same masks reinitialised and "
        "90.0 % (step 1,000; 1 draw; 1 of 2 diverged) for random masks of that density."
    )


def test_sentence_of_diverged_arms() -> None:
    lost = {"status": "diverged", "stop_metric": None, "stop_step": None, "end_metric": None}
    dense, ticket, reinit = LADDER
    assert sentence([dense, ticket, reinit | lost, reinit | lost | {"draw": 1}], 13, "accuracy", "x") == (
        "At 5.6 % density (round 13) the ticket of x reaches 96.3 % test accuracy at early stop (step 700), "
        "against 96.0 % (step 1,200) for the dense net; the same mask reinitialised diverged in all 2 runs."
    )
    assert sentence([dense, ticket | lost, reinit], 13, "accuracy", "x") == (
        "At 5.6 % density (round 13) the ticket of x diverged; test accuracy at early stop was 96.0 % (step 1,200) for "
        "the dense net and 93.9 % (step 2,400) for the same mask reinitialised."
    )
    assert sentence([dense | {"stop_metric": math.nan}, ticket | lost], 13, "accuracy", "x") == (
        "At 5.6 % density (round 13) the ticket of x diverged; the dense net gave no value."
    )


def test_sentence_when_no_ticket_was_good_enough() -> None:
    one, two = ({"stop_metric": m, "validation_metric": m} for m in (0.941, 0.93))
    rows = [LADDER[0], run(1, stop_step=900, **one), run(2, **two), LADDER[2]]
    assert sentence(rows, 0, "accuracy", "x") == (
        "No ticket of x stayed within the margin of the dense net: the dense net reaches 96.0 % test accuracy at early "
        "stop (step 1,200), and the best ticket, at 80.0 % density (round 1), 94.1 % (step 900)."
    )
    assert "the best ticket, at 64.0 % density (round 2), 0.93 (" in sentence(rows, 0, "loss", "x")
    seeds = [{**row, "seed": seed} for row in rows for seed in range(3)]
    assert sentence(seeds, 0, "accuracy", "x") == (
        "No ticket of x stayed within the margin of the dense net: on average over 3 seeds, the dense nets reach "
        "96.0 % test accuracy at early stop (step 1,200), and the best tickets, at 80.0 % density (round 1), "
        "94.1 % (step 900)."
    )
    assert sentence(LADDER[:1], 0, "accuracy", "x") == (
        "No ticket of x was drawn: the dense net reaches 96.0 % test accuracy at early stop (step 1,200)."
    )
    assert sentence([LADDER[0], run(1, stop_metric=None, status="diverged")], 0, "accuracy", "x") == (
        "No ticket of x gave a result: the dense net reaches 96.0 % test accuracy at early stop (step 1,200)."
    )


def test_sentence_with_another_metric() -> None:
    rows = [run(0, density=1.0, stop_metric=21.5), run(5, density=0.002, stop_metric=1234.5678)]
    assert sentence(rows, 5, "perplexity", "tiny-language") == (
        "At 0.2 % density (round 5) the ticket of tiny-language reaches a test perplexity of 1235 at early stop "
        "(step 1,000), against 21.5 (step 1,000) for the dense net."
    )
    assert " 96.0 % test balanced accuracy at " in sentence([run(0), run(1)], 1, "balanced_accuracy", "x")


def test_a_chosen_round_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"one of the tickets' rounds \[0, 13\], but got 7"):
        sentence(LADDER, 7, "accuracy", "x")


def test_tables_and_figures_import_nothing_heavy() -> None:
    code = "import sys, tombola.report.tables, tombola.report.figures; print({'altair', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
