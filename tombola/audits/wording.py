"""A verdict in plain sentences with their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tombola.audits.blame import Part
from tombola.audits.outcomes import Judged, Power
from tombola.audits.pairing import TICKET, Arm, Compared, Quantity, listed, series

# What an arm is, behind its name.
ARMS = {
    "reinit": "its mask with fresh initial values",
    "shuffled": "a random mask with its layer densities",
    "random_uniform": "a random mask, every layer as dense",
    "random_erk": "a random mask with ERK's layer densities",
    "random_smart_ratio": "a random mask with the smart ratio's layer densities",
    "values_shuffled": "its initial values shuffled within each layer",
    "signed_reinit": "fresh magnitudes with its signs",
    "signed_constant": "its signs times one constant for each layer",
    "inverted": "the lowest scores kept instead of the highest",
    "random_labels": "a mask found with random labels",
    "shuffled_pixels": "a mask found on shuffled pixels",
    "random_ticket": "a random mask with its layer densities and fresh initial values",
    "reinit_whole": "its mask with fresh initial values, trained by the whole recipe",
    "random_ticket_whole": "a random ticket with its layer densities, trained by the whole recipe",
    "half_data": "a mask found with half of the data",
    "lr_rewind": "the same mask after learning-rate rewinding",
    "fine_tune": "the same mask after fine-tuning",
    "small_dense": "a small dense net with as many weights",
}

# What it means that a control does as well.
AS_GOOD = {
    "reinit": "its initial values do not matter: the same mask with fresh ones does as well",
    "shuffled": "which weights of a layer it keeps does not matter: a random mask with the same layer densities does "
    "as well",
    "random_uniform": "its mask does not matter: a random one, every layer as dense, does as well",
    "random_erk": "its mask does not matter: a random one with ERK's layer densities does as well",
    "random_smart_ratio": "its mask does not matter: a random one with the smart ratio's layer densities does as well",
    "values_shuffled": "which weight starts from which value does not matter: shuffled ones do as well",
    "signed_reinit": "of its initial values at most the signs matter: fresh magnitudes do as well",
    "signed_constant": "of its initial values at most the signs matter: one magnitude for each layer does as well",
    "inverted": "its scores say nothing: keeping the lowest does as well",
    "random_labels": "its search makes no use of the labels: a mask found with random ones does as well",
    "shuffled_pixels": "its search makes no use of the images: a mask found on shuffled pixels does as well",
    "random_ticket": "neither its mask nor its initial values matter beyond the layer densities: a random ticket with "
    "the same ones does as well",
    "reinit_whole": "its values do not matter: the same mask with fresh ones does as well, trained by the whole recipe",
    "random_ticket_whole": "neither its mask nor its values matter beyond the layer densities: a random ticket, "
    "trained by the whole recipe, does as well",
    "half_data": "its search makes do with half of the data",
}
BEFORE = {
    "shuffled": "a random mask with the same layer densities does as well: what was found before training are layer "
    "densities, not weights",
}


@dataclass(frozen=True, slots=True)
class Units:
    """How values of a quantity are written: shares in percent and points, steps and other metrics plainly."""

    quantity: Quantity

    def value(self, value: float) -> str:
        """``98.2 %``, ``step 1,200``, ``4.217``."""
        if self.quantity.share:
            return f"{100 * value:.1f} %"
        return f"step {value:,.0f}" if self.steps else f"{value:.4g}"

    def change(self, difference: float) -> str:
        """A difference with its sign, where + is better: ``+0.21``, ``-1,200``."""
        # Rounded first: -0.001 is written as +0.00.
        if self.quantity.share:
            return f"{round(100 * difference, 2) + 0.0:+.2f}"
        return f"{round(difference) + 0.0:+,.0f}" if self.steps else f"{difference:+.3g}"

    @property
    def steps(self) -> bool:
        """Whether it is a number of steps."""
        return self.quantity.field == "stop_step"

    def apart(self, difference: float) -> str:
        """A difference with its unit: ``+0.21 points``, ``1,200 steps later``, ``-0.3, where + is better``."""
        if self.steps:
            return f"{_counted(f'{abs(difference):,.0f}', 'step')} {'sooner' if difference >= 0 else 'later'}"
        if self.quantity.share:
            return f"{self.change(difference)} points"
        return self.change(difference) + ("" if self.quantity.higher_is_better else ", where + is better")

    def margin(self) -> str:
        """The margin with its unit."""
        margin = self.quantity.margin
        if self.quantity.share:
            return _counted(f"{100 * margin:.3g}", "point")
        return _counted(f"{margin:,.0f}", "step") if self.steps else f"{margin:.3g}"


def _counted(number: str, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != '1')}"


def percent(share: float) -> str:
    """A density: ``13.5 %``, ``0.52 %``, ``100 %``."""
    value = 100 * share
    return "100 %" if value == 100 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def against(compared: Compared, units: Units, p: str = "") -> str:
    """``98.2 % against 98.0 % (+0.21 points, 95 % interval +0.05 to +0.36, seeds from +0.02 to +0.40, 5 seeds)``.

    With fewer than 5 seeds the interval is next to nothing but the lowest and the highest difference, and left out.
    """
    found, count = compared.interval, len(compared.seeds)
    parts = [units.apart(found.mean)]
    if units.steps and compared.ratio is not None:
        parts.append(f"{compared.ratio:.1f} times as fast")
    if count >= 5 and found.low is not None and found.high is not None:
        parts.append(f"95 % interval {units.change(found.low)} to {units.change(found.high)}")
    if count > 1:
        parts.append(f"seeds from {units.change(found.lowest)} to {units.change(found.highest)}")
    draws = f" with {compared.draws} draws each" if compared.draws > 1 else ""
    parts += [f"{count} seed{'s' * (count > 1)}{draws}", *([p] if p else [])]
    return f"{units.value(compared.our_mean)} against {units.value(compared.their_mean)} ({', '.join(parts)})"


def probability(p: float | None) -> str:
    """``p = 0.031``, ``p < 0.001``; nothing where no test was made."""
    return "" if p is None else f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def arm(name: str) -> str:
    """The arm's name, and what it is."""
    return f"{name} ({ARMS[name]})" if name in ARMS else name


