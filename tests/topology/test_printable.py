"""Control characters in names are refused: somebody prints them later."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.printable import check_printable
from parctl.topology.store import topology_to_json
from parctl.topology.synthetic import parse_cluster

CLUSTER = parse_cluster("h100:1x2")


def renamed(name: str) -> Topology:
    return replace(CLUSTER, nodes=(replace(CLUSTER.nodes[0], name=name),))


@pytest.mark.parametrize("name", ["node-0", "gpu 7", "n\u00f6de", "10.0.0.7"])
def test_plain_names_pass(name: str) -> None:
    check_printable(renamed(name), "c.json")


@pytest.mark.parametrize("name", ["n\x1b[2J1", "a\nb", "a\x7f", "a\x9b5m", "a\u2028b"])
def test_control_characters_are_shown_escaped_and_refused(name: str) -> None:
    with pytest.raises(UsageError) as error:
        check_printable(renamed(name), "c.json")

    assert error.value.message.startswith("c.json: found '")
    assert error.value.message.isascii() and error.value.message.isprintable()


def test_a_file_whose_node_name_clears_the_screen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(topology_to_json(renamed("n\x1b[2J"))))

    with pytest.raises(UsageError, match=r"cluster\.json: found 'n\\x1b\[2J'"):
        discover(str(path))


def test_sentences_and_places_are_looked_at_too() -> None:
    node = replace(CLUSTER.nodes[0], domain="rack\n1")
    for topology in (
        replace(CLUSTER, warnings=("a\x07",)),
        replace(CLUSTER, nodes=(node,)),
        replace(CLUSTER, tiers=("rack\r",)),
    ):
        with pytest.raises(UsageError, match="control characters"):
            check_printable(topology, "c.json")
