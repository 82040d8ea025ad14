"""A reading is a process of its own: what it says, and what is said when it says nothing."""

import os
import sys
from pathlib import Path

import pytest

from parctl.topology.discovery.reading import read_node

NVML = Path(__file__).resolve().parents[4] / "shared" / "data" / "nvml"
needs_nvml = pytest.mark.skipif(not NVML.is_dir(), reason="no fake NVML in ../shared/data/nvml")


@needs_nvml
def test_a_broken_gpu_is_read_with_its_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(NVML))
    monkeypatch.setenv("FAKE_NVML", str(NVML / "b200x8_gpu2down.spec"))

    found = read_node()

    assert found.failure is None
    assert found.node is not None and len(found.node["gpus"]) == 8
    assert [(fault.kind, fault.message) for fault in found.faults] == [
        ("dead-nvlink", "gpu 2: no NVLink, while {0-1,3-7} are joined"),
        ("ecc", "gpu 2: 7 uncorrected ECC errors"),
    ]


@needs_nvml
def test_a_fault_after_the_first_reading_is_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "node.spec"
    spec.write_text((NVML / "h100x8.spec").read_text())
    monkeypatch.setenv("LD_LIBRARY_PATH", str(NVML))
    monkeypatch.setenv("FAKE_NVML", str(spec))
    assert read_node().faults == ()

    with spec.open("a") as file:
        file.write("ecc 3 2\n")

    assert [fault.message for fault in read_node().faults] == ["gpu 3: 2 uncorrected ECC errors"]


def test_a_machine_without_gpus_is_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")

    found = read_node()

    assert (found.node, found.failure, found.faults) == (None, None, ())


def test_a_driver_that_hangs_costs_one_reading() -> None:
    assert read_node(0.001).failure == "the driver did not answer within 0.001 s"


def test_a_reader_that_dies_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'Fatal: the library is of another world' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    assert read_node().failure == "Fatal: the library is of another world"


def test_half_a_reading_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nprintf '{\"node\": {'\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    failure = read_node().failure

    assert failure is not None and failure.startswith("the reading is not whole: ")
