"""What `--from` accepts, alone and several at once."""

import io
import json
import random
import sys
from pathlib import Path

import pytest

from parctl.errors import ParctlError, UsageError
from parctl.topology.discover import discover, read_any
from parctl.topology.store import save_topology, topology_to_json
from parctl.topology.synthetic import parse_cluster

TOPO = """\
\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity
GPU0\t X \tNV12\t0-15\t0
GPU1\tNV12\t X \t16-31\t1
"""
CONF = "SwitchName=s1 Nodes=n[1-2]\nSwitchName=s2 Nodes=n[3-4]\nSwitchName=top Switches=s[1-2]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "topo.txt").write_text(TOPO)
    (tmp_path / "topology.conf").write_text(CONF)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(folder: Path) -> None:
    (folder / "capture").write_text(TOPO)
    (folder / "cluster.txt").write_text(json.dumps(topology_to_json(parse_cluster("l4:2x4"))))

    assert discover("capture").nodes[0].hardware.matrix[0] == ("X", "NV12")
    assert discover("cluster.txt") == parse_cluster("l4:2x4")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TOPO.encode())))

    assert discover("-").num_devices == 2


def test_standard_input_can_be_read_once(folder: Path) -> None:
    with pytest.raises(UsageError, match="given twice"):
        discover(["-", "-"])


def test_powershell_writes_utf_16(folder: Path) -> None:
    (folder / "wide.txt").write_bytes(TOPO.encode("utf-16"))

    assert discover("wide.txt").num_devices == 2


def test_the_inside_of_one_node_for_all_nodes_of_a_pattern(folder: Path) -> None:
    topology = discover(["topology.conf", "n*=topo.txt"])

    assert [node.name for node in topology.nodes] == ["n1", "n2", "n3", "n4"]
    assert topology.num_devices == 8
    assert topology.nodes[3].tiers == ("s2", "top")
    assert topology.nodes[3].hardware.matrix[0] == ("X", "NV12")
    assert not any(sentence.startswith("devices of") for sentence in topology.unknown)


def test_a_list_of_names_and_a_synthetic_inside(folder: Path) -> None:
    topology = discover(["topology.conf", "n[1-2]=h100:1x8", "n3=topo.txt"])

    assert [len(node.hardware.devices) for node in topology.nodes] == [8, 8, 2]
    assert topology.warnings == ("left out, since no source lists their devices: n4",)


def test_a_file_called_after_its_node_needs_no_name(folder: Path) -> None:
    (folder / "n2.txt").write_text(TOPO)

    assert [node.name for node in discover(["topology.conf", "n2.txt"]).nodes] == ["n2"]


def test_a_capture_of_nobody_is_not_given_to_anybody(folder: Path) -> None:
    with pytest.raises(UsageError) as error:
        discover(["topology.conf", "topo.txt"])

    assert "does not say which of 4 (n1, n2, n3 and 1 more)" in error.value.message
    assert "`n1=topo.txt`, or `*=topo.txt` if all are alike" in (error.value.hint or "")


def test_a_capture_and_one_node_are_one_machine(folder: Path) -> None:
    (folder / "one.conf").write_text("SwitchName=s1 Nodes=gpu-7\n")
    topology = discover(["one.conf", "topo.txt"])

    assert [(node.name, len(node.hardware.devices)) for node in topology.nodes] == [("gpu-7", 2)]
    assert topology.warnings == (
        "topo.txt names no machine: taken as gpu-7 (`NODE=topo.txt` says which)",
    )


def test_two_kinds_of_capture_are_one_machine_and_two_of_a_kind_are_two(folder: Path) -> None:
    (folder / "list.txt").write_text(
        "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-11111111-1111-1111-1111-111111111111)\n"
        "GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-22222222-2222-2222-2222-222222222222)\n"
    )
    (folder / "other.txt").write_text(TOPO)

    (node,) = discover(["topo.txt", "list.txt"]).nodes
    assert node.hardware.devices[1].uuid == "GPU-22222222-2222-2222-2222-222222222222"
    assert node.hardware.matrix[0] == ("X", "NV12")
    assert len(discover(["topo.txt", "other.txt"]).nodes) == 2


