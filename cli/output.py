"""What goes where: data on stdout, everything said to a person on stderr."""

import json
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from parctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


def check_format(output: str, known: Collection[str]) -> None:
    """Raise UsageError unless `-o` names a format that the command prints."""
    if output not in known:
        raise UsageError(
            f"-o {output}: no such format here", hint=f"one of {', '.join(sorted(known))}"
        )


def print_document(value: Any, output: str) -> None:
    """Print a plain value as `json` (indented) or `yaml`."""
    if output == "yaml":
        import yaml

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # eight times as fast, where built
        yaml.dump(value, sys.stdout, Dumper=dumper, sort_keys=False, width=100)
    else:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def note(text: str) -> None:
    """Say something to a person: one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def console() -> "Console":
    """A rich console on stdout; it honours NO_COLOR and drops colour when piped."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `main`, which ends with 0; rich would exit with 1

    # piped tables keep their natural width instead of being cut at 80 columns
    return QuietConsole(highlight=False, width=None if sys.stdout.isatty() else 140)
