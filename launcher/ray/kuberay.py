"""The same driver as the job of a KubeRay cluster: what a RayJob has to say. Pure.

A cluster that does not exist yet can be sent no package. So parctl comes with the image, and the
plan is a mounted folder on PYTHONPATH, where the driver and the agents look for it as they do for a
package. Plans name nodes of Kubernetes; a Ray pod calls itself by the node that it runs on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parctl.launcher.ray.manifest import ray_manifest
from parctl.launcher.ray.packages import RUN_FOLDER
from parctl.planner.plan import Plan
from parctl.topology.sources.ray import NODE_LABEL

MOUNT = "/etc/parctl"
# for rayStartParams of every group, with NODE_NAME from the downward API (spec.nodeName)
NODE_LABELS = f"{NODE_LABEL}=$NODE_NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJobParts:
    """Fields of a RayJob's spec, and the files of a ConfigMap or volume to mount at MOUNT."""

    spec: Mapping[str, Any]
    files: Mapping[str, str]


def rayjob_parts(plan: Plan, run_id: str, *, storage: str | None) -> RayJobParts:
    """Return what makes a RayJob this run. `storage`: a directory that all pods mount."""
    manifest = ray_manifest(plan, run_id, storage=storage)
    environment = {**manifest.request["runtime_env"]["env_vars"], "PYTHONPATH": MOUNT}
    return RayJobParts(
        spec={
            "jobId": run_id,
            "entrypoint": manifest.request["entrypoint"],
            "metadata": dict(manifest.request["metadata"]),
            "runtimeEnvYAML": json.dumps({"env_vars": environment}),  # JSON is YAML
            "backoffLimit": 0,  # retries are counted by the driver
            "shutdownAfterJobFinishes": True,
        },
        files={
            f"{RUN_FOLDER}/plan.json": json.dumps(plan.to_json()),
            f"{RUN_FOLDER}/run.json": json.dumps(manifest.settings),
        },
    )
