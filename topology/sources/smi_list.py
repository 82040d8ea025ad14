"""`nvidia-smi -L` and `nvidia-smi nvlink`: which GPUs there are, and which of their links run.

All print one `GPU 0: NAME (UUID: ...)` per GPU. The first adds its MIG slices, `nvlink -s` a line
per NVLink, `nvlink -R` and `-p` where each ends (`parctl.topology.sources.smi_peers`). Without
those links stay unknown. An `<inactive>` link alone is no fault (a bridged H100 PCIe card uses 12
of 18). A GPU that has none up, or fewer than its neighbours, is worth a warning.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parctl.errors import UsageError
from parctl.topology.model import Device, Hardware, Topology
from parctl.topology.sources.capture import (
    MAX_DEVICES,
    UNKNOWN,
    Matrix,
    device_list,
    missing_facts,
    one_node,
    plain_lines,
    product_of,
    too_many,
)
from parctl.topology.sources.smi_peers import NO_PATH, own_addresses, peer_matrix, peer_of

_GPU = re.compile(
    r"(?<!\S)GPU (\d{1,4}(?:,\d{1,4}){0,63}): (\S[^()\n]{0,80}?)\s*"
    r"(?:\(UUID: ?([^)\s]{0,80})(\)?)|$)"
)
_UUID = re.compile(r"(?:GPU-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_MIG = re.compile(r"\bMIG\s+(\S{1,20})\s+Device\s+(\d{1,2}):")
_LINK = re.compile(r"\bLink (\d{1,2}): (?:([\d.]{1,9}) GB/s|<inactive>|(inactive|disabled))", re.I)


@dataclass(slots=True, kw_only=True)
class Listed:
    """One GPU as listed."""

    index: int
    product: str
    uuid: str | None
    slices: list[str] = field(default_factory=list)  # MIG profiles
    links: dict[int, float] = field(default_factory=dict)  # GB/s by link; 0: inactive
    # far end by link (None: hidden), by the command that printed it
    peers: dict[str, dict[int, str | None]] = field(default_factory=dict)

    @property
    def ends(self) -> list[str | None]:
        """Far ends of the links that are up. The two commands number links differently."""
        found = self.peers.get("nvlink -R") or self.peers.get("nvlink -p") or {}
        return list(found.values())


def looks_like(text: str) -> bool:
    """Whether a GPU is listed in this text."""
    return re.search(r"(?m)(?<!\S)GPU \d{1,4}: \S.{0,90}?\(UUID:", text) is not None


def read_text(text: str, name: str) -> Topology:
    """Read the GPUs of one machine. Raises UsageError when none is listed."""
    lines = plain_lines(text)
    listed = list_gpus(lines, name)
    if not listed:
        raise UsageError(
            f"{name}:1: no line such as `GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-...)`",
            hint="save the output of `nvidia-smi -L` or `nvidia-smi nvlink -R`",
        )
    gpus = [listed[index] for index in sorted(listed)]
    source = listed_source(gpus)
    addresses = own_addresses(lines)
    matrix = listed_links(gpus, addresses)
    told = any(code not in ("X", UNKNOWN) for row in matrix for code in row)
    hardware = Hardware(
        kind="gpu",
        devices=tuple(
            Device(
                index=gpu.index,
                memory_bytes=None,
                numa=None,
                sources=dict.fromkeys(listed_facts(gpu), source)
                | ({"pci": "nvidia-smi"} if gpu.index in addresses else {}),
                **{"uuid": None, "pci": addresses.get(gpu.index), **listed_facts(gpu)},
            )
            for gpu in gpus
        ),
        matrix=tuple(map(tuple, matrix)),
        nics=(),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
        sources={"matrix": source} if told else {},
    )
    unknown = [
        *missing_facts(hardware),
        f"NICs: `{source}` does not list them",
        *_lost_uuids(gpus),
    ]
    if any(NO_PATH in row for row in matrix):
        unknown.append(f"PCIe paths: where NVLink joins no pair, the farthest ({NO_PATH}) is taken")
    return one_node(
        hardware, name, source=source, warnings=list(listed_warnings(gpus)), unknown=unknown
    )


def list_gpus(lines: Sequence[str], name: str) -> dict[int, Listed]:
    """GPUs by index, with the slices and links listed under each."""
    gpus: dict[int, Listed] = {}
    current: Listed | None = None
    for number, line in enumerate(lines, 1):
        if match := _GPU.search(line):
            whole = match[3] is not None and match[4] and _UUID.fullmatch(match[3])
            for index in map(int, match[1].split(",")):  # reports write `GPU 0,1: NAME`
                current = gpus.setdefault(
                    index,
                    Listed(
                        index=index,
                        product=product_of(match[2]),
                        uuid=match[3] if whole else None,
                    ),
                )
            if len(gpus) > MAX_DEVICES:
                raise too_many(name, number, len(gpus))
        elif current is None:
            continue
        elif match := _MIG.search(line):
            if len(current.slices) < MAX_DEVICES:
                current.slices.append(match[1])
        elif match := _LINK.search(line):
            current.links[int(match[1])] = _speed(match[2])
        elif peer := peer_of(line):
            command, link, address = peer
            current.peers.setdefault(command, {})[link] = address
    return gpus


def listed_links(gpus: Sequence[Listed], addresses: Mapping[int, str]) -> Matrix:
    """Links between the GPUs, in this order, as far as the ends of their NVLinks tell them."""
    ends = {gpu.index: gpu.ends for gpu in gpus}
    return peer_matrix([gpu.index for gpu in gpus], ends, addresses)


def listed_source(gpus: Sequence[Listed]) -> str:
    """The command that printed the most telling part."""
    if commands := {command for gpu in gpus for command in gpu.peers}:
        return f"nvidia-smi {min(commands)}"
    return "nvidia-smi nvlink -s" if any(gpu.links for gpu in gpus) else "nvidia-smi -L"


def listed_facts(gpu: Listed) -> dict[str, Any]:
    """Fields of a Device that the listing tells."""
    facts: dict[str, Any] = {"product": gpu.product}
    if gpu.uuid is not None:
        facts["uuid"] = gpu.uuid
    if gpu.slices:
        facts["mig"] = True
    return facts


def listed_warnings(gpus: Sequence[Listed]) -> Iterator[str]:
    """What is wrong with the listed GPUs: slices, and links that others have and one has not."""
    for gpu in gpus:
        if gpu.slices:
            yield (
                f"gpu {gpu.index}: MIG is on ({', '.join(gpu.slices)}); "
                "the whole GPU is shown, not its slices"
            )
    linked = [gpu for gpu in gpus if gpu.links]
    most = max((_num_up(gpu) for gpu in linked), default=0)
    # the last GPU of a cut text may have lost lines, so only listed links count as down
    for gpu in linked:
        down = sum(speed == 0 for speed in gpu.links.values())
        up = _num_up(gpu)
        if up == 0:
            yield f"gpu {gpu.index}: all {down} NVLinks are inactive"
        elif up < most and down > _fewest_down(linked):
            yield f"gpu {gpu.index}: {up} NVLinks are active, others of this node have {most}"
    if linked and len(linked) < len(gpus):
        lacking = [gpu.index for gpu in gpus if not gpu.links]
        yield f"{device_list(lacking)}: no NVLink is listed, others of this node have some"


def _fewest_down(gpus: Sequence[Listed]) -> int:
    return min(sum(speed == 0 for speed in gpu.links.values()) for gpu in gpus)


def _num_up(gpu: Listed) -> int:
    return sum(speed > 0 for speed in gpu.links.values())


def _lost_uuids(gpus: Sequence[Listed]) -> Iterator[str]:
    lost = [gpu.index for gpu in gpus if gpu.uuid is None]
    if lost:
        yield f"UUID of {device_list(lost)}: not whole in the text"


def _speed(digits: str | None) -> float:
    try:
        return float(digits or 0)
    except ValueError:
        return 0.0
