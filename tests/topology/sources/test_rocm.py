"""`rocm-smi --showtopo` and `amd-smi topology`."""

import pytest

from parctl.errors import UsageError
from parctl.topology.sources.rocm import looks_like, read_text


def table(title: str, rows: list[list[object]]) -> str:
    labels = [f"GPU{i}" for i in range(len(rows))]
    lines = [f"{f' {title} ':=^80}", "       " + "         ".join(labels)]
    lines += [
        f"{label}   " + "   ".join(map(str, row)) for label, row in zip(labels, rows, strict=True)
    ]
    return "\n".join(lines) + "\n\n"


WEIGHTS = table("Weight between two GPUs", [[0, 15, 30], [15, 0, 15], [30, 15, 0]])
HOPS = table("Hops between two GPUs", [[0, 1, 1], [1, 0, 1], [1, 1, 0]])
TYPES = table(
    "Link Type between two GPUs", [[0, "XGMI", "XGMI"], ["XGMI", 0, "XGMI"], ["XGMI", "XGMI", 0]]
)
NUMA = "".join(
    f"GPU[{i}]\t\t: (Topology) Numa Node: {numa}\nGPU[{i}]\t\t: (Topology) Numa Affinity: {numa}\n"
    for i, numa in enumerate((0, 0, 1))
)


def test_weight_15_is_a_link_and_30_has_a_gpu_on_the_way() -> None:
    text = WEIGHTS + HOPS + TYPES + NUMA
    assert looks_like(text)
    hardware = read_text(text, "amd.txt").nodes[0].hardware

    assert hardware.matrix == (("X", "XGMI", "SYS"), ("XGMI", "X", "XGMI"), ("SYS", "XGMI", "X"))
    assert hardware.nvlink_groups == ((0, 1, 2),)
    assert hardware.nvlink_cliques == (((0, 1), 1),)
    assert [device.numa for device in hardware.devices] == [0, 0, 1]


def test_weights_alone_are_enough() -> None:
    assert read_text(WEIGHTS, "amd.txt").nodes[0].hardware.matrix[0] == ("X", "XGMI", "?")


def test_types_alone_say_what_they_do_not_tell() -> None:
    topology = read_text(TYPES, "amd.txt")

    assert topology.nodes[0].hardware.matrix[0] == ("X", "XGMI", "XGMI")
    assert any(text.startswith("weights: without them") for text in topology.unknown)


@pytest.mark.parametrize(("hops", "code"), [(2, "NODE"), (3, "SYS")])
def test_pcie_hops_tell_sockets_apart(hops: int, code: str) -> None:
    text = table("Hops between two GPUs", [[0, hops], [hops, 0]])
    text += table("Link Type between two GPUs", [[0, "PCIE"], ["PCIE", 0]])

    assert read_text(text, "amd.txt").nodes[0].hardware.matrix == (("X", code), (code, "X"))


def test_a_cut_table_is_read_from_the_other_end() -> None:
    whole = WEIGHTS + table("Link Type between two GPUs", [[0, "XGMI", "XGMI"]] * 3)
    text = whole[: whole.rindex("GPU1")] + "GPU1   XGMI   0   XG"
    topology = read_text(text, "amd.txt")

    assert topology.nodes[0].hardware.matrix[1] == ("XGMI", "X", "XGMI")
    assert topology.unknown[0] == "4 of 9 cells of the type table: not in the text"


def test_the_old_form_of_numa_lines_is_read() -> None:
    text = WEIGHTS + "GPU 2          : (Topology) Numa Node: 3\n"

    assert read_text(text, "amd.txt").nodes[0].hardware.devices[2].numa == 3


def test_amd_smi_names_devices_by_address() -> None:
    text = (
        "WEIGHT TABLE:\n             0000:22:00.0 0000:0c:00.0\n"
        "0000:22:00.0 0            15\n0000:0C:00.0 15           0\n\n"
        "LINK TYPE TABLE:\n             0000:22:00.0 0000:0c:00.0\n"
        "0000:22:00.0 SELF         XGMI\n0000:0c:00.0 XGMI         SELF\n"
    )
    assert looks_like(text)
    hardware = read_text(text, "amd.txt").nodes[0].hardware

    assert [device.pci for device in hardware.devices] == ["0000:0c:00.0", "0000:22:00.0"]
    assert hardware.matrix == (("X", "XGMI"), ("XGMI", "X"))


def test_a_text_without_gpus_is_refused() -> None:
    with pytest.raises(UsageError, match=r"amd\.txt:1: no GPU in 1 lines"):
        read_text("ROCm System Management Interface", "amd.txt")