def the(name: str) -> str:
    """The arm within a sentence: the ticket, but reinit."""
    return f"the {name}" if name == TICKET else name


def dense_metric(judged: Judged, units: Units, where: str, alpha: float) -> str:
    """How the ticket stands to the dense net in its metric."""
    name, compared = units.quantity.name, judged.compared
    verbs = {"wins": "is better than", "matches": "matches", "loses": "is worse than"}
    if judged.outcome in verbs:
        said = f"{where} the ticket {verbs[judged.outcome]} the dense net in {name}"
        if judged.outcome == "matches" and alpha >= min(compared.better or 0, compared.worse or 0):
            said += f", and is {'better' if compared.interval.mean > 0 else 'worse'} by less than {units.margin()}"
    else:
        said = f"Whether the ticket matches the dense net in {name} can't be told"
        if compared.not_worse is not None and compared.not_worse <= alpha:
            said += f", only that it is less than {units.margin()} worse"
    return f"{said}: {against(compared, units)}."


def dense_speed(judged: Judged, units: Units) -> str:
    """How soon the ticket reaches its early-stop step, against the dense net."""
    said = {
        "wins": "By the early-stop step it learns faster than the dense net",
        "matches": f"By the early-stop step it learns as fast as the dense net, within {units.margin()}",
        "loses": "By the early-stop step it learns more slowly than the dense net",
    }
    unsure = "Whether it learns faster than the dense net can't be told from the early-stop step"
    return f"{said.get(judged.outcome, unsure)}: {against(judged.compared, units)}."


