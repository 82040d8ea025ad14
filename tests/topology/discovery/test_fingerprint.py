"""What makes a node be read again before its time: names and states that the kernel shows."""

from pathlib import Path

import pytest

from parctl.topology.discovery.fingerprint import fingerprint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("dev", "sys/class/net/eth0/device", "sys/bus/pci/drivers/nvidia/0000:1b:00.0"):
        (tmp_path / folder).mkdir(parents=True)
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE")
    (tmp_path / "sys/class/net/eth0/operstate").write_text("up")
    return tmp_path


def test_nothing_changed_is_no_change(root: Path) -> None:
    assert fingerprint(root) == fingerprint(root)


def test_a_driver_that_is_loaded_is_a_change(root: Path) -> None:
    before = fingerprint(root)
    (root / "dev/nvidia0").touch()

    assert fingerprint(root) != before


def test_a_gpu_that_falls_off_the_bus_is_a_change(root: Path) -> None:
    before = fingerprint(root)
    (root / "sys/bus/pci/drivers/nvidia/0000:1b:00.0").rmdir()

    assert fingerprint(root) != before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN"),
        ("sys/class/net/eth0/operstate", "down"),
    ],
)
def test_a_card_that_goes_down_is_a_change(root: Path, file: str, text: str) -> None:
    before = fingerprint(root)
    (root / file).write_text(text)

    assert fingerprint(root) != before


def test_interfaces_of_pods_come_and_go_unseen(root: Path) -> None:
    before = fingerprint(root)
    (root / "sys/class/net/veth1234").mkdir()

    assert fingerprint(root) == before


def test_an_empty_machine_has_one_too(tmp_path: Path) -> None:
    assert fingerprint(tmp_path) == fingerprint(tmp_path)
