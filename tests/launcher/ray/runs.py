"""Launching recipes on the test cluster, and looking at what is left of them."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from parctl.launcher.backend import Backend, RunStatus, State
from parctl.launcher.launch import Prepared, prepared_launch
from parctl.launcher.processes import Process, processes_with
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.waiting import wait_for
from parctl.planner.plan import Plan

SMALL_NODES = "placement.exclude=[node-0,node-1,node-2,node-3]"
WAIT_S = 150.0  # on a machine that others use too


def launch(source: str, *overrides: str, run_id: str, planned_for: str | None = None) -> Plan:
    """Launch as the command line does; returns the plan. `planned_for`: another cluster."""
    return _submit("ray", source, overrides, run_id, planned_for).manifests.plan


def run_here(source: str, *overrides: str) -> Backend:
    """Run a recipe with the local back end, as `here-1`; returns the back end."""
    backend = _submit("local", source, overrides, "here-1").backend
    status = wait_for(backend, "here-1", timeout_s=WAIT_S)
    assert status.state is State.SUCCEEDED, status.verdict
    return backend


def local_losses(source: str, *overrides: str) -> dict[int, float]:
    """Train the same recipe with the local back end; losses by step."""
    return {row["step"]: row["loss"] for row in run_here(source, *overrides).metrics("here-1")}


def _submit(
    backend: str,
    source: str,
    overrides: Sequence[str],
    run_id: str,
    planned_for: str | None = None,
) -> Prepared:
    with prepared_launch(
        source,
        overrides=list(overrides),
        num_devices=None,
        backend=backend,
        run_id=run_id,
        force=False,
        ahead=True,
        cluster=planned_for,
    ) as prepared:
        prepared.backend.submit(prepared.manifests)
        return prepared


def script(folder: Path, command: Sequence[str], axes: dict[str, int], **launch: Any) -> str:
    """Write a recipe of `task: script`; returns its path."""
    recipe = {
        "version": 1,
        "name": "probe",
        "task": "script",
        "parallelism": axes,
        "script": {"command": list(command)},
        "launch": {"stop_grace_s": 2.0, **launch},
    }
    path = folder / "probe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def until(true: Callable[[], Any], *, seconds: float = WAIT_S) -> Any:
    """Wait until `true()` is, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.1)
    return found


def in_state(backend: RayBackend, run_id: str, *states: State) -> RunStatus:
    """Wait for one of `states`; an end that is none of them fails."""

    def there() -> RunStatus | None:
        status = backend.status(run_id)
        if status.state in states:
            return status
        assert not status.state.ended, status
        return None

    found = until(there)
    assert isinstance(found, RunStatus)
    return found


def ended(backend: RayBackend, run_id: str) -> RunStatus:
    return in_state(backend, run_id, State.SUCCEEDED, State.FAILED, State.CANCELLED)


def processes(run_id: str) -> list[Process]:
    """What lives of a run on this machine: ranks, their fork servers, whatever they started."""
    return processes_with({"PARCTL_RUN_ID": run_id})


def ancestry(pid: int) -> list[int]:
    """`pid` and the processes above it."""
    found = []
    while pid > 1:
        found.append(pid)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
    return found


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def agents(backend: RayBackend, run_id: str) -> dict[int, str]:
    """Ray's own word on the agents of a run: pid -> Ray's id of the node."""
    address = RayBackend()._dashboard
    rows = address.get("/api/v0/actors", detail=1, limit=1000)["data"]["result"]["result"]
    groups = address.get("/api/v0/placement_groups", detail=1)["data"]["result"]["result"]
    ours = {g["placement_group_id"] for g in groups if g["name"] == f"parctl-{run_id}"}
    return {
        row["pid"]: row["node_id"]
        for row in rows
        if row["placement_group_id"] in ours and row["state"] == "ALIVE"
    }


def waiting_group(name: str) -> list[dict[str, float]] | None:
    """What a placement group that is not removed asks for, by bundle; None: there is none."""
    dashboard = RayBackend()._dashboard
    groups = dashboard.get("/api/v0/placement_groups", detail=1)["data"]["result"]["result"]
    for group in groups:
        if group["name"] == name and group["state"] == "PENDING":
            return [bundle["unit_resources"] for bundle in group["bundles"]]
    return None


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
