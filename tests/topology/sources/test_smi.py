"""`nvidia-smi topo -m` in every form that terminals, mails, logs and web pages give it."""

import re
from collections.abc import Callable

import pytest

from parctl.errors import UsageError
from parctl.topology.model import Hardware
from parctl.topology.sources.smi import looks_like, read_text

HEADER = (
    "\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tGPU5\tGPU6\tGPU7\tmlx5_0"
    "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
)
ROWS = """\
GPU0	 X 	NV1	NV1	NV2	NV2	SYS	SYS	SYS	NODE	0-19,40-59	0		N/A
GPU1	NV1	 X 	NV2	NV1	SYS	NV2	SYS	SYS	NODE	0-19,40-59	0		N/A
GPU2	NV1	NV2	 X 	NV2	SYS	SYS	NV1	SYS	PIX	0-19,40-59	0		N/A
GPU3	NV2	NV1	NV2	 X 	SYS	SYS	SYS	NV1	PIX	0-19,40-59	0		N/A
GPU4	NV2	SYS	SYS	SYS	 X 	NV1	NV1	NV2	SYS	20-39,60-79	1		N/A
GPU5	SYS	NV2	SYS	SYS	NV1	 X 	NV2	NV1	SYS	20-39,60-79	1		N/A
GPU6	SYS	SYS	NV1	SYS	NV1	NV2	 X 	NV2	SYS	20-39,60-79	1		N/A
GPU7	SYS	SYS	SYS	NV1	NV2	NV1	NV2	 X 	SYS	20-39,60-79	1		N/A
mlx5_0	NODE	NODE	PIX	PIX	SYS	SYS	SYS	SYS	 X 				

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""
DGX_1V = HEADER + ROWS
PAIR = (
    "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\n"
    "GPU0\t X \tNV12\t0-23\t0\nGPU1\tNV12\t X \t24-47\t1\n"
)


def hardware_of(text: str) -> Hardware:
    topology = read_text(text, "node.txt")
    assert len(topology.nodes) == 1
    return topology.nodes[0].hardware


def columns(text: str, width: int) -> str:
    return "\n".join(line.expandtabs(width) for line in text.split("\n"))


def wrapped(text: str, width: int) -> str:
    """What a terminal of that width makes of it when the lines are copied one by one."""
    lines = [line.expandtabs(8) for line in text.split("\n")]
    return "\n".join(
        "\n".join(line[i : i + width] for i in range(0, len(line), width)) if line else ""
        for line in lines
    )


DAMAGE: dict[str, Callable[[str], str]] = {
    "as printed": lambda text: text,
    "8 columns": lambda text: columns(text, 8),
    "escape sequences": lambda text: re.sub(
        r"^(.*)$", "\x1b[4m\\1\x1b[0m", text, count=1, flags=re.M
    ),
    "no tab before the header": lambda text: text.lstrip("\t"),
    "web page": lambda text: text.replace("\n", "<br>"),
    "html": lambda text: "<pre>" + text.replace("\t", "&nbsp;\t") + "</pre>",
    "json string": lambda text: text.replace("\t", "\\t").replace("\n", "\\n"),
    "windows": lambda text: text.replace("\n", "\r\n"),
    "indented": lambda text: "\n".join("    " + line for line in text.split("\n")),
    "quoted": lambda text: "\n".join("> " + line for line in text.split("\n")),
    "prompt": lambda text: "root@gpu-7:~# nvidia-smi topo -m\n" + text + "root@gpu-7:~# exit\n",
    "pod log": lambda text: "\n".join(
        "2026-01-02T03:04:05.6Z " + line for line in text.split("\n")
    ),
    "mpirun": lambda text: "\n".join("[1,0]<stdout>: " + line for line in text.split("\n")),
    "markdown": lambda text: "```\n" + text + "```\n",
    "comments": lambda text: text.replace("N/A\n", "N/A  # checked\n"),
    "no legend": lambda text: text.split("\n\n")[0] + "\n",
    "no newline at the end": lambda text: text.split("\n\n")[0].rstrip("\t"),
    "wrapped at 80": lambda text: wrapped(text, 80),
    "wrapped at 100": lambda text: wrapped(text, 100),
    "second table": lambda text: text + "\n\tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_dgx_1v_reads_alike_however_it_was_copied(damage: str) -> None:
    text = DAMAGE[damage](DGX_1V)

    assert looks_like(text)
    hardware = hardware_of(text)
    assert [" ".join(row) for row in hardware.matrix] == [
        "X NV1 NV1 NV2 NV2 SYS SYS SYS",
        "NV1 X NV2 NV1 SYS NV2 SYS SYS",
        "NV1 NV2 X NV2 SYS SYS NV1 SYS",
        "NV2 NV1 NV2 X SYS SYS SYS NV1",
        "NV2 SYS SYS SYS X NV1 NV1 NV2",
        "SYS NV2 SYS SYS NV1 X NV2 NV1",
        "SYS SYS NV1 SYS NV1 NV2 X NV2",
        "SYS SYS SYS NV1 NV2 NV1 NV2 X",
    ]
    assert hardware.nvlink_cliques == (((0, 1, 2, 3), 1), ((4, 5, 6, 7), 1))
    assert [device.numa for device in hardware.devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert hardware.devices[4].cpu_affinity == "20-39,60-79"
    assert " ".join(row[0] for row in hardware.nic_matrix) == "NODE NODE PIX PIX SYS SYS SYS SYS"
    assert [nic.name for nic in hardware.nics] == ["mlx5_0"]


def test_facts_name_their_source_and_the_rest_is_unknown() -> None:
    topology = read_text(PAIR, "captures/pair.txt")
    device = topology.nodes[0].hardware.devices[1]

    assert topology.nodes[0].name == "pair"
    assert (device.index, device.numa, device.cpu_affinity) == (1, 1, "24-47")
    assert device.sources == {"numa": "nvidia-smi topo", "cpu_affinity": "nvidia-smi topo"}
    assert topology.unknown == (
        "NVLink domains beyond this machine: `topo -m` does not show them",
        "product of GPU 0-1",
    )


def test_joined_cells_come_apart() -> None:
    text = (
        "\tGPU0\tGPU1\tNIC0\tNIC1NIC2\tCPU Affinity\tNUMA Affinity\n"
        "GPU0\t X \tNV18\tPIX\tNODENODE\t0-7\t0\n"
        "GPU1\tNV18\t X \tNODE\tPIXSYS8-15\t1\n"
        "NIC0\tPIX\tNODE\t X \tNODE\tNODE\n"
    )
    hardware = hardware_of(text)

    assert [nic.name for nic in hardware.nics] == ["NIC0", "NIC1", "NIC2"]
    assert hardware.nic_matrix == (("PIX", "NODE", "NODE"), ("NODE", "PIX", "SYS"))
    assert hardware.devices[1].cpu_affinity == "8-15"


def test_the_nic_legend_gives_the_names() -> None:
    text = (
        "\tGPU0\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\nGPU0\t X \tPHB\t0-251\t0\t\tN/A\n"
        "NIC0\tPHB\t X \n\nNIC Legend:\n\n  NIC0: mlx5_bond_0\n"
    )

    assert [nic.name for nic in hardware_of(text).nics] == ["mlx5_bond_0"]


def test_topo_mp_tells_nothing_about_nvlink() -> None:
    text = (
        "$ nvidia-smi topo -mp\n\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\n"
        "GPU0\t X \tNODE\tPIX\t0-7\t0\nGPU1\tNODE\t X \tSYS\t0-7\t0\nNIC0\tPIX\tSYS\t X \n"
    )
    topology = read_text(text, "node.txt")
    hardware = topology.nodes[0].hardware

    assert hardware.matrix == (("X", "?"), ("?", "X"))
    assert hardware.nic_matrix == (("PIX",), ("SYS",))
    assert topology.unknown[0].startswith("links between GPUs: `topo -mp`")


def test_topo_p2p_is_not_mistaken_for_links() -> None:
    text = "$ nvidia-smi topo -p2p r\n\tGPU0\tGPU1\n GPU0\tX\tOK\n GPU1\tOK\tX\n"
    topology = read_text(text, "node.txt")

    assert topology.nodes[0].hardware.matrix == (("X", "?"), ("?", "X"))
    assert "`topo -p2p` says who may reach whom" in topology.unknown[0]


def test_the_last_cell_of_a_cut_text_is_not_believed() -> None:
    # `NV1` may have been `NV18`; the other end of the link is not in the text
    text = "\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV18\tNV1"
    topology = read_text(text, "node.txt")

    assert topology.nodes[0].hardware.matrix[0] == ("X", "NV18", "?")
    assert "row of GPU0: cut off at line 2" in topology.unknown
    assert "rows of GPU 1-2: not in the text" in topology.unknown


def test_a_cut_row_is_completed_from_the_other_rows() -> None:
    text = DGX_1V.split("\nGPU7\t")[0] + "\nGPU7\tSYS\tS"
    hardware = hardware_of(text)

    assert hardware.matrix[7] == ("SYS", "SYS", "SYS", "NV1", "NV2", "NV1", "NV2", "X")
    assert hardware.devices[7].numa is None


def test_a_row_that_lost_a_cell_is_not_read_and_said() -> None:
    text = (
        "\tGPU0\tGPU1\tGPU2\n"
        "GPU0\t X \tNV4\tSYS\n"
        "GPU1\t X \tSYS\n"  # its first cell is gone
        "GPU2\tSYS\tSYS\t X \n"
    )
    topology = read_text(text, "node.txt")

    assert topology.nodes[0].hardware.matrix[1] == ("NV4", "X", "SYS")
    assert topology.warnings == (
        "row of GPU1 (line 3): cells are not below their columns, not read",
    )


def test_ends_that_disagree_are_kept_and_said() -> None:
    text = "\tGPU0\tGPU1\nGPU0\t X \tNV4\nGPU1\tNODE\t X \n"
    topology = read_text(text, "node.txt")

    assert topology.nodes[0].hardware.matrix == (("X", "NV4"), ("NODE", "X"))
    assert topology.warnings == ("GPU0 and GPU1 disagree about their link: NV4 and NODE",)


def test_empty_affinity_cells_keep_their_place() -> None:
    header = "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    text = header + "GPU0\t X \tNV4\t\t1\t\tN/A\nGPU1\tNV4\t X \t\t\t\tN/A\n"
    for form in (text, columns(text, 8)):
        devices = hardware_of(form).devices
        assert [(device.cpu_affinity, device.numa) for device in devices] == [
            (None, 1),
            (None, None),
        ]


def test_without_a_numa_column_equal_cpu_lists_make_a_group() -> None:
    text = "\tGPU0\tGPU1\tGPU2\tCPU Affinity\nGPU0\t X \tSOC\tSOC\t6-11\n"
    text += "GPU1\tSOC\t X \tPHB\t0-5\nGPU2\tSOC\tPHB\t X \t0-5\n"
    devices = hardware_of(text).devices

    assert [device.numa for device in devices] == [1, 0, 0]
    assert devices[0].sources["numa"] == "nvidia-smi topo, CPU affinity"
    assert hardware_of(text).matrix[0] == ("X", "SYS", "SYS")


def test_a_numa_range_is_said_to_be_blind() -> None:
    text = PAIR.replace("\t0\n", "\t0-3\n").replace("\t1\n", "\t0-3\n")
    topology = read_text(text, "node.txt")

    assert [device.numa for device in topology.nodes[0].hardware.devices] == [0, 0]
    assert "NUMA affinity of GPU 0-1 is a range (0-3)" in topology.warnings[0]


def test_without_a_header_nvlinks_tell_gpus_from_nics() -> None:
    rows = "\n".join(ROWS.split("\n")[:8])
    topology = read_text(rows + "\n", "node.txt")

    assert len(topology.nodes[0].hardware.devices) == 8
    assert len(topology.nodes[0].hardware.nics) == 1
    assert "names of 1 NICs" in topology.unknown


def test_without_a_header_columns_that_could_be_either_are_left_out() -> None:
    text = "GPU0\t X \tPIX\tSYS\tSYS\nGPU1\tPIX\t X \tSYS\tSYS\n"
    topology = read_text(text, "node.txt")

    assert topology.nodes[0].hardware.matrix == (("X", "PIX"), ("PIX", "X"))
    assert topology.nodes[0].hardware.nics == ()
    assert "kind of 2 columns, GPUs or NICs: no row tells" in topology.unknown


def test_lines_with_host_names_are_several_machines() -> None:
    text = "".join(
        f"{host}: {line}\n" for line in PAIR.splitlines() for host in ("node-10", "node-2")
    )
    topology = read_text(text, "pdsh.txt")

    assert [node.name for node in topology.nodes] == ["node-2", "node-10"]
    assert all(node.hardware.matrix == (("X", "NV12"), ("NV12", "X")) for node in topology.nodes)


def test_a_list_of_gpus_in_the_same_report_names_the_products() -> None:
    report = "GPU 0,1: NVIDIA A100-SXM4-80GB\nCUDA_HOME: /usr/local/cuda\nGPU Topology:\n" + PAIR
    devices = hardware_of(report).devices

    assert [device.product for device in devices] == ["a100-80g", "a100-80g"]
    assert devices[0].sources["product"] == "nvidia-smi -L"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no GPUs here", "node.txt:1: no row such as `GPU0  X  NV18 ...` in 1 lines"),
        ("\tGPU0\tGPU1\tGPU1\nGPU0\t X \tNV4\tNV4\n", "node.txt:1: the header names GPU1 twice"),
        ("GPU7\tNV4\t X \n", "node.txt:1: rows up to GPU7, but 2 columns and no header"),
    ],
)
def test_what_is_no_table_is_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_text(text, "node.txt")
    assert caught.value.message == message
    assert caught.value.hint


def test_many_ends_that_disagree_are_counted() -> None:
    size = 6
    header = "".join(f"\tGPU{i}" for i in range(size))
    rows = [
        f"GPU{i}\t" + "\t".join("X" if i == j else "PIX" if i < j else "SYS" for j in range(size))
        for i in range(size)
    ]

    # 6 x 5 / 2 pairs, each seen nearer by its lower GPU
    assert read_text("\n".join([header, *rows, ""]), "node.txt").warnings == (
        "GPU0 and GPU1 disagree about their link: PIX and SYS",
        "14 more pairs do not agree about their links either",
    )


def test_a_code_that_nobody_knows_is_not_taken_for_an_affinity() -> None:
    text = (
        "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\n"
        "GPU0\t X \tNVB\t0-31\t0\nGPU1\tNVB\t X \t0-31\t0\n"
    )
    hardware = read_text(text, "node.txt").nodes[0].hardware

    assert hardware.matrix == (("X", "?"), ("?", "X"))
    assert [(device.numa, device.cpu_affinity) for device in hardware.devices] == [(None, None)] * 2


def test_a_column_called_numa_is_the_numa_node() -> None:
    text = (
        "      GPU0  GPU1  CPU Affinity  NUMA\n"
        "GPU0   X    NV18  0-51   0\nGPU1  NV18   X    52-103 1\n"
    )

    assert [d.numa for d in read_text(text, "node.txt").nodes[0].hardware.devices] == [0, 1]


def test_memory_nodes_of_grace_gpus_are_no_sign_of_a_container() -> None:
    text = (
        "\tGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
        "GPU0\t X \tNV18\t0-71\t0,2-17\t\tN/A\nGPU1\tNV18\t X \t72-143\t1,18-33\t\tN/A\n"
    )
    topology = read_text(text, "tray.txt")

    assert [device.numa for device in topology.nodes[0].hardware.devices] == [0, 1]
    assert topology.warnings == ()


def test_a_table_without_a_column_of_a_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match="name no GPU"):
        read_text("GPU7\nNCPU \nGPU4\tNV8", "cut.txt")
