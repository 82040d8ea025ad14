"""What a RayJob says so that the same driver runs as its job."""

import json

from tests.launcher.plans import script_plan

from parctl.launcher.ray.kuberay import NODE_LABELS, rayjob_parts

PLAN = script_plan(["python", "train.py"], axes={"dp": 2}, nodes=("a", "b"), kind="gpu")


def test_the_job_is_the_run_and_nobody_else_retries_it() -> None:
    spec = rayjob_parts(PLAN, "probe-1", storage="/mnt/runs").spec

    assert spec["jobId"] == "probe-1"
    assert spec["entrypoint"] == "exec python3 -P -m parctl.launcher.ray.driver"
    assert spec["backoffLimit"] == 0
    assert spec["metadata"]["parctl_plan"] == PLAN.hash
    assert json.loads(spec["runtimeEnvYAML"]) == {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "86400", "PYTHONPATH": "/etc/parctl"}
    }


def test_the_plan_is_mounted_where_the_driver_looks() -> None:
    files = rayjob_parts(PLAN, "probe-1", storage="/mnt/runs").files

    assert json.loads(files["parctl_run/plan.json"])["hash"] == PLAN.hash
    assert json.loads(files["parctl_run/run.json"])["storage"] == "/mnt/runs"


def test_a_ray_pod_is_called_by_its_node() -> None:
    assert NODE_LABELS == "parctl.dev/node=$NODE_NAME"
