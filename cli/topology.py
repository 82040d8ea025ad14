"""`parctl topology`: show the cluster that every other command would see."""

import json
from typing import Annotated

import typer

from parctl.cli.options import ClusterOption, DevicesOption

FORMATS = ("table", "tree", "json", "yaml")


def topology(
    cluster: ClusterOption = None,
    devices: DevicesOption = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="table, tree, json or yaml.")
    ] = "table",
) -> None:
    """Show the nodes, GPUs and links of this machine or a cluster.

    `-o json > FILE` saves it; `--cluster FILE` of any command reads it back.
    """
    from parctl.cli.output import check_format, console, note, print_document
    from parctl.topology.discover import discover
    from parctl.topology.store import topology_to_json

    check_format(output, FORMATS)
    found = discover(cluster, num_devices=devices)
    if output in ("json", "yaml"):
        # through text: equal nodes share their lists, which YAML would print as anchors
        print_document(json.loads(json.dumps(topology_to_json(found))), output)
        return
    from parctl.cli.topology_view import show_table, show_tree

    show = show_tree if output == "tree" else show_table
    show(found, console())
    for warning in found.warnings:
        note(f"warning: {warning}")
