"""What a pod finds in its folders: the plan, the cluster it was made for, the work folder."""

import json
import os
from pathlib import Path

from parctl.launcher.kubernetes.payload import WORKDIR, read_payload, unpack_workdir
from parctl.planner.plan import Plan, plan_from_json
from parctl.topology.model import Topology

PLAN_FILE = "plan.json"
TOPOLOGY_FILE = "topology.json"


def plan_folder() -> Path:
    return Path(os.environ["PARCTL_PLAN_FOLDER"])


def run_folder() -> Path:
    return Path(os.environ["PARCTL_RUN_FOLDER"])


def read_plan_text() -> str:
    content = read_payload(plan_folder(), PLAN_FILE)
    if content is None:
        raise FileNotFoundError(f"no plan in {plan_folder()}")
    return content.decode()


def read_plan() -> Plan:
    return plan_from_json(json.loads(read_plan_text()))


def read_topology() -> Topology | None:
    content = read_payload(plan_folder(), TOPOLOGY_FILE)
    if content is None:
        return None
    from parctl.topology.store import topology_from_json

    return topology_from_json(json.loads(content))


def unpacked_workdir() -> Path | None:
    """Unpack `launch.workdir`; None when nothing was sent along."""
    archive = read_payload(plan_folder(), WORKDIR)
    if archive is None:
        return None
    folder = run_folder() / "work"
    folder.mkdir(parents=True, exist_ok=True)
    unpack_workdir(archive, folder)
    return folder
