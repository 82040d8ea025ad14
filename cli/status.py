"""`parctl status`: how a run is doing."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from parctl.cli.options import RunArgument
from parctl.cli.run_options import (
    AddressOption,
    BackendOption,
    KubeconfigOption,
    KubeContextOption,
    NamespaceOption,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from parctl.launcher.backend import RunStatus


def status(
    run: RunArgument,
    backend: BackendOption = None,
    address: AddressOption = None,
    namespace: NamespaceOption = None,
    context: KubeContextOption = None,
    kubeconfig: KubeconfigOption = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, wide (with the ranks), json or yaml.")
    ] = "table",
) -> None:
    """Show the state of a run and of its ranks."""
    from parctl.cli.output import check_format, print_document
    from parctl.cli.table import print_table
    from parctl.launcher.backends import find_run
    from parctl.recipes.frozen import to_json

    check_format(output, ("table", "wide", "json", "yaml"))
    owner, run_id = find_run(run, backend)
    found = owner.status(run_id)
    if output in ("json", "yaml"):
        print_document(to_json(found), output)
        return
    reports = owner.metrics(run_id)
    for name, value in (*_facts(found), *predictions(reports[-1] if reports else {})):
        print(f"{name + ':':<10} {value}")
    if output == "wide":
        print()
        rows = [
            (str(rank.rank), rank.node, str(rank.local_rank), str(rank.pid or ""), rank.state)
            for rank in found.ranks
        ]
        print_table(("rank", "node", "local rank", "pid", "state"), rows)


def _facts(found: "RunStatus") -> list[tuple[str, str]]:
    from parctl.cli.table import ago

    facts = [("run", found.run_id), ("state", str(found.state))]
    if found.step is not None:
        facts.append(("step", f"{found.step} of {found.steps}"))
    facts += [
        ("restarts", str(found.restarts)),
        ("ranks", _ranks(found)),
        ("started", f"{ago(found.created_unix)} ago"),
    ]
    if found.ended_unix is not None:
        facts.append(("took", f"{found.ended_unix - found.created_unix:.1f} s"))
    if found.verdict is not None:
        facts.append(("verdict", found.verdict.sentence))
        if found.verdict.fix:
            facts.append(("fix", found.verdict.fix))
    return [*facts, ("where", found.where)]


def predictions(row: "Mapping[str, Any]") -> list[tuple[str, str]]:
    """What the plan predicted beside what the last report measured, where both are known.

    >>> predictions({"step_time_s": 2.2, "predicted_step_time_s": 2.0})
    [('predicted', 'a step of 2 s; measured: 2.2 s (+10%)')]
    """
    step, measured = row.get("predicted_step_time_s"), row.get("step_time_s")
    if step is None or not measured:
        return []
    text = f"a step of {step:.3g} s; measured: {measured:.3g} s ({measured / step - 1:+.0%})"
    facts = [("predicted", text)]
    memory, peak = row.get("predicted_mem_bytes"), row.get("mem_peak_bytes")
    if memory and peak:
        from parctl.planner.sizes import size_text

        text = f"{size_text(memory)}; measured: {size_text(peak)} ({peak / memory - 1:+.0%})"
        facts.append(("memory", text))
    return facts


def _ranks(found: "RunStatus") -> str:
    counts: dict[str, int] = {}
    for rank in found.ranks:
        counts[rank.state] = counts.get(rank.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none yet"