def control(judged: Judged, units: Units, family: int, prunes: str, alpha: float) -> str:
    """How the ticket stands to a control; of one that does as well, what follows from it."""
    name = judged.compared.theirs
    p = {"beats": judged.p_adjusted, "does as well": judged.p_as_good}.get(judged.outcome, judged.p_adjusted)
    corrected = f" corrected for {family} controls" if family > 1 and p is not None else ""
    numbers = against(judged.compared, units, f"{probability(p)}{corrected}")
    if judged.outcome == "beats":
        return f"It beats {arm(name)}: {numbers}."
    if judged.outcome == "can't tell":
        return f"Whether it beats {arm(name)} can't be told: {numbers}."
    known = AS_GOOD | BEFORE if prunes == "before" else AS_GOOD
    follows = known.get(name, f"the control {name} does as well")
    still = (
        " (the ticket is better, but by less)" if judged.p_adjusted is not None and judged.p_adjusted <= alpha else ""
    )
    return f"{follows[0].upper()}{follows[1:]}, within {units.margin()}{still}: {numbers}."


def rival(judged: Judged, units: Units) -> str:
    """How the ticket stands to another training of its mask, or to another net."""
    name, numbers = arm(judged.compared.theirs), against(judged.compared, units)
    said = {
        "wins": f"It is better than {name}",
        "matches": f"It is as good as {name}, within {units.margin()}",
        "loses": f"Better than the ticket is {name}",
    }
    unsure = f"Whether it is as good as {name} can't be told"
    return f"{said.get(judged.outcome, unsure)}: {numbers}."


def groups(controls: Sequence[Judged], rivals: Sequence[Judged], units: Units) -> list[str]:
    """A sentence for all controls or rivals of which the same has been shown, with what the ticket is ahead by."""
    within = f"within {units.margin()}"
    ahead = " by", " by"
    open_ = ", the ticket ahead by", ", by"
    said = [
        (controls, "beats", "It beats", ahead),
        (controls, "does as well", f"As good as the ticket, {within}:", open_),
        (controls, "can't tell", "It can't be told whether it beats", open_),
        (rivals, "wins", "It is better than", ahead),
        (rivals, "matches", f"It is as good, {within}, as", open_),
        (rivals, "loses", "It is worse than", open_),
        (rivals, "can't tell", "It can't be told which is better, the ticket or", open_),
    ]
    found = []
    for arms, outcome, words, (first, later) in said:
        names = [
            f"{arm(one.compared.theirs)}{later if place else first} {units.apart(one.compared.interval.mean)}"
            + _too_few(one) * (outcome == "can't tell")
            for place, one in enumerate(one for one in arms if one.outcome == outcome)
        ]
        if names:
            found.append(f"{words} {'; '.join(names)}.")
    return found


def _too_few(judged: Judged) -> str:
    """Where an arm of one draw is behind in every seed, which as few as these can't make sure however far it is."""
    compared = judged.compared
    count = len(compared.differences)
    behind = count > 1 and compared.draws == 1 and min(compared.differences) > 0
    return f" (in each seed, but {count} with one draw are too few to be sure)" * behind


