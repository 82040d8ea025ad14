"""A topology in the words of other tools, and as pictures: text formats of `parctl topology -o`."""

from importlib import import_module

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


def export_text(topology: Topology, output: str) -> str:
    """Write a topology in one of `EXPORTS`."""
    module, _, function = EXPORTS[output].partition(":")
    return str(getattr(import_module(module), function)(topology))
