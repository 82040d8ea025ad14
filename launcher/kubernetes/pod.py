"""What the container of a pod runs: `python3 -P -m parctl.launcher.kubernetes.pod`.

Finds out which pod this is and what is there, starts the node process, in the first pod the leader,
and then serves as the agent. Standard library and parctl's own modules only.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.launcher.kubernetes.agent import Agent
from parctl.launcher.kubernetes.endpoint import endpoint_port
from parctl.launcher.kubernetes.leader_worker_set import INDEX_VARIABLE
from parctl.launcher.kubernetes.node_process import NodePipe
from parctl.launcher.kubernetes.pod_files import (
    read_plan,
    read_plan_text,
    run_folder,
    unpacked_workdir,
)
from parctl.launcher.kubernetes.settings import kubernetes_spec, run_settings
from parctl.launcher.nodes.interface import interface_of
from parctl.planner.plan import Plan

DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
NEEDED = ("torch", "numpy")  # of parctl's own runtime


def main() -> int:
    run_id = os.environ["PARCTL_RUN_ID"]
    plan = read_plan()
    spec = kubernetes_spec(plan)
    index = int(os.environ.get(INDEX_VARIABLE) or os.environ["JOB_COMPLETION_INDEX"])
    leads = index == 0 and spec.recovery == "native"
    own_leader = start_leader() if leads else None  # soon: every agent waits for it
    directory = run_folder() / run_id
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    (directory / "state.json").write_text("{}", encoding="utf-8")
    plan_file = directory / "plan.json"
    plan_file.write_text(read_plan_text(), encoding="utf-8")
    port = int(os.environ["PARCTL_CONTROL_PORT"])
    host = "localhost" if leads else os.environ["PARCTL_LEADER"]
    hello = describe(plan, index, starts=count_start(run_folder()))
    agent = Agent(
        hello,
        leader=(host, port),
        node=NodePipe(node_hello(plan, run_id, directory, plan_file, hello["address"])),
        own_leader=own_leader,
        coordinated=spec.recovery == "coordinator",
        stop_grace_s=plan.recipe.launch.stop_grace_s,
        secrets=[os.environ.get(name, "") for name in plan.recipe.launch.secrets],
        last_words=Path(os.environ["PARCTL_LAST_WORDS"]),
        endpoint_port=endpoint_port(plan),
    )
    return agent.run(connect_timeout_s=spec.gather_timeout_s)


def start_leader() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "parctl.launcher.kubernetes.leader"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def count_start(folder: Path) -> int:
    """Note in the pod's own folder that its container starts; return how often it did before."""
    counter = folder / "starts"
    earlier = int(counter.read_text(encoding="utf-8")) if counter.exists() else 0
    counter.write_text(str(earlier + 1), encoding="utf-8")
    return earlier


def describe(plan: Plan, index: int, *, starts: int) -> dict[str, Any]:
    """Who this pod is, as its leader is told. `starts`: of its container before this one."""
    failures = os.environ.get("PARCTL_FAILURES", "")
    return {
        "index": index,
        "pod": os.environ["PARCTL_POD"],
        "uid": os.environ["PARCTL_POD_UID"],
        "node": os.environ["PARCTL_NODE"],
        "address": os.environ["PARCTL_POD_IP"],
        "attempts": int(failures) if failures.isdigit() else starts,
        "missing": missing(plan),
        "python": sys.executable,
        "hardware": hardware() if plan.topology.get("kind") == "gpu" else None,
    }


def missing(plan: Plan) -> list[str]:
    """What this image lacks, in words."""
    runs_torch = plan.recipe.script is None or kubernetes_spec(plan).preflight
    wanted = NEEDED if runs_torch else ()
    found = [f"`{name}` is not installed in the image" for name in wanted if not find_spec(name)]
    script = plan.recipe.script
    if script is not None and script.workdir and not Path(script.workdir).is_dir():
        found.append(f"there is no directory `{script.workdir}` (script.workdir)")
    return found


def hardware() -> dict[str, Any] | None:
    """The devices of this pod as their driver tells them; None where there is no driver."""
    if not any(os.path.exists(driver) for driver in DRIVERS):
        return None
    from parctl.topology.sources.local import discover_local
    from parctl.topology.store import topology_to_json

    found = discover_local()
    return topology_to_json(found) if found.nodes[0].hardware.kind == "gpu" else None


def node_hello(
    plan: Plan, run_id: str, directory: Path, plan_file: Path, address: str
) -> dict[str, Any]:
    """What the node process is told at its start."""
    interface = interface_of(address)
    sockets = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    sent = unpacked_workdir()
    workdir = plan.recipe.script.workdir if plan.recipe.script else None
    settings = dict(run_settings(plan, run_id))
    return {
        "settings": settings,
        "plan": str(plan_file),
        "run_dir": str(directory),
        "marks": {
            "PARCTL_RUN_ID": run_id,
            "PARCTL_RUN_DIR": str(directory),
            "PARCTL_NODE": os.environ["PARCTL_NODE"],
        },
        "defaults": dict.fromkeys(sockets, interface) if interface else {},
        "workdir": workdir or (str(sent) if sent else None),
    }


if __name__ == "__main__":
    sys.exit(main())
