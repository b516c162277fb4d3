"""The recipe of one training: everything that decides what a run computes, apart from its task, seed and start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tombola.durations import Duration
from tombola.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Density = Annotated[float, Field(gt=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
ControlName = Literal[
    "reinit",
    "shuffled",
    "values_shuffled",
    "signed_reinit",
    "signed_constant",
    "random_uniform",
    "random_erk",
    "random_smart_ratio",
    "random_ticket",
    "reinit_whole",
    "random_ticket_whole",
    "inverted",
    "random_labels",
    "shuffled_pixels",
    "half_data",
    "small_dense",
    "lr_rewind",
    "fine_tune",
]


class Identified(BaseModel):
    """A frozen, strictly validated model whose identity leaves out every field at its default.

    So an option added tomorrow, with a default that means today's behaviour, changes no identity of today's results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The fields that differ from the class's defaults, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


Model = TypeVar("Model", bound=BaseModel)


def checked(kind: type[Model], fields: Mapping[str, Any]) -> Model:
    """A model of these fields. ``InputError`` with the rule and the value for those that it refuses."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise InputError(explained(error)) from error


def explained(error: ValidationError) -> str:
    """Pydantic's complaints in one line each: the field, the rule, the value."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        given = (
            f", but got {problem['input']!r}"
            if where and not isinstance(problem["input"], dict) and "got" not in text
            else ""
        )
        lines.append(f"{where}: {text}{given}" if where else text)
    return "; ".join(lines)


class Updates(Identified):
    """How the mask changes during a training (see ``tombola.updates``)."""

    rule: str = Field(description="what updates the mask: set, rigl, dsr, deep_r, gradual")
    every: Duration = Field(description="steps between two updates")
    until: Duration = Field(description="no update from this step on")
    settings: dict[str, float] = Field({}, description="numbers of the rule's own that differ from its defaults")
    allocation: str | None = Field(None, description="how the rule's density is spread over layers, where it has one")

    @model_validator(mode="after")
    def _consistent(self) -> Updates:
        if self.every.length == 0:
            raise ValueError("every must be more than 0")
        return self

    def __hash__(self) -> int:
        return hash((self.rule, self.every, self.until, frozenset(self.settings.items()), self.allocation))


class Settled(Identified):
    """When channel masks have settled: the newest is near the others among the last few (You et al. 2020)."""

    density: Density = Field(description="share of the channels that the masks keep")
    window: int = Field(5, ge=2, le=1000, description="epochs whose masks are compared")
    distance: float = Field(0.1, ge=0, le=1, description="normalised Hamming distance that none may exceed")


