"""A hostfile as mpirun and DeepSpeed read it: one line per node with its number of usable devices.

Devices with a fault are not counted. A hostfile cannot say which ones they are, so a comment does.
"""

from collections.abc import Iterator

from parctl.topology.describe import gpus_text
from parctl.topology.model import Topology


def export(topology: Topology) -> str:
    """Write the hostfile, in the order of node ranks."""
    return "\n".join(_lines(topology)) + "\n"


def _lines(topology: Topology) -> Iterator[str]:
    for node in topology.nodes:
        name = "".join(node.name.split())  # a name with white space would be two words
        devices = node.hardware.devices
        usable = [device.index for device in devices if not device.faults]
        broken = [device.index for device in devices if device.faults]
        if broken:
            yield (
                f"# {name}: {gpus_text(broken)} left out (fault); "
                f"set CUDA_VISIBLE_DEVICES={','.join(map(str, usable))} there"
                if usable
                else f"# {name}: left out, {gpus_text(broken)} have faults"
            )
        if not devices:
            yield f"# {name}: left out, its devices are unknown"
        if usable:
            yield f"{name} slots={len(usable)}"
