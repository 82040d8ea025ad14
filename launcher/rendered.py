"""What a back end would be sent for a plan: how many objects, how large, and how many pods of them.

Back ends render without a cluster, and each is imported when it is asked. What a recipe need not
name until it is launched is supplied here, and said.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import ParctlError
from parctl.planner.plan import Plan
from parctl.topology.model import Topology

Documents = Sequence[Mapping[str, Any]]
BACKENDS = ("kubernetes", "ray", "local")
RUN_ID = "simulated-000000"
# in place of what a recipe need not name until it is launched
IMAGE = "registry.example/parctl"
SHARED = "s3://example/checkpoints"
# etcd keeps no object larger than this (its default --max-request-bytes)
LARGEST_OBJECT = 1_572_864


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What one back end would be sent."""

    backend: str
    objects: Mapping[str, int]  # kind -> how many
    num_bytes: int  # of all of them, as JSON
    largest_bytes: int
    package_bytes: int  # of files that are sent beside them, before they are packed
    pods: int  # that the cluster would make of them; 0: it makes none
    asks: tuple[str, ...]  # what a launch would want to know first, in sentences
    refusal: str | None  # why it would not be sent at all

    @property
    def too_large(self) -> bool:
        return self.backend == "kubernetes" and self.largest_bytes > LARGEST_OBJECT


def render_on(backend: str, plan: Plan, topology: Topology) -> Rendered:
    """Render a plan for a back end and count what comes out.

    A shared folder for checkpoints and an image are supplied where the recipe names none: `asks`
    says so.
    """
    asks, refusal = [], None
    documents: Documents | None = None
    packages = 0
    try:
        documents, packages = _render(backend, plan, topology)
    except ParctlError as error:
        refusal = error.message
        checkpoint = plan.recipe.checkpoint
        if checkpoint is not None and checkpoint.dir is None and backend != "local":
            shared = replace(checkpoint, dir=SHARED)
            told = replace(plan, recipe=replace(plan.recipe, checkpoint=shared))
            try:
                documents, packages = _render(backend, told, topology)
            except ParctlError as second:
                refusal = second.message
            else:
                asks.append(refusal)
                refusal = None
    if documents is None:
        return Rendered(
            backend=backend,
            objects={},
            num_bytes=0,
            largest_bytes=0,
            package_bytes=0,
            pods=0,
            asks=(),
            refusal=refusal,
        )
    if backend == "kubernetes" and plan.recipe.launch.image is None:
        asks.append("launch.image is not set: pods need one with Python, torch and parctl")
    sizes = [len(json.dumps(document, separators=(",", ":"))) for document in documents]
    return Rendered(
        backend=backend,
        objects=Counter(str(document.get("kind", "document")) for document in documents),
        num_bytes=sum(sizes),
        largest_bytes=max(sizes, default=0),
        package_bytes=packages,
        pods=sum(pods_of(document) for document in documents),
        asks=tuple(asks),
        refusal=None,
    )


def pods_of(document: Mapping[str, Any]) -> int:
    """How many pods a cluster makes of an object."""
    spec = document.get("spec", {})
    match document.get("kind"):
        case "Pod":
            return 1
        case "Job":
            return int(spec.get("parallelism", 1))
        case "JobSet":
            return sum(
                int(job.get("replicas", 1)) * pods_of({"kind": "Job"} | job["template"])
                for job in spec["replicatedJobs"]
            )
        case "LeaderWorkerSet":
            return int(spec.get("replicas", 1)) * int(spec["leaderWorkerTemplate"].get("size", 1))
    return 0


def _render(backend: str, plan: Plan, topology: Topology) -> tuple[Documents, int]:
    """Documents, and the bytes of what is sent beside them."""
    if backend == "kubernetes":
        from parctl.launcher.kubernetes.render import Target, render

        target = Target(namespace="default", topology=topology, image=IMAGE)
        return render(plan, RUN_ID, target).documents, 0
    if backend == "ray":
        from parctl.launcher.ray.manifest import ray_manifest

        manifest = ray_manifest(plan, RUN_ID, storage=None)
        files = [content for package in manifest.packages for content in package.files.values()]
        return tuple(manifest.documents()), sum(map(len, files))
    if backend == "local":
        from parctl.launcher.local_manifest import local_document

        return (local_document(plan, RUN_ID),), 0
    raise AssertionError(backend)
