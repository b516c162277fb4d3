"""``tombola``: the group of verbs, errors, exit statuses. Verbs are imported on use, and torch only by those."""

from __future__ import annotations

import difflib
import io
import os
import sys
import warnings

import click

from tombola.cli.verbs import Verbs, needs_a_verb
from tombola.errors import InputError, TombolaError
from tombola.version import __version__

VERBS = {
    "draw": "Find a winning ticket and judge it beside its controls.",
    "train": "Train one net: dense, or a ticket from a file.",
    "audit": "Judge a ticket against its dense net and its controls.",
    "compare": "Compare methods at equal density and at equal cost.",
    "transfer": "Carry tickets from task to task, beside controls.",
    "study": "Carry out whole studies: methods, densities, seeds, controls.",
    "diagnose": "Look into masks and nets: layers, collapse, cost, gradient flow.",
    "list": "List the draws, runs or audits of a store.",
    "show": "Show a ticket file, a draw or a run.",
    "report": "Write a web page of what was found.",
    "serve": "Show a store as live pages in a browser.",
    "compress": "Write a ticket as a small file: shared values, Huffman codes.",
    "decompress": "Give a compressed ticket back, and evaluate its net.",
    "translate": "Translate by beam search with a trained net, and give its BLEU.",
    "forget": "Take draws and audits out of a store.",
    "gc": "Remove what a store no longer needs.",
    "doctor": "Report what this machine can do and which data it has.",
}

INTERRUPTED = 130


@click.group(
    cls=Verbs,
    verbs=VERBS,
    package="tombola.cli",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="tombola")
@click.pass_context
def tombola(ctx: click.Context) -> None:
    """Draw winning lottery tickets from neural networks.

    Start with: tombola draw digits-mlp --control reinit
    """
    needs_a_verb(ctx)


def main() -> None:
    """Run the command line as a program. Exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a dash must not end a program in a terminal without one
    warnings.showwarning = _warn  # type: ignore[assignment]
    status = run()
    if status == INTERRUPTED:
        # Python's own way out shows a traceback when Ctrl-C comes twice, and turns the status into a signal when the
        # first one hit a piece of generated code.
        os._exit(_closed(status))
    sys.exit(status)


def run(args: list[str] | None = None) -> int:
    """Run the command line with these arguments (default: the program's) and return the exit status."""
    try:
        status = tombola.main(args=args, prog_name="tombola", standalone_mode=False)
        sys.stdout.flush()
    except click.NoSuchOption as error:
        click.UsageError(f"unknown option {error.option_name!r}.{_nearest(error)}", error.ctx).show()
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except InputError as error:
        return _failed(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        return _failed("Interrupted. Finished work is kept: the same command goes on from there.", INTERRUPTED, "")
    except BrokenPipeError:
        return _closed(1)
    except TombolaError as error:
        return _failed(str(error), 1)
    except OSError as error:
        return _closed(_failed(str(error), 1))
    return status if isinstance(status, int) else 0


def _nearest(error: click.NoSuchOption) -> str:
    """The long option nearest to one that isn't there, where there is a near one."""
    params = [] if error.ctx is None else error.ctx.command.params
    flags = [flag for param in params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--")]
    near = difflib.get_close_matches(error.option_name, flags, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _failed(text: str, status: int, kind: str = "Error: ") -> int:
    """Say on standard error why it ends."""
    from tombola.cli.output import inert

    click.echo(kind + inert(text, keep="\n\t"), err=True)
    return status


def _closed(status: int) -> int:
    """Let what could not be written go, so that Python doesn't try it again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _warn(message: Warning | str, *_: object) -> None:
    from tombola.cli.output import inert

    click.echo(f"Warning: {inert(message)}", err=True)
