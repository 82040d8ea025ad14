"""The InfiniBand fabric as ibnetdiscover prints it."""

import pytest

from parctl.errors import UsageError
from parctl.topology.sources.ibnetdiscover import looks_like, read_text


def switch(number: int, name: str, *ports: str) -> str:
    head = f'Switch  41 "S-{number:016x}"         # "MF0;{name}:MQM8700/U1" enhanced port 0 lid 1\n'
    return head + "".join(f"[{i}]     {port}\n" for i, port in enumerate(ports, 1)) + "\n\n"


def host(number: int, description: str) -> str:
    return f'"H-{number:016x}"[1]({number:x})        # "{description}" lid 9 4xNDR s=4 w=2 v=4 e=4'


def up(number: int, name: str, port: int) -> str:
    return f'"S-{number:016x}"[{port}]         # "MF0;{name}:MQM8700/U1" lid 2 4xNDR'


# two leaves under each of two spines, the spines under one core
TREE = "".join(
    [
        switch(0x11, "leaf-1", host(1, "node-1 mlx5_0"), up(0x21, "spine-1", 1)),
        switch(0x12, "leaf-2", host(2, "node-2 mlx5_0"), up(0x21, "spine-1", 2)),
        switch(0x13, "leaf-3", host(10, "node-10 mlx5_0"), up(0x22, "spine-2", 1)),
        switch(0x21, "spine-1", up(0x11, "leaf-1", 2), up(0x12, "leaf-2", 2), up(0x31, "core", 1)),
        switch(0x22, "spine-2", up(0x13, "leaf-3", 2), up(0x31, "core", 2)),
        switch(
            0x31,
            "core",
            up(0x21, "spine-1", 3),
            up(0x22, "spine-2", 2),
            host(99, "Mellanox Technologies Aggregation Node"),
        ),
    ]
)


def test_a_tree_of_switches_becomes_tiers() -> None:
    assert looks_like(TREE)
    topology = read_text(TREE, "fabric.txt")

    assert topology.tiers == ("ib-level-1", "ib-level-2", "ib-level-3")
    tiers = {node.name: [value.split(":")[0] for value in node.tiers] for node in topology.nodes}
    assert tiers == {
        "node-1": ["leaf-1", "spine-1", "core"],
        "node-2": ["leaf-2", "spine-1", "core"],
        "node-10": ["leaf-3", "spine-2", "core"],
    }
    nic = topology.nodes[0].hardware.nics[0]
    assert (nic.name, nic.speed_gbit_s, nic.rail) == ("mlx5_0", 400.0, None)
    assert topology.unknown == ("devices of all 3 hosts: ibnetdiscover sees the network only",)


def test_leaves_that_hosts_tie_together_are_rails_of_one_part() -> None:
    text = switch(0x11, "leaf-1", host(1, "a mlx5_0"), host(3, "b mlx5_0")) + switch(
        0x12, "leaf-2", host(2, "a mlx5_1"), host(4, "b mlx5_1")
    )
    topology = read_text(text, "fabric.txt")

    assert [node.tiers for node in topology.nodes] == [("leaf-1:MQM8700/U1",)] * 2
    rails = [[(nic.name, nic.rail) for nic in node.hardware.nics] for node in topology.nodes]
    assert rails == [[("mlx5_0", 0), ("mlx5_1", 1)]] * 2


def test_a_cut_scan_says_which_part_is_missing() -> None:
    topology = read_text(TREE.split("Switch  41")[1].join(["Switch  41", ""]), "fabric.txt")

    assert [node.name for node in topology.nodes] == ["node-1"]
    assert "ports of 1 switches that others are cabled to: not in the text" in topology.unknown


def test_a_scan_without_cables_is_refused() -> None:
    text = 'vendid=0x2c9\nCa\t1 "H-b8e92403009ca838"\t\t# "dgx-n01 HCA-1"\n'

    with pytest.raises(UsageError, match=r"fabric\.txt:1: no host is cabled to a switch"):
        read_text(text, "fabric.txt")
