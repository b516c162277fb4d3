"""``tombola``: the group of verbs, errors, exit statuses. Verbs are imported on use, and torch only by those."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from tombola.errors import InputError, TombolaError, suggestion
from tombola.version import __version__

VERBS = {
    "draw": "Find a winning ticket and judge it beside its controls.",
    "train": "Train one net: dense, or a ticket from a file.",
    "list": "List the draws and runs of a store.",
    "show": "Show a ticket file, a draw or a run.",
    "gc": "Remove what a store no longer needs.",
    "doctor": "Report what this machine can do and which data it has.",
}


class Verbs(click.Group):
    """A group whose verbs are modules of this package, imported on use so that help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of a newcomer's needs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"tombola.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with the nearest verb for a misspelt one."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}.{suggestion(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with a line each, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tombola")
def tombola() -> None:
    """Draw winning lottery tickets from neural networks.

    Start with: tombola draw digits-mlp --control reinit
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    try:
        tombola.main(args=args, standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        return 2
    except TombolaError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. Finished work is kept: the same command goes on from there.", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return 0
