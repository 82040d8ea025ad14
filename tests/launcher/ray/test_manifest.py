"""What would be submitted, byte for byte, with no cluster and no ray."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.launcher.plans import script_plan

from parctl.cli.main import run as parctl
from parctl.errors import UsageError
from parctl.launcher.ray.manifest import ray_manifest
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.discover import discover

PLAN = script_plan(["python", "train.py"], axes={"dp": 2, "tp": 2}, nodes=("a", "b"), kind="gpu")


def test_the_request_names_the_run_its_plan_and_what_was_sent() -> None:
    manifest = ray_manifest(PLAN, "probe-1", storage=None, owner="ada")
    parctl_sent, run_sent = manifest.packages

    assert manifest.request == {
        "entrypoint": "exec python3 -P -m parctl.launcher.ray.driver",
        "submission_id": "probe-1",
        "runtime_env": {
            "py_modules": [parctl_sent.uri, run_sent.uri],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "86400"},
        },
        "metadata": {
            "name": "probe",
            "parctl_plan": PLAN.hash,
            "parctl_steps": "",
            "parctl_owner": "ada",
        },
    }
    assert json.loads(run_sent.files["parctl_run/plan.json"])["hash"] == PLAN.hash
    assert json.loads(run_sent.files["parctl_run/run.json"]) == manifest.settings


def test_the_settings_show_every_rank_with_its_place() -> None:
    settings = ray_manifest(PLAN, "probe-1", storage="/mnt/runs").settings

    assert settings["start"] == "command"
    assert settings["command"] == ["python", "train.py"]
    assert settings["storage"] == "/mnt/runs"
    assert settings["wait_s"] == 3600.0
    assert settings["ranks"][2] == {
        "rank": 2,
        "node": "b",
        "local_rank": 0,
        "gpu": 0,
        "coordinates": {"dp": 1, "tp": 0},
    }


def test_the_same_plan_and_id_give_the_same_bytes() -> None:
    first = [package.zipped() for package in ray_manifest(PLAN, "x", storage=None).packages]
    assert first == [package.zipped() for package in ray_manifest(PLAN, "x", storage=None).packages]


def test_a_working_directory_that_is_here_is_sent(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print()")
    plan = script_plan(["python", "train.py"], axes={"dp": 1}, workdir=str(tmp_path))
    manifest = ray_manifest(plan, "probe-1", storage=None)

    assert manifest.request["runtime_env"]["working_dir"] == manifest.packages[2].uri
    assert manifest.settings["workdir"] == "the directory that was sent along"


def test_a_working_directory_of_the_nodes_is_named(tmp_path: Path) -> None:
    plan = script_plan(["python", "train.py"], axes={"dp": 1}, workdir="/mnt/code")
    manifest = ray_manifest(plan, "probe-1", storage=None)

    assert "working_dir" not in manifest.request["runtime_env"]
    assert manifest.settings["workdir"] == "/mnt/code"


@pytest.mark.parametrize("name", ["RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"])
def test_a_variable_that_parctl_sets_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"the recipe sets `{name}`, which parctl sets itself"):
        ray_manifest(script_plan(["x"], axes={"dp": 1}, env={name: "1"}), "probe-1", storage=None)


def test_the_interface_may_be_said_by_the_recipe() -> None:
    plan = script_plan(["x"], axes={"dp": 1}, env={"GLOO_SOCKET_IFNAME": "ib0"})
    settings = ray_manifest(plan, "probe-1", storage=None).settings
    assert settings["env"] == {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "ib0"}


def test_a_secret_is_named_and_its_value_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIDDEN", "canary-7183")
    plan = script_plan(["x"], axes={"dp": 1}, secrets={"KEY": "HIDDEN"})
    manifest = ray_manifest(plan, "probe-1", storage=None)

    assert manifest.settings["secrets"] == {"KEY": "HIDDEN"}
    everything = json.dumps([manifest.settings, manifest.request]).encode()
    everything += b"".join(b"".join(package.files.values()) for package in manifest.packages[1:])
    assert b"canary-7183" not in everything


def test_nodes_without_a_common_place_for_checkpoints_are_refused() -> None:
    recipe = load_recipe("tiny-llama", ["placement.require=[gpu-0,gpu-1]"])
    recipe = replace(recipe, placement=None)
    plan = make_plan(recipe, discover("h100:2x2"), backend="ray")
    assert plan.layout.num_nodes == 2

    with pytest.raises(UsageError, match="2 nodes have no common place for checkpoints"):
        ray_manifest(plan, "probe-1", storage=None)
    assert ray_manifest(plan, "probe-1", storage="/mnt/runs").settings["storage"] == "/mnt/runs"


def test_commands_about_runs_import_no_ray(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parctl", "list"],
        capture_output=True,
        text=True,
        env={**os.environ, "PARCTL_BACKEND": "ray", "PARCTL_ADDRESS": "http://127.0.0.1:9"},
    )
    assert shown.returncode == 5
    assert "Ray at http://127.0.0.1:9 does not answer: [Errno 111] Connection refused" in (
        shown.stderr
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in shown.stderr.splitlines()}
    assert loaded & {"ray", "torch", "numpy", "aiohttp", "requests"} == set()


def test_an_address_may_be_given_to_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert parctl(["status", "x", "-b", "ray", "--address", "http://127.0.0.1:9"]) == 5
    assert "Ray at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
