"""``tombola diagnose``: the group of diagnostics."""

from __future__ import annotations

import click

from tombola.cli.verbs import Verbs, needs_a_verb

VERBS = {
    "layers": "Show what each layer keeps, by method.",
    "collapse": "Find at which compression a method empties a layer.",
    "masks": "Compare masks: between rounds, seeds, methods or tickets.",
    "settling": "Watch when the channel masks of a net stop changing.",
    "cost": "Count parameters, operations and bytes, layer by layer.",
    "gradients": "Follow the gradient flow of nets while they train.",
    "instability": "Measure whether two trainings of a net part ways.",
    "hessian": "Look at the curvature of the loss around a net.",
}


@click.group("diagnose", cls=Verbs, verbs=VERBS, package="tombola.cli.diagnosing")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Look into masks and nets.

    Start with: tombola diagnose layers digits-mlp --method snip --method synflow --density 0.05
    """
    needs_a_verb(ctx)
