"""Plans made by hand and what they are rendered with: one case per shape and per choice."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.launcher.plans import script_plan

from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes.render import Target, render
from parctl.launcher.kubernetes.shapes import template_of
from parctl.planner.plan import Plan
from parctl.recipes.inference_spec import SamplingSpec, ServeSpec
from parctl.recipes.kubernetes_spec import KubernetesSpec, TolerationSpec, VolumeSpec
from parctl.recipes.spec import SecretSpec
from parctl.topology.model import Topology
from parctl.topology.synthetic import parse_cluster

IMAGE = "parctl.test/base:1"
TARGET = Target(namespace="team-a", owner="ada", image=IMAGE)


def plan_of(
    spec: KubernetesSpec | None = None,
    *,
    nodes: tuple[str, ...] = ("gpu-1", "gpu-2"),
    kind: str = "gpu",
    source: str = "k8s https://cluster",
    secrets: Mapping[str, SecretSpec] | None = None,
    memory: Mapping[str, Any] | None = None,
    **launch: Any,
) -> Plan:
    """Two ranks on each node of a cluster."""
    plan = script_plan(
        ["python3", "-c", "print('hello')"], axes={"dp": 2 * len(nodes)}, nodes=nodes, kind=kind
    )
    recipe = replace(
        plan.recipe,
        launch=replace(
            plan.recipe.launch,
            backend="kubernetes",
            kubernetes=spec,
            secrets=secrets or {},
            **launch,
        ),
    )
    return replace(
        plan,
        recipe=recipe,
        topology={**plan.topology, "source": source},
        memory=memory or {},
        backend={"kind": "kubernetes"},
    )


def serve_plan(
    spec: KubernetesSpec | None = None, *, host: str = "0.0.0.0", port: int = 8000, **launch: Any
) -> Plan:
    """An endpoint on two nodes; its model is nobody's business here."""
    plan = plan_of(spec, **launch)
    sampling = SamplingSpec(
        max_tokens=16,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        seed=None,
        stop=(),
    )
    serve = ServeSpec(
        host=host,
        port=port,
        model_name="tiny",
        api_key_from=None,
        max_concurrent=4,
        max_body_bytes=1024,
        max_samples=1,
        drain_s=1.0,
        sampling=sampling,
    )
    return replace(plan, recipe=replace(plan.recipe, task="serve", script=None, serve=serve))


def cluster(*, per_node: int = 8, tiers: tuple[str, ...] = ()) -> Topology:
    """Four nodes of a cluster, the first two in one rack, all four in one block."""
    made = parse_cluster(f"h100:4x{per_node}")
    nodes = tuple(
        replace(
            node,
            name=f"gpu-{i + 1}",
            tiers=(f"rack-{i // 2}", "block-0")[: len(tiers)],
            sources={"tiers": "kueue"},
        )
        for i, node in enumerate(made.nodes)
    )
    return replace(made, source="k8s https://cluster", tiers=tiers, nodes=nodes)


RACKS = cluster(per_node=2, tiers=("example.com/rack", "example.com/block"))
SHARED = VolumeSpec(
    mount="/mnt/shared",
    claim="training",
    host_path=None,
    config_map=None,
    secret=None,
    empty=None,
    read_only=False,
    sub_path="team-a",
)

CASES: Mapping[str, tuple[Plan, Target]] = {
    "job": (plan_of(KubernetesSpec(kind="job"), retries=2, timeout_s=3600.0), TARGET),
    "jobset": (plan_of(KubernetesSpec(kind="jobset"), retries=2), TARGET),
    "kueue": (plan_of(queue="research"), replace(TARGET, topology=RACKS)),
    "coordinator-job": (
        plan_of(KubernetesSpec(kind="job", recovery="coordinator"), retries=3),
        TARGET,
    ),
    "coordinator-jobset": (
        plan_of(KubernetesSpec(kind="jobset", recovery="coordinator"), retries=3),
        TARGET,
    ),
    "rayjob": (
        plan_of(KubernetesSpec(kind="rayjob"), retries=2, queue="research"),
        replace(TARGET, topology=RACKS),
    ),
    "serve": (
        serve_plan(KubernetesSpec(topology="example.com/rack")),
        TARGET,
    ),
    "foreign-image": (
        plan_of(KubernetesSpec(agent_image=IMAGE), image="parctl.test/foreign:1"),
        replace(TARGET, image=None),
    ),
    "everything": (
        plan_of(
            KubernetesSpec(
                kind="job",
                cpu="4",
                memory="8Gi",
                shared_memory="1Gi",
                topology="example.com/rack",
                nodes="planned",
                node_selector={"pool": "a100"},
                tolerations=(
                    TolerationSpec(
                        key="dedicated",
                        operator="Equal",
                        value="training",
                        effect="NoSchedule",
                        seconds=None,
                    ),
                ),
                volumes={"shared": SHARED},
                priority_class="high",
                service_account="trainer",
                pull_secrets=("registry",),
                dead_node_s=5.0,
                patch={
                    "Pod": {"spec": {"schedulerName": "volcano"}},
                    "Job": {"spec": {"ttlSecondsAfterFinished": 60}},
                },
            ),
            secrets={"HF_TOKEN": SecretSpec(from_env=None, secret="hugging-face", key="token")},
            queue="research",
        ),
        TARGET,
    ),
    "privileged": (
        plan_of(
            KubernetesSpec(
                kind="job",
                host_network=True,
                rdma={"rdma/shared_devices": 1},
                volumes={"nfs": replace(SHARED, claim=None, host_path="/mnt/nfs", sub_path=None)},
            )
        ),
        TARGET,
    ),
    "cpu": (plan_of(KubernetesSpec(kind="job"), kind="cpu", nodes=("cpu-1",)), TARGET),
}


def pod_template(workload: Mapping[str, Any]) -> Any:
    """The template of the pods with ranks."""
    if "rayClusterSpec" in workload["spec"]:
        return workload["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]
    return template_of(workload)


def manifests(case: str) -> Manifests:
    plan, target = CASES[case]
    return render(plan, f"probe-{case}", target)
