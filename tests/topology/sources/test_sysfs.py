"""NICs and PCIe distances from a sysfs tree that the test builds."""

from pathlib import Path

import pytest

from parctl.topology.model import Device, Hardware
from parctl.topology.sources.local import with_nics
from parctl.topology.sources.sysfs import pci_code, pci_numa_node, read_nics

# host bridge / root port / switch port up / switch port down / device
GPU = "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0"
NEAR = "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0"
SECOND_SWITCH = (
    "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:1a:00.0/0000:1b:00.0/0000:1c:00.0"
)
OTHER_PORT = "pci0000:15/0000:15:05.0/0000:20:00.0"
OTHER_BRIDGE = "pci0000:37/0000:37:01.0/0000:38:00.0"
OTHER_SOCKET = "pci0000:97/0000:97:01.0/0000:98:00.0"


def address(path: str) -> str:
    return path.rpartition("/")[2]


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    links = tmp_path / "bus/pci/devices"
    links.mkdir(parents=True)
    for path in (GPU, NEAR, SECOND_SWITCH, OTHER_PORT, OTHER_BRIDGE, OTHER_SOCKET):
        folder = tmp_path / "devices" / path
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text("1\n" if path == OTHER_SOCKET else "0\n")
        (links / address(path)).symlink_to(folder)
    return tmp_path


def add_rdma(
    sysfs: Path, name: str, path: str, state: str = "4: ACTIVE", rate: str = "400 Gb/sec (4X NDR)"
) -> None:
    folder = sysfs / "class/infiniband" / name
    port = folder / "ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "rate").write_text(f"{rate}\n")
    (folder / "device").symlink_to(sysfs / "devices" / path)


def add_interface(sysfs: Path, name: str, device: Path | None, speed: str = "100000") -> None:
    folder = sysfs / "class/net" / name
    folder.mkdir(parents=True)
    (folder / "speed").write_text(f"{speed}\n")
    (folder / "operstate").write_text("up\n")
    if device is not None:
        (folder / "device").symlink_to(device)


@pytest.mark.parametrize(
    ("other", "code"),
    [
        (NEAR, "PIX"),
        (SECOND_SWITCH, "PXB"),
        (OTHER_PORT, "PHB"),
        (OTHER_BRIDGE, "NODE"),
        (OTHER_SOCKET, "SYS"),
    ],
)
def test_distance_is_what_two_paths_share(sysfs: Path, other: str, code: str) -> None:
    assert pci_code(sysfs, address(GPU), address(other)) == code
    assert pci_code(sysfs, address(other), address(GPU).upper()) == code


def test_a_device_that_is_not_there_is_unknown(sysfs: Path) -> None:
    assert pci_code(sysfs, address(GPU), "0000:ff:00.0") == "?"
    assert pci_code(sysfs, address(GPU), None) == "?"
    assert pci_numa_node(sysfs, "0000:ff:00.0") is None


def test_host_bridges_without_a_numa_node_are_not_placed(sysfs: Path) -> None:
    (sysfs / "bus/pci/devices" / address(OTHER_BRIDGE) / "numa_node").write_text("-1\n")

    assert pci_code(sysfs, address(GPU), address(OTHER_BRIDGE)) == "?"


def test_rdma_devices_come_first_and_count_once(sysfs: Path) -> None:
    add_rdma(sysfs, "mlx5_0", NEAR)
    add_rdma(sysfs, "mlx5_9", OTHER_PORT, state="1: DOWN")
    add_interface(sysfs, "ib0", sysfs / "devices" / NEAR)
    add_interface(sysfs, "eth0", sysfs / "devices" / OTHER_SOCKET)
    add_interface(sysfs, "lo", None)
    nics = read_nics(sysfs)

    assert [(nic.name, nic.speed_gbit_s, nic.numa, nic.pci) for nic in nics] == [
        ("mlx5_0", 400.0, 0, "0000:19:00.0"),
        ("eth0", 100.0, 1, "0000:98:00.0"),
    ]
    assert nics[0].sources["speed_gbit_s"] == "sysfs"


def test_a_virtio_card_is_a_card_and_a_usb_one_is_not(sysfs: Path) -> None:
    virtio = sysfs / "devices" / OTHER_PORT / "virtio2"
    usb = sysfs / "devices" / OTHER_BRIDGE / "usb1/1-1"
    for folder in (virtio, usb):
        folder.mkdir(parents=True)
    add_interface(sysfs, "eth0", virtio, speed="-1")
    add_interface(sysfs, "usb0", usb)

    assert [(nic.name, nic.speed_gbit_s, nic.pci) for nic in read_nics(sysfs)] == [
        ("eth0", None, "0000:20:00.0")
    ]


def test_a_machine_without_sysfs_has_no_nics(tmp_path: Path) -> None:
    assert read_nics(tmp_path) == ()


def test_gpus_get_their_distance_to_every_nic(sysfs: Path) -> None:
    add_rdma(sysfs, "mlx5_0", NEAR)
    add_rdma(sysfs, "mlx5_1", OTHER_SOCKET)
    device = Device(index=0, product=None, uuid=None, memory_bytes=None, numa=0, pci=address(GPU))
    bare = Hardware(
        kind="gpu",
        devices=(device,),
        matrix=(("X",),),
        nics=(),
        nic_matrix=(),
        num_cpus=None,
        memory_bytes=None,
    )
    found = with_nics(bare, sysfs)

    assert found.nic_matrix == (("PIX", "SYS"),)
    assert found.sources == {"nics": "sysfs", "nic_matrix": "sysfs"}
