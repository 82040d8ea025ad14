"""`parctl topology`: show the cluster that every other command would see, check it, compare two."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from parctl.cli.options import DevicesOption, OutputOption, with_address

if TYPE_CHECKING:
    from parctl.topology.model import Topology

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Show the nodes, GPUs and links of this machine or a cluster.",
)
PLAIN = ("table", "json", "yaml")
SourcesOption = Annotated[
    list[str],
    typer.Option(
        "--from",
        "--cluster",
        metavar="SOURCE",
        help="local (the default), kubernetes, ray, a file, - or a cluster such as h100:16x8. "
        "Several sources are merged: NODES=SOURCE says what those nodes are like inside.",
        show_default=False,
        callback=lambda sources: [with_address(source) for source in sources],
    ),
]
NodeOption = Annotated[
    list[str],
    typer.Option("--node", metavar="NAME", help="Show only this node.", show_default=False),
]


@app.callback(invoke_without_command=True)
def topology(
    context: typer.Context,
    from_: SourcesOption = [],  # noqa: B006  (typer copies it)
    devices: DevicesOption = None,
    node: NodeOption = [],  # noqa: B006  (typer copies it)
    inside: Annotated[
        bool,
        typer.Option("--inside", help="--from ray: ask every node for its links, by a short job."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Which TP sizes fit NVLink, and what is wrong.")
    ] = False,
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            help="table, tree, json, yaml, svg, html, slurm, slurm-yaml, kueue, hostfile, "
            "ray-labels or nccl-xml.",
        ),
    ] = "table",
) -> int:
    """Show the nodes, GPUs and links of this machine or a cluster.

    `-o json > FILE` saves it; `--cluster FILE` of any command reads it back. `--check` exits 1
    when it finds a fault.
    """
    if context.invoked_subcommand is not None:
        return 0
    from parctl.cli.output import check_format, console, print_document
    from parctl.cli.topology_view import show_check, show_table, show_tree
    from parctl.topology.check.findings import with_findings
    from parctl.topology.discover import discover
    from parctl.topology.export import EXPORTS, export_text
    from parctl.topology.store import topology_to_json
    from parctl.topology.subset import only_nodes

    check_format(output, PLAIN if check else (*PLAIN, "tree", *EXPORTS))
    if inside:
        found = only_nodes(_inside(from_), node)
    else:
        found = only_nodes(discover(from_, num_devices=devices), node)
    if check:
        from parctl.topology.check.questions import check_to_json, check_topology

        result = check_topology(found)
        told = {str(finding) for finding in result.findings}
        _warn(warning for warning in found.warnings if warning not in told)
        if output == "table":
            show_check(found, result, console())
        else:
            print_document(check_to_json(result), output)
        return 0 if result.ok else 1
    if output not in EXPORTS:
        found = with_findings(found)
    _warn(found.warnings)
    if output in ("json", "yaml"):
        # through text: equal nodes share their lists, which YAML would print as anchors
        print_document(json.loads(json.dumps(topology_to_json(found))), output)
    elif output in ("table", "tree"):
        (show_tree if output == "tree" else show_table)(found, console())
    else:
        typer.echo(export_text(found, output), nl=False)
    return 0


def _inside(sources: list[str]) -> "Topology":
    from parctl.errors import UsageError
    from parctl.launcher.ray.inside import read_cluster_inside

    if len(sources) != 1 or sources[0].partition(":")[0] != "ray":
        raise UsageError(
            "--inside is for the nodes of a Ray cluster", hint="`--from ray`, or `ray:ADDRESS`"
        )
    return read_cluster_inside(sources[0].partition(":")[2] or None)


def _warn(warnings: Iterable[str]) -> None:
    from parctl.cli.output import note

    for warning in warnings:
        note(f"warning: {warning}")


@app.command()
def diff(
    before: Annotated[
        str, typer.Argument(metavar="A", help="A source, as for --from.", callback=with_address)
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.", callback=with_address)],
    output: OutputOption = "table",
) -> int:
    """Say what changed from A to B, and exit 1 if anything did.

    Nodes are paired by name, GPUs by UUID where both sides know it.
    """
    from parctl.cli.output import check_format, print_document
    from parctl.topology.diff import change_to_json, diff_topologies
    from parctl.topology.discover import discover

    check_format(output, PLAIN)
    changes = diff_topologies(discover(before), discover(after))
    if output == "table":
        for change in changes:
            typer.echo(str(change))
        if not changes:
            typer.echo("no difference")
    else:
        document = {"same": not changes, "changes": [change_to_json(c) for c in changes]}
        print_document(document, output)
    return 1 if changes else 0
