"""``tombola study``: the group of commands for whole studies."""

from __future__ import annotations

import click

from tombola.cli.verbs import Verbs, needs_a_verb

VERBS = {
    "list": "List the studies that come with Tombola.",
    "show": "Show what a study would do, and what the store has of it.",
    "run": "Carry out what the store lacks of a study.",
    "resume": "Go on with the study that was begun last.",
    "status": "Say what is done, running and left, and how long it takes.",
    "results": "Write the results as CSV, Parquet or JSON.",
}


@click.group("study", cls=Verbs, verbs=VERBS, package="tombola.cli.studying")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Carry out whole studies: tasks, methods, densities, seeds and controls of one file.

    Start with: tombola study run lenet-tickets --quick
    """
    needs_a_verb(ctx)