def test_kubernetes_objects_of_several_files_are_one_cluster(folder: Path) -> None:
    (folder / "nodes.yaml").write_text(
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {my/rack: r1}}\n"
        "status: {allocatable: {nvidia.com/gpu: 2}}\n"
    )
    (folder / "kueue.yaml").write_text(
        "apiVersion: kueue.x-k8s.io/v1beta1\nkind: Topology\nmetadata: {name: t}\n"
        "spec: {levels: [{nodeLabel: my/rack}]}\n"
    )
    topology = discover(["nodes.yaml", "kueue.yaml", "topo.txt"])

    assert topology.tiers == ("my/rack",)
    assert topology.nodes[0].tiers == ("r1",)
    assert topology.nodes[0].hardware.devices[1].cpu_affinity == "16-31"


def test_a_pattern_without_a_node_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="no node of that name among 4"):
        discover(["topology.conf", "x*=topo.txt"])


def test_a_pattern_wants_one_node(folder: Path) -> None:
    with pytest.raises(UsageError, match="wants a source of one node, h100:2x8 has 2"):
        discover(["topology.conf", "n*=h100:2x8"])


def test_a_file_with_an_equals_sign_in_its_name(folder: Path) -> None:
    save_topology(parse_cluster("h100:1x2"), folder / "a=b.json")

    assert discover("a=b.json").num_devices == 2


def test_a_text_of_no_known_format_lists_the_formats(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello\n")
    with pytest.raises(UsageError) as error:
        discover("notes.txt")

    assert "describes no cluster in a format that parctl reads" in error.value.message
    assert "nvidia-smi topo -m" in (error.value.hint or "")


@pytest.mark.parametrize(("typed", "hint"), [("locl", "`local`"), ("kubernets", "`kubernetes`")])
def test_a_typing_error_is_pointed_at(typed: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        discover(typed)

    assert f"did you mean {hint}?" in (error.value.hint or "")


NODES = json.dumps(
    {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "kind": "Node",
                "metadata": {"name": f"n{i}", "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
                "status": {"allocatable": {"nvidia.com/gpu": "2"}},
            }
            for i in range(3)
        ],
    },
    indent=1,
)
RAY = json.dumps([{"node_id": "a", "node_ip": "1.2.3.4", "is_head_node": True, "state": "ALIVE",
                   "resources_total": {"GPU": 2.0}}])  # fmt: skip
TOPOGRAPH = (
    "switches:\n  top:\n    switches: [s1]\nblocks:\n- switch: s1\n  nodes:\n  - n[1-3]\n"
    "  annotations:\n    accelerator.topology.test/domain: d\n"
)
SLURM_YAML = (
    "- topology: t\n  cluster_default: true\n  tree:\n    switches:\n"
    "      - switch: s1\n        nodes: n[1-2]\n"
)
OURS = json.dumps(topology_to_json(parse_cluster("gb200:1x2x4")))


@pytest.mark.parametrize("seed", range(40))
def test_damaged_texts_give_a_topology_or_an_error_that_names_the_file(seed: int) -> None:
    dice = random.Random(seed)
    for text in (NODES, RAY, TOPOGRAPH, SLURM_YAML, CONF, OURS):
        damaged = list(text)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(damaged))
            kind = dice.randrange(5)
            if kind == 0:
                del damaged[place : place + dice.randint(1, 40)]
            elif kind == 1:
                damaged[place] = chr(dice.choice([0, 9, 10, 34, 45, 58, 91, 93, 123, 125, 233]))
            elif kind == 2:
                damaged[place:place] = damaged[place : place + dice.randint(1, 60)]
            elif kind == 3:
                damaged[place:place] = list(
                    dice.choice(["9" * 30, "[1-9]", "null", "{", "- ", ","])
                )
            else:
                del damaged[place:]
            damaged = damaged or ["x"]
        try:
            topology = read_any("".join(damaged), "damaged")
        except ParctlError as error:
            assert "damaged" in error.message
        else:
            assert json.dumps(topology_to_json(topology))