def wanted(open_: Sequence[Power], count: int) -> list[str]:
    """How many seeds would settle what has not been settled."""
    if not open_:
        return []
    seeds = open_[0].seeds
    said = f"{seeds} seed{'s' * (seeds > 1)} can't settle {len(open_)} of {count} comparisons"
    least = max(one.fewest for one in open_)
    asked = [max(one.difference, one.equivalence) for one in open_ if one.difference and one.equivalence]
    if len(asked) < len(open_):
        return [f"{said}; their exact tests need at least {least}."]
    if max(asked) <= seeds:
        return [f"{said}: what is seen lies near the margin, where more seeds help slowly."]
    middle = sorted(asked)[len(asked) // 2]
    return [
        f"{said}: about {max(asked)} would settle all of them, {middle} half of them (80 % power by the t test, at the "
        "spread seen, to show a difference as large as the margin, or its absence)."
    ]


def together(p: float | None, count: int, alpha: float) -> list[str]:
    """The claim about all controls at once; of one control there is nothing to add."""
    if p is None or count < 2:
        return []
    controls = "both controls" if count == 2 else f"all {count} controls"
    better = f"better than {controls}"
    shown = f"it is {better}" if p <= alpha else f"it is not shown to be {better}"
    return [f"Taken together {shown} ({probability(p)}, the largest of theirs: one claim about all is not corrected)."]


def reservations(arms: Mapping[str, Arm], judged: Sequence[Judged], units: Units) -> list[str]:
    """What a reader must know of the runs: seeds that could not be paired, and runs that diverged."""
    said = []
    for one in judged:
        if missing := one.compared.unpaired:
            there = f"{listed(one.compared.seeds)} of {one.compared.theirs} and the ticket count"
            said.append(f"Only {there}: {listed(missing)} {'is' if len(missing) == 1 else 'are'} not in both.")
    for found in arms.values():
        if found.counted_as is not None:
            runs = sum(map(len, found.values.values()))
            counts = f"count{'s' * (found.diverged == 1)} as {units.value(found.counted_as)}"
            said.append(f"{found.diverged} of {runs} runs of {the(found.name)} diverged and {counts}.")
    return said


def powerless(judged: Judged, power: Power, units: Units, claim: str) -> str:
    """Why a comparison has not been settled, and how many seeds would settle it."""
    seeds = f"{power.seeds} seed{'s' * (power.seeds > 1)}"
    least = f"its exact test needs at least {power.fewest}"
    if power.seeds == 1:
        return f"1 seed can't settle {claim}: {least}, and one seed has no spread to tell how many are enough."
    wanted = [n for n in (power.difference, power.equivalence) if n is not None]
    if not power.spread:
        return f"{seeds} can't settle {claim}: {least}, and equal differences do not tell how many are enough."
    if len(wanted) < 2:
        return f"{seeds} can't settle {claim}: at this spread no number of seeds up to 10,000 would."
    if max(wanted) <= power.seeds:
        seen = units.apart(judged.compared.interval.mean)
        return (
            f"{seeds} leave open {claim}, though about {max(wanted)} show a difference of {units.margin()} or its "
            f"absence 4 times in 5: what is seen ({seen}) lies in between."
        )
    return (
        f"{seeds} can't settle {claim}: about {max(wanted)} would (80 % power by the t test at the spread seen, for a "
        f"difference of {units.margin()}: {power.difference} to show it, {power.equivalence} to show its absence)."
    )


def parts(found: Sequence[Part], units: Units) -> list[str]:
    """Which parts of the ticket matter, which do not, and of which it can't be told: a sentence for each."""
    said = {
        "matters": "What matters",
        "does not matter": f"What can go without loss, within {units.margin()}",
        "can't tell": "Of what can't be told whether it matters",
    }
    grouped = {matter: [one for one in found if one.matter == matter] for matter in said}
    return [
        f"{said[matter]}: {'; '.join(_lost(one, units) for one in ones)}." for matter, ones in grouped.items() if ones
    ]


def _lost(found: Part, units: Units) -> str:
    lost, kept = found.judged.compared.interval.mean, the(found.kept)
    amount = f"{units.change(abs(lost))[1:]}{' points' * units.quantity.share}"
    return f"{found.part} ({found.destroyed} {f'loses {amount} to' if lost >= 0 else f'gains {amount} on'} {kept})"


def headline(where: str, name: str, dense: Judged, controls: Sequence[Judged], units: Units, alpha: float) -> str:
    """The verdict in one sentence: a winning ticket, or what it fails by, or what is not shown."""
    names = series([c.compared.theirs for c in controls])
    how = {"wins": "is better than", "matches": "matches"}.get(dense.outcome)
    good = [c.compared.theirs for c in controls if c.outcome == "does as well"]
    open_ = [c.compared.theirs for c in controls if c.outcome != "does as well" and (c.p is None or c.p > alpha)]
    against_it = [f"it is worse than the dense net in {name}"] * (dense.outcome == "loses")
    against_it += [f"{series(good)} do{'es' * (len(good) == 1)} as well"] * bool(good)
    unknown = [f"whether it matches the dense net in {name} can't be told"] * (dense.outcome == "can't tell")
    unknown += [f"it is not shown to beat {series(open_)}"] * bool(open_)
    unknown += ["no control stands beside it"] * (not controls)
    if against_it:
        return f"{where} this is not a winning ticket: {'; '.join(against_it)}."
    if unknown:
        return f"{where} this is not shown to be a winning ticket: {'; '.join(unknown)}."
    return f"{where} this is a winning ticket: it {how} the dense net in {name} and beats {names}."
