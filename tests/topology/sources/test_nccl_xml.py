"""NCCL and RCCL topology files."""

import pytest

from parctl.errors import UsageError
from parctl.topology.export.nccl_xml import export
from parctl.topology.sources.nccl_tree import cpu_list
from parctl.topology.sources.nccl_xml import looks_like, read_text
from parctl.topology.synthetic import parse_cluster

SWITCHED = """\
<!-- dumped by NCCL -->
<system version="1">
  <cpu numaid="1" affinity="f0" arch="x86_64">
    <pci busid="0000:17:00.0" class="0x060400">
      <pci busid="0000:18:00.0" class="0x060400">
        <pci busid="0000:19:00.0" class="0x030200" vendor="0x10de" device="0x2330">
          <gpu dev="1" sm="90" rank="1">
            <nvlink target="fffffff:ffff:ff" count="18" tclass="0x068000"/>
          </gpu>
        </pci>
        <pci busid="0000:1a:00.0" class="0x020700">
          <nic><net name="mlx5_0" dev="0" speed="400000" port="1"/></nic>
        </pci>
      </pci>
    </pci>
  </cpu>
  <cpu numaid="0" affinity="0f" arch="x86_64">
    <pci busid="0000:05:00.0" class="0x030200" vendor="0x10de" device="0x2330">
      <gpu dev="0" sm="90" rank="0">
        <nvlink target="fffffff:ffff:ff" count="12" tclass="0x068000"/>
      </gpu>
    </pci>
    <nic><net name="eth0" dev="1" speed="10000"/></nic>
  </cpu>
</system>
"""


def test_switched_nvlinks_distances_and_nics_are_read() -> None:
    assert looks_like(SWITCHED)
    topology = read_text(SWITCHED, "node.xml")
    hardware = topology.nodes[0].hardware
    first, second = hardware.devices

    # 12 of 18 links of GPU 0 are up: the pair has the lesser number
    assert hardware.matrix == (("X", "NV12"), ("NV12", "X"))
    assert (first.index, first.pci, first.numa, first.cpu_affinity) == (0, "0000:05:00.0", 0, "0-3")
    assert (second.product, second.sources["product"]) == ("h100", "nccl-xml, PCI id")
    assert [(nic.name, nic.speed_gbit_s, nic.numa) for nic in hardware.nics] == [
        ("mlx5_0", 400.0, 1),
        ("eth0", 10.0, 0),
    ]
    assert hardware.nic_matrix == (("SYS", "?"), ("PIX", "?"))


def test_a_static_file_leaves_links_unknown_and_counts_by_address() -> None:
    text = (
        '<system version="1"><cpu numaid="0"><pci busid="0003:00:00.0" class="0x030200"/></cpu>'
        '<cpu numaid="1"><pci busid="0001:00:00.0" class="0x030200"/></cpu></system>'
    )
    topology = read_text(text, "cloud.xml")
    hardware = topology.nodes[0].hardware

    assert [(device.index, device.numa) for device in hardware.devices] == [(0, 1), (1, 0)]
    assert hardware.matrix == (("X", "?"), ("?", "X"))
    assert "links over NVLink: a static file leaves them to the driver" in topology.unknown


def test_devices_without_a_class_are_not_guessed() -> None:
    text = '<system version="1"><cpu numaid="0"><pci busid="0000:00:16.0"/></cpu></system>'
    topology = read_text(text, "cloud.xml")

    assert topology.nodes[0].hardware.devices == ()
    assert "kind of 1 PCI devices (0000:00:16.0)" in topology.unknown[0]


def test_a_cut_file_is_read_up_to_there() -> None:
    text = SWITCHED.split('<gpu dev="0"')[0]
    topology = read_text(text, "node.xml")

    assert "what follows line 19" in topology.unknown[0]
    assert len(topology.nodes[0].hardware.devices) == 2
    # of the second GPU no link was read yet, which does not mean that it has none
    assert topology.nodes[0].hardware.matrix[0][1] == "?"


def test_a_fused_file_has_one_node_per_host() -> None:
    cpu = '<cpu host_hash="{}" numaid="0"><pci busid="0000:05:00.0" class="0x030200"/></cpu>'
    text = f"<system>{cpu.format('0xa')}{cpu.format('0xb')}</system>"

    assert [node.name for node in read_text(text, "rack.xml").nodes] == ["rack-0", "rack-1"]


@pytest.mark.parametrize("line", ["v100:1x8", "h100:1x8", "mi300x:1x8", "l40s:1x4"])
def test_what_parctl_exports_reads_back(line: str) -> None:
    cluster = parse_cluster(line)
    told = cluster.nodes[0].hardware
    hardware = read_text(export(cluster), "export.xml").nodes[0].hardware

    assert hardware.nvlink_groups == told.nvlink_groups
    assert hardware.nvlink_cliques == told.nvlink_cliques
    assert [device.numa for device in hardware.devices] == [device.numa for device in told.devices]
    assert [nic.speed_gbit_s for nic in hardware.nics] == [nic.speed_gbit_s for nic in told.nics]
    near = [row.index("PIX") for row in hardware.nic_matrix]
    assert near == [row.index("PIX") for row in told.nic_matrix]


def test_a_file_pasted_with_a_shell_around_it_is_read() -> None:
    text = "$ cat topo.xml\n" + SWITCHED + "$ exit\n"

    assert looks_like(text)
    assert read_text(text, "node.xml") == read_text(SWITCHED, "node.xml")


def test_entities_are_not_expanded() -> None:
    text = '<!DOCTYPE system [<!ENTITY a "aaaa">]>\n<system><cpu numaid="0">\n&a;</cpu></system>'

    with pytest.raises(UsageError, match=r"node\.xml:3: not a topology file: undefined entity"):
        read_text(text, "node.xml")


def test_a_text_that_is_no_topology_is_refused_with_the_line() -> None:
    with pytest.raises(UsageError, match=r"node\.xml:2: not a topology file: mismatched tag"):
        read_text("<system>\n</cpu>", "node.xml")


def test_cpu_masks_become_lists() -> None:
    assert cpu_list("000000ff,ffff0000,00ffffff") == "0-23,48-71"
    assert cpu_list("") is None
    assert cpu_list("0") is None


def test_links_that_end_at_their_own_gpu_tell_no_peer() -> None:
    gpus = "".join(
        f'<cpu numaid="{i}"><pci busid="000{i}:00:00.0" class="0x030200"><gpu dev="{i}">'
        f'<nvlink target="000{i}:00:00.0" count="12" tclass="0x030200"/></gpu></pci></cpu>'
        for i in range(2)
    )
    topology = read_text(f'<system version="1">{gpus}</system>', "vm.xml")

    assert topology.nodes[0].hardware.matrix == (("X", "?"), ("?", "X"))
    assert "gpu 0: its links end at its own address, which tells no peer" in topology.warnings
