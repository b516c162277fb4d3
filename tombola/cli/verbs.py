"""Groups of commands that are modules of a package, imported on use so that help answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from tombola.errors import suggestion


class Verbs(click.Group):
    """A group of modules of ``package``, each with a ``command``; ``verbs`` has a line of help for each."""

    def __init__(self, *args: Any, verbs: Mapping[str, str], package: str, **settings: Any) -> None:
        own: dict[str, Any] = {"invoke_without_command": True, "subcommand_metavar": "COMMAND [ARGS]..."}
        super().__init__(*args, **(own | settings))
        self.verbs, self.package = verbs, package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a newcomer's needs."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb."""
        if cmd_name not in self.verbs:
            return None
        command = importlib.import_module(f"{self.package}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest verb for a misspelt one."""
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}.{suggestion(args[0], self.verbs)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with a line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.verbs.items()))


def needs_a_verb(ctx: click.Context) -> None:
    """What a group's callback does: where no verb is given, show the help on standard error and end with status 2."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)
