"""Methods: ways to find a ticket. Each gives rounds, a mask and the net trained under it; a new one is one small file
and one line here."""

from __future__ import annotations

from tombola.errors import InputError, suggestion
from tombola.methods.at_init import AtInit
from tombola.methods.base import Method, Round, Search
from tombola.methods.deep_compression import DeepCompression
from tombola.methods.during import During
from tombola.methods.early_bird import EarlyBird
from tombola.methods.given import Given
from tombola.methods.iterative import Iterative
from tombola.methods.one_shot import OneShot
from tombola.methods.supermask import Supermask
from tombola.updates.registry import RULES


def _during(rule: str, source: str) -> During:
    words = RULES[rule].description
    line = f"{words[0].upper()}{words[1:]} ({source})."
    return During(line, allocation=RULES[rule].allocation, rule=rule)


_TUNED = ("fine-tune", "lr-rewind", "reset", "rewind")

METHODS: dict[str, Method] = {
    "imp": Iterative(
        "Train, prune the lowest, give the survivors back their values, and again (Frankle & Carbin 2019)."
    ),
    "one_shot": OneShot("Train the dense net once; prune it to each density at one go (Frankle & Carbin 2019)."),
    "lr_rewind": Iterative(
        "Prune and replay the learning rates on final values (Renda et al. 2020).", survivors=("lr-rewind",)
    ),
    "han": Iterative(
        "Prune by standard deviations of each layer and fine-tune, in rounds (Han et al. 2015).",
        criterion="scaled_magnitude",
        allocation="global",
        survivors=("fine-tune",),
    ),
    "obd": Iterative(
        "Prune by second derivatives and fine-tune (LeCun et al. 1990).",
        "obd",
        "global",
        _TUNED,
        straight=True,
        per_class=100,
    ),
    "obs": Iterative(
        "Prune and compensate, layer by layer, and fine-tune (Hassibi & Stork 1993; Dong et al. 2017).",
        *("obs", "layerwise", _TUNED),
        straight=True,
        per_class=100,
    ),
    "mlprune": Iterative(
        "Prune by Kronecker-factored Fisher information and fine-tune (Zeng & Urtasun 2019).",
        *("mlprune", "global", _TUNED),
        straight=True,
        per_class=100,
    ),
    "deep_compression": DeepCompression(
        "Prune as han, share values, tune what they share (Han et al. 2016).",
        criterion="scaled_magnitude",
        allocation="global",
        survivors=("fine-tune",),
    ),
    "early_bird": EarlyBird("Channels that settle early in training, cut away (You et al. 2020)."),
    "gradual": _during("gradual", "Zhu & Gupta 2017"),
    "set": _during("set", "Mocanu et al. 2018"),
    "dsr": _during("dsr", "Mostafa & Wang 2019"),
    "deep_r": _during("deep_r", "Bellec et al. 2018"),
    "rigl": _during("rigl", "Evci et al. 2020"),
    "supermask": Supermask(
        "Weights stay untrained, probabilities to keep them are trained (Zhou et al. 2019).",
        densities=(),
        rates={"lr": 100.0, "momentum": 0.9, "weight_decay": 0.0},
    ),
    "edge_popup": Supermask(
        "Weights stay untrained, the best scores choose a share of each layer (Ramanujan et al. 2020).",
        allocation="uniform",
        trains="top_scores",
        rates={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    ),
    "snip": AtInit("Before training, by |w dL/dw| (Lee et al. 2019).", "snip"),
    "iterative_snip": AtInit("SNIP in 100 rounds; what is pruned stays so (de Jorge et al. 2021).", "snip", rounds=100),
    "force": AtInit("SNIP in 100 rounds; what is pruned may come back (de Jorge et al. 2021).", "force"),
    "grasp": AtInit("Before training, by what the gradient flow loses (Wang et al. 2020).", "grasp"),
    "synflow": AtInit(
        "Before training and without data, by synaptic flow in 100 rounds (Tanaka et al. 2020).", "synflow"
    ),
    "magnitude_at_init": AtInit(
        "Before training, by the size of the initial weights (a baseline of Frankle et al. 2021).", "magnitude"
    ),
    "random_at_init": AtInit("Before training, at random (a baseline of Frankle et al. 2021).", "random"),
    "given": Given("A ticket that is there already, from its file: trained and judged, not searched for."),
    "at_init": AtInit("Before training, by the criterion asked for (whose source it is)."),
}


def get_method(name: str) -> Method:
    """The method of that name; ``InputError`` with the nearest one for a name that is not known."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}.{suggestion(name, METHODS)}")
    return METHODS[name]


__all__ = ["METHODS", "AtInit", "Method", "Round", "Search", "get_method"]
