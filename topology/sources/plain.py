"""Hardware of which a cluster manager tells the number of devices and little else.

GPUs get unknown links. A node without GPUs in a cluster without GPUs gets one slot per CPU, as
`local` gives this machine.
"""

from collections.abc import Mapping, Sequence

from parctl.topology.model import Device, Hardware, Nic

MAX_CPU_SLOTS = 1024


def gpu_hardware(
    devices: Sequence[Device],
    *,
    source: str,
    num_cpus: int | None = None,
    memory_bytes: int | None = None,
    nics: Sequence[Nic] = (),
    nic_matrix: tuple[tuple[str, ...], ...] = (),
) -> Hardware:
    """GPUs whose links nobody told us. Without devices: a node known by name only."""
    size = range(len(devices))
    return Hardware(
        kind="gpu",
        devices=tuple(devices),
        matrix=tuple(tuple("X" if i == j else "?" for j in size) for i in size),
        nics=tuple(nics),
        nic_matrix=nic_matrix,
        num_cpus=num_cpus,
        memory_bytes=memory_bytes,
        sources=_host_sources(num_cpus, memory_bytes, source),
    )


def cpu_slots(num_cpus: int, memory_bytes: int | None, *, source: str) -> Hardware:
    """One device per CPU, each with an equal share of the memory."""
    count = min(num_cpus, MAX_CPU_SLOTS)
    sources = {"product": source}
    if memory_bytes is not None:
        sources["memory_bytes"] = source
    devices = tuple(
        Device(
            index=i,
            product="cpu",
            uuid=None,
            memory_bytes=None if memory_bytes is None else memory_bytes // count,
            numa=None,
            pci=None,
            sources=sources,
        )
        for i in range(count)
    )
    return Hardware(
        kind="cpu",
        devices=devices,
        matrix=tuple(tuple("X" if i == j else "HOST" for j in range(count)) for i in range(count)),
        nics=(),
        nic_matrix=(),
        num_cpus=num_cpus,
        memory_bytes=memory_bytes,
        sources={"matrix": source, **_host_sources(num_cpus, memory_bytes, source)},
    )


def _host_sources(num_cpus: int | None, memory: int | None, source: str) -> Mapping[str, str]:
    facts = {"num_cpus": num_cpus, "memory_bytes": memory}
    return {key: source for key, value in facts.items() if value is not None}
