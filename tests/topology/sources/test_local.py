"""This machine: CPU slots from the operating system, GPUs through (a fake) NVML."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parctl.errors import UsageError
from parctl.topology.discover import discover
from parctl.topology.sources.local import parse_cpu_list

FAKE_NVML = Path(__file__).resolve().parents[4] / "shared/data/nvml"


def discover_with(spec: str, num_devices: int | None = None, **environment: str) -> dict[str, Any]:
    """Discover in a fresh process that finds the fake driver library first."""
    if not (FAKE_NVML / "libnvidia-ml.so.1").exists():
        pytest.skip("the fake NVML library is not on this machine")
    code = (
        "import json, sys\n"
        "from parctl.topology.discover import discover\n"
        "from parctl.topology.store import topology_to_json\n"
        f"print(json.dumps(topology_to_json(discover(None, num_devices={num_devices}))))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(FAKE_NVML),
            "FAKE_NVML": str(spec) if "/" in spec else str(FAKE_NVML / f"{spec}.spec"),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def test_cpu_devices_are_as_many_as_asked_for() -> None:
    machine = discover(None, num_devices=3)
    hardware = machine.nodes[0].hardware

    assert hardware.kind == "cpu"
    assert [device.index for device in hardware.devices] == [0, 1, 2]
    assert hardware.matrix == (("X", "HOST", "HOST"), ("HOST", "X", "HOST"), ("HOST", "HOST", "X"))
    assert machine.source == "local"


def test_one_cpu_device_per_core_unless_asked() -> None:
    assert discover("local").num_devices == len(os.sched_getaffinity(0))


def test_more_cpu_devices_than_cores_is_said() -> None:
    cores = len(os.sched_getaffinity(0))

    assert discover(None, num_devices=cores).warnings == ()
    assert discover(None, num_devices=cores + 1).warnings == (
        f"{cores + 1} CPU devices share {cores} cores: slow, but correct",
    )


def test_a_number_of_devices_is_for_this_machine_only() -> None:
    with pytest.raises(UsageError, match=r"for this machine, not for `h100:1x8`"):
        discover("h100:1x8", num_devices=4)


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_absurd_numbers_of_cpu_devices_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"{count} CPU devices asked for, expected 1 to 1024"):
        discover(None, num_devices=count)


def test_kernel_cpu_lists() -> None:
    assert parse_cpu_list("0-2,8\n") == [0, 1, 2, 8]
    assert parse_cpu_list("\n") == []


def test_h100_through_nvml() -> None:
    data = discover_with("h100x8")
    node = data["nodes"][0]

    assert node["nvlink_cliques"] == [{"gpus": [0, 1, 2, 3, 4, 5, 6, 7], "links": 18}]
    assert node["numa_groups"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert node["domain"] is None
    assert node["gpus"][7] == {
        "index": 7,
        "product": "h100",
        "uuid": "GPU-00000000-0000-0000-0000-000000000007",
        "memory_bytes": 85520809984,
        "numa": 1,
        "pci": "0000:8b:00.0",
        "cpu_affinity": "56-111",
        "mig": False,
        "ecc_errors": 0,
        "remapped_rows": 0,
        "power_limit_w": 700.0,
        "faults": [],
        "sources": dict.fromkeys(
            [
                "product",
                "uuid",
                "memory_bytes",
                "numa",
                "pci",
                "cpu_affinity",
                "mig",
                "ecc_errors",
                "remapped_rows",
                "power_limit_w",
            ],
            "nvml",
        ),
    }


def test_a_dgx_1v_through_nvml_shows_direct_links() -> None:
    node = discover_with("v100x8")["nodes"][0]

    assert node["links"][0] == "X NV1 NV1 NV2 NV2 SYS SYS SYS"
    assert [clique["gpus"] for clique in node["nvlink_cliques"]] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_gpu_with_dead_nvlink_is_warned_about_and_in_no_clique() -> None:
    data = discover_with("b200x8_gpu2down")

    assert data["nodes"][0]["nvlink_cliques"] == [{"gpus": [0, 1, 3, 4, 5, 6, 7], "links": 18}]
    assert data["nodes"][0]["links"][2] == "NODE NODE X NODE SYS SYS SYS SYS"
    assert [gpu["ecc_errors"] for gpu in data["nodes"][0]["gpus"]] == [0, 0, 7, 0, 0, 0, 0, 0]
    assert data["warnings"] == [
        "gpu 2: all 18 NVLinks are down; it is reached by PCIe only",
        "gpu 2: 7 uncorrected ECC errors since the driver started",
    ]


def test_a_gb200_tray_names_its_nvlink_domain() -> None:
    node = discover_with("gb200x4")["nodes"][0]

    assert node["domain"] == "aabbccdd-eeff-0011-2233-445566778899.32766"
    assert node["node_sources"] == {"domain": "nvml"}


def test_a_lost_gpu_is_a_fault_not_a_crash(tmp_path: Path) -> None:
    if not FAKE_NVML.exists():
        pytest.skip("the fake NVML library is not on this machine")
    spec = tmp_path / "lost.spec"
    spec.write_text((FAKE_NVML / "h100x8.spec").read_text() + "lost 5\n")

    data = discover_with(str(spec))

    assert data["nodes"][0]["gpus"][5]["faults"] == ["NVML: GPU is lost"]
    assert data["warnings"] == ["gpu 5 is not usable: GPU is lost"]
    assert data["nodes"][0]["nvlink_cliques"][0]["gpus"] == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("mask", "indexes"),
    [
        ("2,3", [2, 3]),
        ("GPU-00000000-0000-0000-0000-000000000004", [4]),
        ("1,99,2", [1]),  # CUDA stops at the first it does not know
    ],
)
def test_cuda_visible_devices_is_honoured(mask: str, indexes: list[int]) -> None:
    node = discover_with("h100x8", CUDA_VISIBLE_DEVICES=mask)["nodes"][0]

    assert [gpu["index"] for gpu in node["gpus"]] == indexes


def test_hidden_gpus_leave_the_cpu() -> None:
    assert discover_with("h100x8", CUDA_VISIBLE_DEVICES="")["nodes"][0]["kind"] == "cpu"


def test_fewer_gpus_than_the_machine_has() -> None:
    node = discover_with("h100x8", num_devices=2)["nodes"][0]

    assert node["links"] == ["X NV18", "NV18 X"]
