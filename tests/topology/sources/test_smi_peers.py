"""`nvidia-smi nvlink -R` and `-p`: where the NVLinks end, and so who is joined with whom."""

from collections.abc import Mapping, Sequence

import pytest

from parctl.topology.discover import read_any
from parctl.topology.merge import merge
from parctl.topology.model import Topology
from parctl.topology.sources.smi_list import looks_like, read_text

A, B, C, D = "00000000:27:00.0", "00000000:38:00.0", "00000000:A8:00.0", "00000000:B8:00.0"
SWITCHES = ("00000005:00:00.0", "00000006:00:00.0")


def remote(
    ends: Sequence[Sequence[str]], *, form: str = "-R", name: str = "NVIDIA A100-PCIE-80GB"
) -> str:
    """What the command prints for GPUs whose links end at these addresses."""
    lines = []
    for i, addresses in enumerate(ends):
        lines.append(f"GPU {i}: {name} (UUID: GPU-0000000{i}-d444-d92c-c36b-6abe53445cb9)")
        for link, address in enumerate(addresses):
            end = f"Remote Device {address}: Link {link + 4}" if form == "-R" else address
            lines.append(f"\t Link {link}: {end}")
    return "\n".join(lines) + "\n"


def matrix_of(topology: Topology) -> list[str]:
    return [" ".join(row) for row in topology.nodes[0].hardware.matrix]


PAIRS = ([B] * 12, [A] * 12, [D] * 12, [C] * 12)
PAIRED = ["X NV12 SYS SYS", "NV12 X SYS SYS", "SYS SYS X NV12", "SYS SYS NV12 X"]


@pytest.mark.parametrize("form", ["-R", "-p"])
def test_bridged_pairs_are_told_by_the_far_ends(form: str) -> None:
    text = remote(PAIRS, form=form)
    assert looks_like(text)
    topology = read_text(text, "node-3.txt")

    assert matrix_of(topology) == PAIRED
    assert topology.nodes[0].hardware.sources == {"matrix": f"nvidia-smi nvlink {form}"}
    assert "PCIe paths: where NVLink joins no pair, the farthest (SYS) is taken" in topology.unknown


def test_both_forms_in_one_text_are_counted_once() -> None:
    assert matrix_of(read_text(remote(PAIRS) + remote(PAIRS, form="-p"), "n.txt")) == PAIRED


def test_four_gpus_joined_directly_each_with_each() -> None:
    ends = [[x for x in (A, B, C, D) if x != own for _ in range(6)] for own in (A, B, C, D)]

    assert matrix_of(read_text(remote(ends), "n.txt"))[0] == "X NV6 NV6 NV6"


def test_gpus_that_all_reach_the_same_addresses_are_joined_by_switches() -> None:
    ends = [[*SWITCHES] * 6 for _ in range(3)]

    assert matrix_of(read_text(remote(ends), "n.txt")) == [
        "X NV12 NV12",
        "NV12 X NV12",
        "NV12 NV12 X",
    ]


def test_a_gpu_without_links_stays_unknown() -> None:
    matrix = matrix_of(read_text(remote([[*SWITCHES] * 6, [], [*SWITCHES] * 6]), "n.txt"))

    assert matrix == ["X ? NV12", "? X ?", "NV12 ? X"]


def test_hidden_ends_tell_nothing() -> None:
    for hidden in ("FFFFFFFF:FF:FF.0", "00000000:00:00.0"):
        topology = read_text(remote([[hidden] * 18] * 2), "n.txt")

        assert matrix_of(topology) == ["X ?", "? X"]
        assert "links of GPU 0-1 (1 of 1 pairs)" in topology.unknown


@pytest.mark.parametrize("ends", [PAIRS, [[*SWITCHES] * 6] * 4], ids=["pairs", "switched"])
def test_a_cut_list_says_nothing_that_the_whole_one_denies(ends: Sequence[Sequence[str]]) -> None:
    text = remote(ends)
    whole = read_text(text, "n.txt").nodes[0].hardware.matrix
    for end in range(len(text) // 4, len(text), 7):
        if looks_like(text[:end]):
            part = read_text(text[:end], "n.txt").nodes[0].hardware.matrix
            assert all(
                code in ("?", whole[i][j])
                for i, row in enumerate(part)
                for j, code in enumerate(row)
            ), end


def test_counts_that_do_not_agree_from_both_ends_tell_nothing() -> None:
    assert matrix_of(read_text(remote([[B] * 4, [A] * 3]), "n.txt")) == ["X ?", "? X"]


def table(addresses: Mapping[int, str]) -> str:
    """The rows of plain `nvidia-smi` that name the GPUs."""
    return "\n".join(
        f"|   {i}  NVIDIA H100 PCIe               Off |   {address} Off |                    0 |"
        for i, address in addresses.items()
    )


def test_the_table_of_plain_nvidia_smi_names_addresses() -> None:
    # a machine that numbers its GPUs in another order
    text = table({0: B, 1: A, 2: D, 3: C}) + "\n" + remote(([A] * 2, [B] * 2, [C] * 2, [D] * 2))
    hardware = read_text(text, "n.txt").nodes[0].hardware

    assert [device.pci for device in hardware.devices][:2] == ["0000:38:00.0", "0000:27:00.0"]
    assert hardware.devices[0].sources["pci"] == "nvidia-smi"
    assert hardware.matrix[0] == ("X", "NV2", "SYS", "SYS")


def test_it_fills_the_links_that_a_table_of_pcie_paths_leaves_open() -> None:
    paths = "\tGPU0\tGPU1\nGPU0\t X \tNODE\nGPU1\tNODE\t X \nLegend:\n"
    topology = read_any("$ nvidia-smi topo -mp\n" + paths + remote([[B] * 12, [A] * 12]), "n.txt")

    assert matrix_of(topology) == ["X NV12", "NV12 X"]
    assert not [sentence for sentence in topology.unknown if sentence.startswith("links")]


def test_merged_with_a_matrix_it_does_not_contradict_pcie_paths() -> None:
    rows = ["X NV12 NODE SYS", "NV12 X NODE SYS", "NODE NODE X NV12", "SYS SYS NV12 X"]
    header = "".join(f"\tGPU{i}" for i in range(4))
    text = "\n".join(
        [header, *(f"GPU{i}\t" + row.replace(" ", "\t") for i, row in enumerate(rows))]
    )
    matrix = read_any(text + "\n", "n.txt")
    peers = read_text(remote(PAIRS), "n.txt")

    for both in ((matrix, peers), (peers, matrix)):
        merged = merge(both)
        assert matrix_of(merged) == rows
        assert not [warning for warning in merged.warnings if "differ" in warning]
