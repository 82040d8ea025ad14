"""Following a run from its launch to its end: a progress bar in a terminal, log lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from parctl.cli.output import note
from parctl.errors import RunCancelledError
from parctl.launcher.backend import Backend, RunStatus, State
from parctl.launcher.waiting import outcome_error

REFRESH_S = 0.25


def follow_run(backend: Backend, run_id: str, *, flags: str) -> int:
    """Show a run until it ends. Raises what its end stands for; the first ^C cancels it.

    `flags`: what other commands need to find it, see `parctl.cli.run_options.flags_again`.
    """
    try:
        steps = backend.status(run_id).steps
        if steps is not None and sys.stdout.isatty():
            _show_progress(backend, run_id, steps)
        else:
            for line in backend.logs(run_id, rank=0, since=None, tail=None, follow=True):
                print(line.text, flush=True)
    except KeyboardInterrupt:
        note(f"cancelling {run_id}; ^C again leaves it to finish by itself")
        backend.cancel(run_id)
        if backend.status(run_id).state is State.CANCELLED:
            raise RunCancelledError(
                f"run `{run_id}` was cancelled",
                hint=f"`parctl logs {run_id}{flags}` shows what it wrote",
            ) from None
    status = backend.status(run_id)
    error = outcome_error(status)
    if error is not None:
        raise error
    note(f"{run_id} succeeded{_duration(status)}; next: `parctl metrics {run_id}{flags}`")
    return 0


def _show_progress(backend: Backend, run_id: str, steps: int) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(highlight=False)) as progress:
        bar = progress.add_task(run_id, total=steps, numbers="")
        while True:
            status = backend.status(run_id)
            rows = backend.metrics(run_id)
            progress.update(
                bar,
                description=f"{run_id} {status.state}",
                completed=status.step or 0,
                numbers=_numbers(rows[-1]) if rows else "",
            )
            if status.state.ended:
                return
            time.sleep(REFRESH_S)


def _numbers(row: Mapping[str, Any]) -> str:
    return f"loss {row['loss']:.4f}  {row['tokens_per_s']:,.0f} tokens/s"


def _duration(status: RunStatus) -> str:
    if status.ended_unix is None:
        return ""
    return f" after {status.ended_unix - status.created_unix:.1f} s"
