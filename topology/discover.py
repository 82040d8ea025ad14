"""Find the cluster that a person names: this machine, a live one, files, a line of text.

::

    local                     this machine
    kubernetes[:CONTEXT]      the nodes of a Kubernetes cluster
    ray[:ADDRESS]             the nodes of a Ray cluster
    FILE or -                 any format of `parctl.topology.sources`, or our own JSON
    h100:64x8                 a synthetic cluster
    NODES=SOURCE              what one node is like inside, for the nodes of that name or pattern:
                              `gpu-*=topo.txt`, `srv[1101-1108]=h100:1x8`

Several sources describe one cluster and are merged (`parctl.topology.merge`).
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from parctl.errors import UsageError
from parctl.topology.model import Node, Topology
from parctl.topology.names import few
from parctl.topology.printable import check_printable

FILE_SUFFIXES = (".json", ".yaml", ".yml", ".xml", ".txt", ".conf")
STDIN = "-"
DETECTED = 2**22  # characters that must show the format; a log of 100 MB is not searched for it
# formats in the order they are tried: the ones that cannot be mistaken first
FORMATS = {
    "topograph": "topograph's output",
    "slurm": "Slurm's topology.conf or topology.yaml",
    "ray": "Ray's list of nodes",
    "kubernetes": "Kubernetes objects",
    "nccl_xml": "NCCL's topology XML",
    "ibnetdiscover": "ibnetdiscover",
    "rocm": "rocm-smi --showtopo",
    "smi": "nvidia-smi topo -m",
    "smi_list": "nvidia-smi -L or nvlink",
}
# captures of one machine, which seldom say which
ANONYMOUS = ("nccl_xml", "rocm", "smi", "smi_list")

_FOR_NODES = re.compile(r"([\w.*?\[\],-]+)=(.+)", re.DOTALL)


class Format(Protocol):
    """A module of `parctl.topology.sources`."""

    def looks_like(self, text: str) -> bool: ...

    def read_text(self, text: str, name: str) -> Topology: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A topology and what is known of how it was named."""

    topology: Topology
    format: str  # key of FORMATS, `local`, `file`, ...
    anonymous: bool  # one node, called after its file and not after itself
    pattern: str | None  # the nodes that it is about, when the person says so


def discover(source: str | Sequence[str] | None, *, num_devices: int | None = None) -> Topology:
    """Return the topology of one source, or of several merged. None is this machine.

    `num_devices` takes that many devices of this machine; CPU devices may exceed its cores.
    """
    sources = [source or "local"] if source is None or isinstance(source, str) else list(source)
    sources = sources or ["local"]
    if num_devices is not None and sources != ["local"]:
        raise UsageError(
            f"a number of devices ({num_devices}) is for this machine, not for "
            f"`{', '.join(sources)}`",
            hint="say how many in the cluster itself, for example `h100:1x4`",
        )
    if sources.count(STDIN) > 1:
        raise UsageError("`-` (standard input) is given twice, it can be read once")
    if len(sources) == 1 and _split(sources[0])[0] is None:
        return _read_one(sources[0], num_devices).topology
    from parctl.topology.merge import merge

    return merge(_named([*_read_all(sources)]))


def read_any(text: str, name: str) -> Topology:
    """Read a text of any known format. Raises UsageError when it is none of them."""
    return _read_text(text, name).topology


def _read_all(sources: Sequence[str]) -> Iterator[_Found]:
    """Read every source; texts with Kubernetes objects are read together, they complete another."""
    objects: list[tuple[str, str]] = []
    place = 0
    found: list[_Found] = []
    for source in sources:
        pattern, rest = _split(source)
        text = _text_of(rest)
        if text is not None and pattern is None and _is_kubernetes(text):
            place = place if objects else len(found)
            objects.append((text, rest))
        elif text is not None:
            found.append(replace(_read_text(text, rest), pattern=pattern))
        else:
            found.append(replace(_read_one(rest, None), pattern=pattern))
    if objects:
        from parctl.topology.sources.kubernetes import read_texts

        cluster = read_texts(objects)
        check_printable(cluster, " + ".join(name for _, name in objects))
        entry = _Found(topology=cluster, format="kubernetes", anonymous=False, pattern=None)
        found.insert(place, entry)
    yield from found


def _split(source: str) -> tuple[str | None, str]:
    """`NODES=SOURCE` into both; a file of that name is a file."""
    match = None if os.path.exists(source) else _FOR_NODES.fullmatch(source)
    return (match[1], match[2]) if match else (None, source)


def _read_one(source: str, num_devices: int | None) -> _Found:
    name, _, rest = source.partition(":")
    if source == "local":
        from parctl.topology.sources.local import discover_local

        return _whole(discover_local(num_devices), "local")
    text = _text_of(source)
    if text is not None:
        return _read_text(text, source)
    if name in ("kubernetes", "k8s"):
        from parctl.topology.sources.kubernetes_live import read_cluster

        return _whole(read_cluster(rest or None), "kubernetes")
    if name == "ray":
        from parctl.topology.sources.ray import read_cluster as read_ray_cluster

        return _whole(read_ray_cluster(rest or None), "ray")
    from parctl.topology.synthetic import looks_synthetic, parse_cluster

    if looks_synthetic(source):
        return _whole(parse_cluster(source), "synthetic")
    raise UsageError(
        f"no cluster `{source[:60]}`: not a file, and not of the form PRODUCT:NODESxDEVICES",
        hint=_hint(source),
    )


