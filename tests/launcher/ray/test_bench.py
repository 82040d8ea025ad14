"""`parctl bench` on a Ray cluster: the groups of the plan are measured where Ray places them."""

import json
from pathlib import Path

import pytest
from tests.launcher.ray.cluster import RayCluster

from parctl.cli.main import run


def test_groups_across_nodes_are_measured_as_network(
    cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ray.json"
    require = "placement.require=[pair-0, pair-1]"
    words = ["bench", "tiny-llama: TP2+DP2", "-b", "ray", "--max-mb", "0.01", "--set", require]
    assert run([*words, "--calibration", str(path)]) == 0, capsys.readouterr().err

    document = json.loads(path.read_text())
    measured = {(line["axis"], line["size"]) for line in document["measurements"] if "axis" in line}
    assert measured == {("tp", 2), ("dp", 2)}
    assert document["links"]["network"]["samples"] == 5  # one size of five collectives
    assert document["products"]["fp32"]["flops"] > 0
