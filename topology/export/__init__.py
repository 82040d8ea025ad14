"""A topology in the words of other tools, and as pictures: text formats of `parctl topology -o`."""

from importlib import import_module

from parctl.errors import UsageError
from parctl.topology.model import Topology

# format -> module and its function `Topology -> str`
EXPORTS = {
    "svg": "parctl.topology.picture.svg:topology_to_svg",
    "html": "parctl.topology.picture.page:topology_to_html",
    "slurm": "parctl.topology.export.slurm:export",
    "slurm-yaml": "parctl.topology.export.slurm_yaml:export",
    "kueue": "parctl.topology.export.kueue:export",
    "hostfile": "parctl.topology.export.hostfile:export",
    "ray-labels": "parctl.topology.export.ray_labels:export",
    "nccl-xml": "parctl.topology.export.nccl_xml:export",
}
# formats that have something to say of a cluster whose nodes nobody named
WITHOUT_NODES = ("svg", "html", "kueue")


def export_text(topology: Topology, output: str) -> str:
    """Write a topology in one of `EXPORTS`. Raises UsageError where the format cannot hold it."""
    if not topology.nodes and output not in WITHOUT_NODES:
        raise UsageError(
            f"{topology.source} names no node, and `-o {output}` is about nodes",
            hint="add a source that lists them: `--from kubernetes`, or a file",
        )
    module, _, function = EXPORTS[output].partition(":")
    return str(getattr(import_module(module), function)(topology))