class Recipe(Identified):
    """How a net is trained. Durations are steps (``50000it``) or epochs (``160ep``).

    The learning rate of step t (from 0) is ``lr x lr_schedule(t) x min(1, t / warmup)``.
    """

    steps: Duration = Field(Duration(10_000), description="length of the training")
    batch: int = Field(60, gt=0, description="examples a step; the last batch of an epoch may be smaller")
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("adam", description="optimiser")
    lr: Positive = Field(1.2e-3, description="learning rate")
    momentum: Fraction = Field(0.0, description="momentum (sgd)")
    nesterov: bool = Field(False, description="Nesterov momentum (sgd)")
    weight_decay: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight decay: added to the gradient (sgd, adam, rmsprop) or decoupled (adamw)",
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="decay of the moments (adam, adamw)")
    beta: Fraction = Field(0.99, description="decay of the moment (rmsprop)")
    eps: Positive = Field(1e-8, description="term added to the denominator (adam, adamw, rmsprop)")
    lr_schedule: Literal["constant", "steps", "cosine", "linear"] = Field(
        "constant", description="learning-rate schedule"
    )
    milestones: tuple[Duration, ...] = Field((), description="where the 'steps' schedule multiplies the rate by gamma")
    gamma: Positive = Field(0.1, description="factor of the 'steps' schedule")
    warmup: Duration = Field(Duration(0), description="linear rise of the learning rate from 0")
    start: Duration = Field(Duration(0), description="where in schedule and data order training begins (rewinding)")
    order: int = Field(0, ge=0, description="which draw of data order and augmentation a seed trains with")
    evaluate_every: Duration = Field(Duration(100), description="steps between two evaluations on validation data")
    engine: Literal["auto", "masked", "compact", "sparse"] = Field("auto", description="how a masked net is executed")
    threads: int = Field(1, gt=0, le=1024, description="torch threads; small nets want one, and one process a core")
    device: str = Field("cpu", description="torch device: cpu, cuda, cuda:0, ...", pattern=r"^(cpu|cuda(:\d+)?|mps)$")
    trains: Literal["weights", "top_scores", "scores", "centroids"] = Field(
        "weights",
        description="what training changes: weights; values that weights share (centroids); scores of fixed weights, "
        "of which the top ones are in the net (top_scores), or each by chance (scores)",
    )
    score_density: float | None = Field(
        None, gt=0, lt=1, description="share of each layer's weights in the net (top_scores)"
    )
    scale_l1: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="factor of an L1 penalty on the scales of batch normalisation"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of training: bfloat16 is automatic mixed precision with float32 weights"
    )
    updates: Updates | None = Field(None, description="how the mask changes during the training; default: not at all")
    until_settled: Settled | None = Field(None, description="end the training when channel masks have settled")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer 'sgd' with momentum above 0")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum belongs to optimizer 'sgd', but the optimizer is {self.optimizer!r}: set betas")
        if (self.lr_schedule == "steps") != bool(self.milestones):
            raise ValueError("lr_schedule 'steps' and milestones go together: give both or neither")
        if self.evaluate_every.length == 0 or self.steps.length == 0:
            raise ValueError("steps and evaluate_every must be more than 0")
        if (self.trains == "top_scores") != (self.score_density is not None):
            raise ValueError("trains 'top_scores' and score_density go together: give both or neither")
        if self.scale_l1 and self.trains in ("scores", "top_scores"):
            raise ValueError(f"scale_l1 needs scales that are trained, but with trains {self.trains!r} they stay fixed")
        if self.updates is not None and self.trains != "weights":
            raise ValueError(f"updates of the mask need trains 'weights', but trains is {self.trains!r}")
        return self

    def steps_per_epoch(self, examples: int) -> int:
        """Optimiser steps in one pass. The last batch may be smaller; a lone last example is left out of the pass,
        as it has no batch statistics to normalise by."""
        whole, rest = divmod(examples, self.batch)
        return max(1, whole + (rest > 1))

    @property
    def is_plain(self) -> bool:
        """Whether weights are trained, under one mask from beginning to end."""
        return self.trains == "weights" and self.updates is None

    def updating(self, steps_per_epoch: int) -> tuple[int, int]:
        """Steps between two updates of the mask, and the step from which it stays as it is; (0, 0) without updates.

        ``InputError`` where no update would ever come.
        """
        if self.updates is None:
            return 0, 0
        every = max(1, self.updates.every.steps(steps_per_epoch))
        until = min(duration.steps(steps_per_epoch) for duration in (self.updates.until, self.steps))
        if (self.start.steps(steps_per_epoch) // every + 1) * every >= until:
            raise InputError(
                f"{self.updates.rule} must update the mask at least once, but updates every {every} steps that end "
                f"before step {until} never come: make update_every smaller, update_until larger, or train longer"
            )
        return every, until

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of one step, counted from 0."""
        total = max(1, self.steps.steps(steps_per_epoch))
        factor = 1.0
        if self.lr_schedule == "steps":
            factor = self.gamma ** sum(step >= m.steps(steps_per_epoch) for m in self.milestones)
        elif self.lr_schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
        elif self.lr_schedule == "linear":
            factor = 1 - min(step, total) / total
        warmup = self.warmup.steps(steps_per_epoch)
        return self.lr * factor * (min(1.0, step / warmup) if warmup else 1.0)

    def rates(self, first: int, count: int, steps_per_epoch: int) -> list[float]:
        """The learning rates of ``count`` steps from ``first`` on: ``lr_at`` of each."""
        if self.lr_schedule == "constant" and not self.warmup.steps(steps_per_epoch):
            return [self.lr_at(first, steps_per_epoch)] * count
        return [self.lr_at(first + i, steps_per_epoch) for i in range(count)]


class DrawRecipe(Identified):
    """How a ticket is searched for. The same recipe through three doors: Python, a TOML file, flags.

    Where the search ends: after ``rounds`` rounds, or at ``density``, which the last round meets exactly, or with
    ``stop_at_margin`` at the first round whose validation metric falls more than ``margin`` below the dense net's.
    ``densities`` names every round's density itself.
    """

    task: str = Field("digits-mlp", description="name of a task")
    method: str = Field("imp", description="how a ticket is found")
    seed: int = Field(0, ge=0, description="seed of initial weights, data split, data order and every random choice")
    rounds: int | None = Field(None, gt=0, le=1000, description="number of pruning rounds")
    density: float | None = Field(None, gt=0, lt=1, description="density to end at")
    densities: tuple[Density, ...] | None = Field(
        None, description="the density of each round, in place of rounds, density and rate"
    )
    rate: float = Field(0.2, gt=0, lt=1, description="share of the kept weights pruned each round (geometric schedule)")
    relative_rates: dict[str, float] = Field(
        {}, description="by layer pattern, the multiple of the rate that applies there"
    )
    allocation: Literal["global", "layerwise", "uniform", "erk", "smart_ratio"] = Field(
        "layerwise", description="how one density is spread over layers"
    )
    schedule: Literal["geometric", "exponential", "linear", "cubic"] = Field(
        "geometric", description="how density falls over rounds; all but geometric need density and rounds"
    )
    unpruned: tuple[str, ...] = Field((), description="patterns of layers that are left whole and don't count")
    criterion: str = Field("magnitude", description="what scores the weights: a name, or package.module:function")
    score_mode: Literal["train", "eval"] | None = Field(
        None, description="mode of batch normalisation while scoring; default: the criterion's own"
    )
    score_per_class: int = Field(
        10, gt=0, le=10_000, description="training examples of each class that criteria with data score on"
    )
    score_rounds: int | None = Field(
        None, gt=0, le=100_000, description="rounds of scoring at initialisation; default: the method's own"
    )
    survivors: Literal["reset", "rewind", "lr-rewind", "fine-tune", "keep", "continue"] = Field(
        "reset",
        description="what surviving weights train from: initial, early (back_to) or final values; keep: no training",
    )
    back_to: Duration = Field(
        Duration(0), description="rewind: step whose values return; lr-rewind: step from which the schedule is replayed"
    )
    fine_tune: Duration | None = Field(None, description="length of fine-tuning; default: as long as the training")
    update_every: Duration | None = Field(
        None, description="steps between two updates of the mask, of methods that prune during training"
    )
    update_until: Duration | None = Field(None, description="step from which such methods leave the mask as it is")
    settings: dict[str, Finite] = Field(
        {}, description="numbers of the method's own, e.g. fraction=0.5; see --list-methods"
    )
    strategy: Literal[1, 2] = Field(
        1, description="1: reset before each search round; 2: search rounds go on from trained values"
    )
    margin: float = Field(
        0.005,
        ge=0,
        allow_inf_nan=False,
        description="how far below dense a ticket may fall on validation data, in the metric's unit",
    )
    stop_at_margin: bool = Field(False, description="end the search at the first round that falls below the margin")
    controls: tuple[ControlName, ...] = Field((), description="controls trained beside the tickets; see --list-methods")
    control_draws: int = Field(1, gt=0, le=100, description="random draws of each control that draws at random")
    control_rounds: tuple[int, ...] | None = Field(
        None, description="rounds that get controls; default: all but the dense"
    )
    dense_rates: tuple[Positive, ...] = Field(
        (), description="learning rates that the dense net is trained with too, beside the recipe's"
    )
    ticket: str | None = Field(None, description="method given: the file of a ticket, or its address in the store")
    training: Recipe = Field(Recipe(), description="how each net is trained")

    @model_validator(mode="after")
    def _consistent(self) -> DrawRecipe:
        if self.densities is not None:
            if self.rounds is not None or self.density is not None or self.schedule != "geometric":
                raise ValueError("densities name every round: leave out rounds, density and schedule")
            if not self.densities or list(self.densities) != sorted(set(self.densities), reverse=True):
                raise ValueError(f"densities must fall from round to round, but got {self.densities}")
        if self.schedule != "geometric" and (self.density is None or self.rounds is None):
            raise ValueError(f"schedule {self.schedule!r} needs both density (where it ends) and rounds (how many)")
        if self.schedule == "geometric" and self.density is not None and self.rounds is not None:
            raise ValueError("with the geometric schedule give rounds or density, not both: the rate decides the other")
        if self.survivors == "rewind" and self.back_to.length == 0:
            raise ValueError("survivors 'rewind' needs back_to above 0, e.g. 500it; back to 0 is 'reset'")
        if self.back_to.length and self.survivors not in ("rewind", "lr-rewind"):
            raise ValueError(
                f"back_to belongs to survivors 'rewind' or 'lr-rewind', but survivors is {self.survivors!r}"
            )
        if self.fine_tune is not None and self.survivors != "fine-tune":
            raise ValueError(f"fine_tune belongs to survivors 'fine-tune', but survivors is {self.survivors!r}")
        if self.update_every is not None and self.update_every.length == 0:
            raise ValueError("update_every must be more than 0")
        if self.relative_rates and self.allocation != "layerwise":
            raise ValueError(
                f"relative_rates belong to allocation 'layerwise', but the allocation is {self.allocation!r}"
            )
        if len(set(self.controls)) < len(self.controls):
            raise ValueError(f"controls must be named once each, but got {', '.join(self.controls)}")
        if self.control_rounds is not None and not (self.control_rounds and self.controls):
            raise ValueError("control_rounds must name rounds of the controls asked for: give both, or neither")
        if len(set(self.dense_rates)) < len(self.dense_rates) or self.training.lr in self.dense_rates:
            raise ValueError(
                f"dense_rates must each be there once, and not be the recipe's own {self.training.lr:g}, but got "
                + ", ".join(f"{rate:g}" for rate in self.dense_rates)
            )
        if self.strategy == 2 and self.survivors not in ("reset", "rewind"):
            raise ValueError("strategy 2 resets or rewinds at the end: survivors must be 'reset' or 'rewind'")
        return self