def _whole(topology: Topology, kind: str) -> _Found:
    return _Found(topology=topology, format=kind, anonymous=False, pattern=None)


def _text_of(source: str) -> str | None:
    """Text of a file or of standard input; None when the source is neither."""
    from parctl.topology.store import decode_text, read_file

    if source == STDIN:
        return decode_text(sys.stdin.buffer.read(), "standard input")
    if source.endswith(FILE_SUFFIXES) or os.path.exists(source):
        return read_file(Path(source))
    return None


def _format_of(text: str) -> str | None:
    beginning = text[:DETECTED]
    return next((name for name in FORMATS if _module(name).looks_like(beginning)), None)


def _is_kubernetes(text: str) -> bool:
    from parctl.topology.store import looks_like

    return not looks_like(text[:DETECTED]) and _format_of(text) == "kubernetes"


def _module(name: str) -> Format:
    return cast(Format, import_module(f"parctl.topology.sources.{name}"))


def _read_text(text: str, source: str) -> _Found:
    from parctl.topology.document import read_documents
    from parctl.topology.store import looks_like, topology_from_text

    name = "standard input" if source == STDIN else source
    if looks_like(text[:DETECTED]):
        topology = topology_from_text(text, name)
        check_printable(topology, name)
        return _whole(topology, "file")
    kind = _format_of(text)
    if kind is None:
        if source.endswith((".json", ".yaml", ".yml")) or text.lstrip()[:1] == "{":
            read_documents(text, name)  # an error of syntax explains more than the one below
        raise UsageError(
            f"{name}: describes no cluster in a format that parctl reads",
            hint=f"read are {', '.join(FORMATS.values())}, and `parctl topology -o json`",
        )
    topology = _module(kind).read_text(text, Path(name).name)
    check_printable(topology, name)
    anonymous = (
        kind in ANONYMOUS
        and len(topology.nodes) == 1
        and topology.nodes[0].name in (Path(name).stem, "node-0", "standard input")
    )
    return _Found(topology=topology, format=kind, anonymous=anonymous, pattern=None)


def _named(found: Sequence[_Found]) -> list[Topology]:
    """Give every capture of one machine the names of the nodes that it is about."""
    names = [
        node.name
        for entry in found
        if not entry.anonymous and entry.pattern is None
        for node in entry.topology.nodes
    ]
    lone = [entry for entry in found if entry.anonymous and entry.pattern is None]
    one_machine = len({entry.format for entry in lone}) == len(lone)
    result = []
    for entry in found:
        if entry.pattern is not None:
            result.append(_apply(entry, entry.pattern, names))
        elif not entry.anonymous or entry.topology.nodes[0].name in names:
            result.append(entry.topology)
        elif len(names) == 1:
            result.append(_taken_as(entry.topology, names[0]))
        elif names:
            raise UsageError(
                f"{entry.topology.name}: describes one machine and does not say which of "
                f"{len(names)} ({few(names)})",
                hint=f"name it: `{names[0]}={entry.topology.name}`, or "
                f"`*={entry.topology.name}` if all are alike",
            )
        else:
            first = lone[0].topology.nodes[0].name
            result.append(_taken_as(entry.topology, first) if one_machine else entry.topology)
    return result


def _taken_as(topology: Topology, name: str) -> Topology:
    """A capture that names no machine, for the only machine that there is; this is said."""
    renamed = _renamed(topology, [name])
    if topology.nodes[0].name == name:
        return renamed
    note = f"{topology.name} names no machine: taken as {name} (`NODE={topology.name}` says which)"
    return replace(renamed, warnings=(*topology.warnings, note))


def _apply(entry: _Found, pattern: str, names: Sequence[str]) -> Topology:
    """One machine's inside, for every node that the pattern means."""
    if len(entry.topology.nodes) != 1:
        raise UsageError(
            f"`{pattern}=` wants a source of one node, {entry.topology.name} has "
            f"{len(entry.topology.nodes)}"
        )
    if "*" in pattern or "?" in pattern:
        chosen = [name for name in names if fnmatchcase(name, pattern)]
        if not chosen:
            raise UsageError(
                f"`{pattern}=`: no node of that name among {len(names)}"
                + (f" ({few(names)})" if names else ""),
                hint="another source must list the nodes",
            )
    else:
        from parctl.topology.hostlist import expand_hostlist

        chosen = expand_hostlist(pattern, f"`{pattern}=`")
    return _renamed(entry.topology, chosen)


def _renamed(topology: Topology, names: Sequence[str]) -> Topology:
    node = topology.nodes[0]
    alike = [
        # a domain is a place: it is not shared by all that look alike
        Node(
            name=name,
            hardware=node.hardware,
            domain=node.domain if len(names) == 1 else None,
            tiers=node.tiers,
            sources=node.sources,
        )
        for name in names
    ]
    return replace(topology, nodes=tuple(alike))


def _hint(source: str) -> str:
    from parctl.topology.products import PRODUCTS

    known = ["local", "kubernetes", "ray", *(product.key for product in PRODUCTS)]
    use = "use `local`, a topology file (`parctl topology -o json > FILE`), or e.g. `h100:16x8`"
    nearest = get_close_matches(source.split(":")[0].lower(), known, n=1)
    if not nearest:
        return use
    shown = nearest[0] if nearest[0] in known[:3] else f"{nearest[0]}:16x8"
    return f"did you mean `{shown}`? Otherwise {use}"
