"""The `parctl` program: finds the file of a command, runs it, and turns errors into words.

A command's file is imported when that command is called, never before: `parctl --help` shows the
table below and loads none of the parts. A test compares the table with the docstrings.
"""

import gc
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from parctl.errors import ParctlError, UsageError

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

# name -> first line of its help, in the order a newcomer needs them
COMMANDS = {
    "launch": "Run a recipe here, on Ray or on Kubernetes.",
    "plan": "Show where every rank would sit, and whether the job fits.",
    "explain": "Explain a form of parallelism, compare all of them, or draw a schedule.",
    "simulate": "Take a recipe through a whole launch on a cluster that need not exist.",
    "topology": "Show the nodes, GPUs and links of this machine or a cluster.",
    "recipes": "List, show and copy the recipes that parctl ships.",
    "validate": "Check recipe files and report every problem at once.",
    "verify": "Train a recipe small, split and in one process, and compare the two step by step.",
    "bench": "Measure collectives and matrix products where a job would run.",
    "schema": "Print the JSON Schema of recipes, for editors.",
    "list": "List the runs.",
    "status": "Show the state of a run and of its ranks.",
    "logs": "Print or follow what the ranks of a run wrote.",
    "metrics": "Print the metrics of a run, step by step.",
    "why": "Say in one sentence why a run waits or failed, and what would help.",
    "wait": "Wait until a run has ended and exit as it did.",
    "cancel": "Stop a run; training saves a checkpoint first.",
    "export": "Write a checkpoint as a Hugging Face folder.",
    "delete": "Delete an ended run with its logs and checkpoints.",
    "prune": "Delete old runs by number or age.",
}


class ReaderGoneError(Exception):
    """Whoever read our output has left. Of the system's own error Typer would make exit 1."""


class LazyGroup(TyperGroup):
    """A command group that imports a command's file when the command is asked for."""

    def invoke(self, ctx: "Context") -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def list_commands(self, ctx: "Context") -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            nearest = get_close_matches(args[0], COMMANDS, n=1)
            raise UsageError(
                f"no command `{args[0]}`",
                hint=f"did you mean `parctl {nearest[0]}`?"
                if nearest
                else "`parctl --help` lists them",
            )
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: "Context", cmd_name: str) -> "Command | None":
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"parctl.cli.{cmd_name}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            # a command that would shadow a builtin ends in an underscore, as in `list_`
            app.command(cmd_name)(
                getattr(module, cmd_name, None) or getattr(module, f"{cmd_name}_")
            )
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(wanted: bool) -> None:
    if wanted:
        from parctl._version import __version__

        typer.echo(f"parctl {__version__}")
        raise typer.Exit


def _debug(wanted: bool) -> None:
    if wanted:
        os.environ["PARCTL_DEBUG"] = "1"


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks of errors.", callback=_debug, is_eager=True),
    ] = False,
) -> None:
    """Plan, place and launch parallel training and inference from one recipe."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    words = sys.argv[1:] if args is None else args
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by who started us: what goes there is for nobody
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    # nearly all that a command makes stays until its end; looking for garbage takes a tenth of it
    gc.set_threshold(50_000)
    try:
        code = run(words or ["--help"])
    except BrokenPipeError:
        # the reader of our stdout has gone (`parctl list | head`); nothing more can be said there
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(words: list[str]) -> int:
    """Run one command line; return its exit code, having printed any error to stderr."""
    command = typer.main.get_command(app)
    try:
        result: Any = command.main(words, prog_name="parctl", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except ReaderGoneError as error:
        raise BrokenPipeError from error
    except ParctlError as error:
        return _fail(error, error.message, error.hint, error.exit_code)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        hint = f"`{context.command_path} --help` lists what it takes" if context else None
        return _fail(error, error.format_message(), hint, error.exit_code)
    except typer.Abort:
        return 130
    except Exception as error:
        hint = "this is a fault of parctl; run it again with `parctl --debug ...` and report it"
        return _fail(error, f"{type(error).__name__}: {error}", hint, 1)
    return result if isinstance(result, int) else 0


def _fail(error: BaseException, message: str, hint: str | None, code: int) -> int:
    if os.environ.get("PARCTL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
    return code
