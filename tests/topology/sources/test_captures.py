"""Real captures read right, and never more than they say however they are cut or damaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parctl.errors import ParctlError
from parctl.topology.model import Hardware
from parctl.topology.sources import nccl_xml, rocm, smi

ROOT = Path(__file__).resolve().parents[3]
CAPTURES = ROOT.parent / "shared/data/topology"
KINDS = {"smi": smi, "amd": rocm, "nccl": nccl_xml}


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def folder(kind: str = "") -> Path:
    if not (CAPTURES / kind).is_dir():
        pytest.skip(f"the captures ({CAPTURES}) are not on this machine")
    return CAPTURES / kind


def test_every_capture_is_read_right() -> None:
    table = run("topology_captures.py", str(folder()))

    assert table.splitlines()[-1].split()[0] == "all"


def test_two_thousand_mutated_captures_end_in_a_topology_or_an_error() -> None:
    captures = [str(CAPTURES)] if CAPTURES.is_dir() else []

    assert "2,000 mutations" in run("topology_fuzz.py", *captures, "--count", "2000", "--seed", "4")


def captures_of(kind: str) -> list[Path]:
    suffix = ".xml" if kind == "nccl" else ".txt"
    return sorted(folder(kind).glob(f"*{suffix}"))


def contradictions(part: Hardware, whole: Hardware, name: str) -> list[str]:
    """Facts of a cut capture that the whole capture does not confirm."""
    # devices of an XML file are counted anew when some are cut off, their addresses stay
    position = {device.pci or device.index: i for i, device in enumerate(whole.devices)}
    places = [position.get(device.pci or device.index) for device in part.devices]
    wrong = [
        f"{name}: device {device.index}"
        for device, at in zip(part.devices, places, strict=True)
        if at is None
    ]
    for i, (device, at) in enumerate(zip(part.devices, places, strict=True)):
        if at is None:
            continue
        for fact in ("numa", "cpu_affinity"):
            found = getattr(device, fact)
            if found not in (None, getattr(whole.devices[at], fact)):
                wrong.append(f"{name}: {fact} of {device.index} is {found}")
        for j, other in enumerate(places):
            if other is not None and part.matrix[i][j] not in ("?", whole.matrix[at][other]):
                wrong.append(f"{name}: link {i}-{j} is {part.matrix[i][j]}")
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_capture_never_says_what_the_whole_one_denies(kind: str) -> None:
    wrong, num_read = [], 0
    for position, path in enumerate(captures_of(kind)):
        text = path.read_text()
        whole = KINDS[kind].read_text(text, path.name).nodes[0].hardware
        for end in range(1 + position % 13, len(text), 13):
            try:
                topology = KINDS[kind].read_text(text[:end], path.name)
            except ParctlError:
                continue  # too little was left
            num_read += 1
            part = topology.nodes[0].hardware
            wrong += contradictions(part, whole, f"{path.name}[:{end}]")
            if len(part.devices) < len(whole.devices) or any("?" in row for row in part.matrix):
                assert topology.unknown
    assert wrong == []
    assert num_read > 50
