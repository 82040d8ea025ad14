"""`parctl bench` on this machine: measured on the plan's groups, kept, and used by the planner."""

import json
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.errors import UsageError
from parctl.launcher.benchmark import bench_plan, measurements, product_shapes
from parctl.launcher.calibrations import calibration_file, load_calibration, save_calibration
from parctl.planner.make import make_plan
from parctl.planner.time.calibration import Calibration, Link, Products
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster

Captured = pytest.CaptureFixture[str]
CLUSTER = parse_cluster("h100:4x8")


def made() -> Calibration:
    return Calibration(
        topology=CLUSTER.digest,
        source=CLUSTER.source,
        products={"bf16": Products(flops=500e12, share=0.4, samples=5)},
        links={"nvlink": Link(latency_s=5e-6, bytes_s=100e9, error=0.02, samples=20)},
        made_unix=1.0,
    )


def test_the_run_that_measures_has_the_groups_of_the_job() -> None:
    recipe = load_recipe("llama-70b: TP8+SP+FSDP4")
    job = make_plan(recipe, CLUSTER)
    plan = bench_plan(recipe, CLUSTER, backend="local")

    assert plan.recipe.task == "script" and plan.recipe.launch.retries == 0
    assert plan.layout.axes == job.layout.axes
    placed = [
        [[(layout.slots[r].node, layout.slots[r].gpu) for r in group] for group in groups]
        for layout in (job.layout, plan.layout)
        for groups in [layout.groups("tp")]
    ]
    assert placed[0] == placed[1]
    script = plan.recipe.script
    assert script is not None
    asked = json.loads(script.command[-1])
    assert asked["axes"] == {"fsdp": 4, "tp": 8}
    assert asked["max_bytes"] == 256 * 2**20


def test_products_are_those_of_the_layers_on_one_rank() -> None:
    plan = make_plan(load_recipe("llama-70b: TP8+SP+FSDP4"), CLUSTER)

    assert product_shapes(plan, CLUSTER) == [
        [8192, 1024, 8192],  # heads back to the stream
        [8192, 3584, 8192],  # 28672 / 8
        [8192, 8192, 1280],  # queries, keys and values: (8192 + 2 x 1024) / 8
        [8192, 8192, 7168],  # gate and up
        [8192, 8192, 16032],  # 128256 / 8
    ]


def test_only_lines_of_the_program_are_read() -> None:
    lines = ["hello", 'parctl-bench {"device": "cpu"}', 'parctl-bench {"seconds": 1.0}']
    assert list(measurements(lines)) == [{"seconds": 1.0}]


def test_a_calibration_is_kept_by_topology(tmp_path: Path) -> None:
    assert load_calibration(CLUSTER) is None
    assert save_calibration(made()) == calibration_file(CLUSTER.digest)
    assert load_calibration(CLUSTER) == made()
    assert load_calibration(parse_cluster("h100:8x8")) is None
    elsewhere = save_calibration(made(), tmp_path / "a" / "b.json")
    assert load_calibration(CLUSTER, elsewhere) == made()


def test_another_clusters_calibration_is_refused(tmp_path: Path) -> None:
    path = save_calibration(made(), tmp_path / "a.json")
    with pytest.raises(UsageError) as refused:
        load_calibration(parse_cluster("h100:8x8"), path)
    assert "was measured on synthetic h100:4x8, which is not synthetic h100:8x8" in (
        refused.value.message
    )
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(UsageError):
            load_calibration(CLUSTER, path)
    with pytest.raises(UsageError):
        load_calibration(CLUSTER, tmp_path / "none.json")


def test_a_plan_takes_what_its_cluster_reached(capsys: Captured) -> None:
    words = ["plan", "llama-70b: TP8+SP+FSDP4", "--cluster", "h100:4x8", "-o", "json"]

    def time() -> dict[str, float]:
        assert run(words) == 0
        parts: dict[str, float] = json.loads(capsys.readouterr().out)["time"]["step_parts_s"]
        return parts

    usual = time()
    save_calibration(made())
    measured = time()

    assert measured["tensor"] > 2 * usual["tensor"]
    assert measured["compute"] > usual["compute"]


def test_measuring_on_this_machine_ends_in_a_file_that_plans_read(
    capsys: Captured, tmp_path: Path
) -> None:
    path = tmp_path / "here.json"
    words = ["bench", "tiny-llama: DP2", "--devices", "2", "--max-mb", "0.04", "-o", "json"]
    assert run([*words, "--calibration", str(path)]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    document = json.loads(captured.out)

    assert captured.err.rstrip().endswith(f"written to: {path}")
    assert json.loads(path.read_text()) == document
    names = [line["collective"] for line in document["measurements"] if "collective" in line]
    assert names == [
        name
        for name in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send")
        for _ in range(2)  # 4 kB and 32 kB
    ]
    assert all(line["seconds"] > 0 for line in document["measurements"])
    assert document["links"]["host"]["bytes_s"] > 0
    assert document["products"]["fp32"]["flops"] > 0
    # the same machine, seen by another command
    assert run(["plan", "tiny-llama: DP2", "--devices", "2", "--calibration", str(path)]) == 0


def test_a_script_has_nothing_to_measure(tmp_path: Path) -> None:
    recipe = tmp_path / "script.yaml"
    recipe.write_text(
        "version: 1\nname: probe\ntask: script\nparallelism: DP2\n"
        "script: {command: [python, x.py]}\n"
    )
    with pytest.raises(UsageError) as refused:
        bench_plan(load_recipe(str(recipe)), parse_cluster("cpu:1x2"), backend="local")
    assert "has task: script" in refused.value.message
