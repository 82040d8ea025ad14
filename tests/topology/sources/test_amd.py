"""AMD GPUs through a stand-in for the amdsmi package, found on the path as the real one is."""

import os
import subprocess
import sys
from pathlib import Path

BINDING = """
class AmdSmiException(Exception): pass
class AmdSmiMemoryType: VRAM = 0
def amdsmi_init(): pass
def amdsmi_shut_down(): pass
def amdsmi_get_processor_handles(): return [0, 1, 2, 3]
def amdsmi_get_gpu_asic_info(h): return {"market_name": "AMD Instinct MI300X OAM"}
def amdsmi_get_gpu_device_uuid(h): return f"uuid-{h}"
def amdsmi_get_gpu_device_bdf(h): return f"0000:{h}1:00.0"
def amdsmi_get_gpu_memory_total(h, kind): return 205822885888
def amdsmi_topo_get_numa_node_number(h): return h // 2
def amdsmi_get_gpu_total_ecc_count(h): return {"uncorrectable_count": 3 if h == 2 else 0}
def amdsmi_get_power_cap_info(h): raise AmdSmiException("not supported")
def amdsmi_topo_get_link_type(a, b): return {"hops": 1, "type": 1 if 3 in (a, b) else 2}
"""
PROGRAM = """
from parctl.topology.discover import discover
t = discover(None)
hardware = t.nodes[0].hardware
for row in hardware.matrix: print(*row)
for d in hardware.devices: print(d.index, d.product, d.uuid, d.pci, d.numa, d.power_limit_w)
print(t.warnings)
"""


def discover(folder: Path, binding: str = BINDING, **environment: str) -> list[str]:
    (folder / "amdsmi.py").write_text(binding)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_xgmi_is_told_from_pcie(tmp_path: Path) -> None:
    lines = discover(tmp_path)

    # GPU 3 is reached by PCIe, and its address is not in this machine's sysfs
    assert lines[:4] == ["X XGMI XGMI ?", "XGMI X XGMI ?", "XGMI XGMI X ?", "? ? ? X"]
    assert lines[4] == "0 mi300x uuid-0 0000:01:00.0 0 None"
    assert lines[7] == "3 mi300x uuid-3 0000:31:00.0 1 None"
    assert lines[8] == "('gpu 2: 3 uncorrected ECC errors',)"


def test_masks_are_applied_one_after_the_other(tmp_path: Path) -> None:
    lines = discover(tmp_path, ROCR_VISIBLE_DEVICES="1,2,3", HIP_VISIBLE_DEVICES="0,2")

    assert lines[0:2] == ["X ?", "? X"]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "3"]


def test_a_binding_without_its_library_leaves_the_cpu(tmp_path: Path) -> None:
    lines = discover(tmp_path, BINDING + "raise OSError('libamd_smi.so: not found')")

    assert lines[0].startswith("X HOST") or lines[0] == "X"
