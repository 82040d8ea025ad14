"""Which unknowns of several sources are still unknown once the sources are merged.

Sources say in words what they could not tell. A sentence about a fact that every node now has is
dropped; any other stays, since nobody else may know better.
"""

import re
from collections.abc import Callable, Sequence

from parctl.topology.model import Hardware, Topology

# the first word or phrase of a sentence (behind an optional `NODE: `) and when it is settled
_SETTLED: tuple[tuple[str, Callable[[Topology], bool]], ...] = (
    (r"links\b|NVLink bridges", lambda t: _everywhere(t, _links_known)),
    (r"NUMA node", lambda t: _everywhere(t, lambda h: all(d.numa is not None for d in h.devices))),
    (r"products? of", lambda t: _everywhere(t, lambda h: all(d.product for d in h.devices))),
    (r"distance to the NICs", lambda t: _everywhere(t, _nic_links_known)),
    (r"NICs|network of", lambda t: _everywhere(t, lambda h: bool(h.nics))),
    (r"devices of|GPUs of [^:]*: how many", lambda t: _everywhere(t, lambda h: bool(h.devices))),
    (r"fabric tiers", lambda t: bool(t.tiers) and not any("?" in n.tiers for n in t.nodes)),
    (r"NVLink domains", lambda t: all(node.domain is not None for node in t.nodes)),
    (r"nodes:", lambda t: bool(t.nodes)),
)


def still_unknown(topology: Topology, sentences: Sequence[str]) -> tuple[str, ...]:
    """Keep the sentences that the merged topology does not answer."""
    answers: dict[str, bool] = {}

    def settled(sentence: str) -> bool:
        for pattern, is_known in _SETTLED:
            if re.match(rf"(?:[^\s:]+: )?(?:{pattern})", sentence):
                if pattern not in answers:
                    answers[pattern] = is_known(topology)
                return answers[pattern]
        return False

    return tuple(sentence for sentence in sentences if not settled(sentence))


def _everywhere(topology: Topology, known: Callable[[Hardware], bool]) -> bool:
    return all(
        known(hardware)
        for hardware in {id(n.hardware): n.hardware for n in topology.nodes}.values()
    )


def _links_known(hardware: Hardware) -> bool:
    return not any("?" in row for row in hardware.matrix)


def _nic_links_known(hardware: Hardware) -> bool:
    return bool(hardware.nic_matrix) and not any("?" in row for row in hardware.nic_matrix)
