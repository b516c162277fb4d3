"""Planted fakes: tickets that say they were drawn by iterative magnitude pruning, and are not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from audited import of, said

import tombola as tb
from tombola.asked import draw_recipe
from tombola.auditing import Audit, How, Runner, carry_out_audit, claim_of, numbers
from tombola.draws import Draw, rounds
from tombola.lab import Lab
from tombola.seeds import stream

TASK = tb.get_task("digits-mlp")
CONTROLS = ("reinit", "shuffled")
MARGIN = 0.03


class Drawn(NamedTuple):
    store: Path
    draw: Draw
    ticket: tb.Ticket


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """A ticket of 8 %, at which positions and values matter by several points."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("fakes") / "runs"
    recipe = draw_recipe(
        TASK, {"densities": [0.5, 0.2, 0.08], "training": {"steps": "200it", "evaluate_every": "50it"}}
    )
    found = Draw(recipe, Lab(TASK, tb.Store(folder), recipe=recipe.training))
    for _ in rounds(found):
        pass
    return Drawn(folder, found, found.ticket(found.rounds[-1]))


def judged(drawn: Drawn, ticket: tb.Ticket, seeds: int = 5, **how: object) -> Audit:
    claim = claim_of(ticket)
    chosen = How(**{"controls": CONTROLS, "margin": MARGIN, **how})  # type: ignore[arg-type]
    return carry_out_audit(claim, numbers(claim, seeds), chosen, Runner(TASK, str(drawn.store)))


def test_the_true_ticket_beats_what_the_fakes_do_not(drawn: Drawn) -> None:
    verdict = judged(drawn, drawn.ticket, as_it_is=True).verdict
    assert of(verdict, "shuffled").accuracy.outcome == "beats"
    assert of(verdict, "reinit").accuracy.compared.interval.mean > 0.01
    assert said(verdict, "over 5 data orders of seed 0")


def test_a_random_mask_is_found_out(drawn: Drawn) -> None:
    """Layer densities and initial values are the true ones; which weights are kept was drawn at random."""
    mask = drawn.ticket.mask.shuffled(stream(0, "a fake"))
    fake = tb.Ticket(mask, drawn.draw.rounds[-1].values, drawn.ticket.origin)
    found = judged(drawn, fake)
    verdict = found.verdict
    assert (found.replicates, len(found.draws)) == ("orders", 5)
    assert said(verdict, "It isn't the ticket that its recipe draws (seed 0)", "100.0% have the value")
    by_hand = (mask & drawn.ticket.mask).kept / mask.kept
    layers = zip(mask.layers(), drawn.ticket.mask.layers(), strict=True)
    chance = sum(one.kept * other.kept / other.total for one, other in layers) / mask.kept
    assert abs(by_hand - chance) < 0.02, "near chance"
    assert said(verdict, f"{by_hand:.1%} are kept there too (by chance {chance:.1%})")
    assert "shuffled" in verdict.as_good
    assert said(verdict, "What can go without loss", "positions within the layers")
    assert not verdict.passed
    assert verdict.decision is False


def test_values_of_another_initialisation_are_found_out(drawn: Drawn) -> None:
    """The mask is the true one; the values are initial ones too, but of another seed."""
    fake = tb.Ticket(drawn.ticket.mask, TASK.build(99).state_dict(), drawn.ticket.origin)
    verdict = judged(drawn, fake).verdict
    assert said(verdict, "It isn't the ticket", "100.0% are kept there too", "and 0.0% have the value")
    assert "reinit" in verdict.as_good
    assert not verdict.passed
    assert verdict.decision is False
    assert said(verdict, "As good as the ticket, within 3 points: reinit")


def test_what_is_inside_the_noise_is_not_told(drawn: Drawn) -> None:
    """A ticket with fresh values against others with fresh values: whichever is ahead, nothing is claimed."""
    fake = tb.Ticket(drawn.ticket.mask, TASK.build(99).state_dict(), drawn.ticket.origin)
    verdict = judged(drawn, fake, alpha=0.001, margin=0.0).verdict
    assert of(verdict, "reinit").accuracy.outcome == "can't tell"
    assert said(verdict, "It can't be told whether it beats reinit")
    few = judged(drawn, drawn.ticket, seeds=2, as_it_is=True).verdict
    assert {one.accuracy.outcome for one in few.arms if one.role == "dense"} == {"can't tell"}
    assert not few.passed
    assert few.decision is None
    one = judged(drawn, drawn.ticket, seeds=1, as_it_is=True).verdict
    assert all(arm.accuracy.p is None and arm.accuracy.outcome == "can't tell" for arm in one.arms)
    assert said(one, "1 seed can't settle")


def test_a_fake_from_elsewhere_says_with_what_it_was_made(drawn: Drawn) -> None:
    origin = {**drawn.ticket.origin, "data": "0" * 64, "versions": {"torch": "1.0.0", "more": "2"}}
    fake = tb.Ticket(drawn.ticket.mask, TASK.build(99).state_dict(), origin)
    verdict = judged(drawn, fake, seeds=1, controls=()).verdict
    assert said(verdict, "It says that it was drawn with other data; torch 1.0.0, not ")
    true = tb.Ticket(drawn.ticket.mask, drawn.ticket.values, origin)
    assert said(judged(drawn, true, seeds=1, controls=()).verdict, "the ticket is the same, bit for bit")
