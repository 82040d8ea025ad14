"""Make every situation on a real cluster and write down what it looks like there.

    PARCTL_CLUSTER=NAME python -m tests.launcher.kubernetes.record [SITUATION ...]

The cluster is one that `make cluster` keeps, with jobset and kueue. Prints the sentence of each
situation; those that are not the true ones are marked.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.cluster import cluster as clusters
from tests.cluster.cluster import Cluster
from tests.launcher.kubernetes.cases import IMAGE
from tests.launcher.kubernetes.situations import SITUATIONS, Situation
from tests.launcher.plans import script_plan

from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.facts import Facts, gather_facts
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.logs import leader_log
from parctl.launcher.kubernetes.objects import read_run
from parctl.launcher.kubernetes.render import Target, render
from parctl.launcher.kubernetes.report import last_report, report_text
from parctl.launcher.kubernetes.stopping import cancel_run
from parctl.launcher.kubernetes.submit import submit
from parctl.launcher.kubernetes.why import diagnose
from parctl.planner.plan import Plan

FOLDER = Path(__file__).parent / "situations"
PATIENCE_S = 60.0
UNREAD = ("managedFields", "env", "volumes", "volumeMounts", "securityContext", "template")
ADMISSION = "admissionregistration.k8s.io/v1"
KEPT_OF_NODE = ("conditions", "allocatable")


def plan_of(situation: Situation) -> Plan:
    launch = dict(situation.launch)
    nodes = launch.pop("nodes", ("gpu-1", "gpu-2"))
    plan = script_plan(
        ["python3", "-c", situation.program],
        axes={"dp": situation.per_node * len(nodes)},
        nodes=nodes,
        kind="gpu",
        stop_grace_s=2.0,
    )
    launched = replace(
        plan.recipe.launch,
        backend="kubernetes",
        kubernetes=situation.spec,
        secrets=situation.secrets,
        **launch,
    )
    return replace(
        plan,
        recipe=replace(plan.recipe, launch=launched),
        topology={**plan.topology, "source": "k8s test"},
    )


def manifests_of(name: str, situation: Situation, namespace: str) -> Manifests:
    target = Target(namespace=namespace, owner="ada", image=IMAGE)
    manifests = render(plan_of(situation), f"why-{name}", target)
    documents = json.loads(json.dumps(manifests.documents))
    container = _container(documents[-1])
    if situation.act == "never-pull":
        container["imagePullPolicy"] = "Never"
    if situation.act == "no-python":
        container["command"] = ["no-such-python"]
    return replace(manifests, documents=tuple(documents))


def _container(workload: Any) -> Any:
    spec = workload["spec"]
    if "replicatedJobs" in spec:
        spec = spec["replicatedJobs"][0]["template"]["spec"]
    return spec["template"]["spec"]["containers"][0]


class Recorder:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.undo: list[Callable[[], object]] = []

    def record(self, name: str, situation: Situation) -> bool:
        namespace = f"why-{name}"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        api = self.cluster.api
        metadata = {"name": namespace, "labels": labels}
        api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        api.wait("ServiceAccount", "default", bool, namespace)
        self.undo = [lambda: self.cluster.remove_namespace(namespace)]
        try:
            if situation.before:
                getattr(self, situation.before.replace("-", "_"))(namespace)
            for each in situation.objects:
                self.make(each, namespace)
            time.sleep(0.5)  # controllers of quotas and policies take a moment
            client = Client(find_access(None, namespace=namespace))
            submit(client, manifests_of(name, situation, namespace))
            run_id = f"why-{name}"
            if situation.act and hasattr(self, situation.act.replace("-", "_")):
                getattr(self, situation.act.replace("-", "_"))(client, run_id)
            return self.observe(client, name, situation)
        finally:
            for undo in reversed(self.undo):
                try:
                    undo()
                except Exception as error:
                    print(f"  {name}: {error}", file=sys.stderr)

    def make(self, written: Mapping[str, Any], namespace: str) -> None:
        each: dict[str, Any] = json.loads(json.dumps(written).replace("NAMESPACE", namespace))
        wide = each["kind"] in (
            "ResourceFlavor",
            "ClusterQueue",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
            "ValidatingWebhookConfiguration",
            "Topology",
        )
        self.cluster.api.apply(each, namespace=None if wide else namespace)
        if wide:
            name = each["metadata"]["name"]
            self.undo.insert(
                0, lambda: self.cluster.api.delete(each["kind"], name, None, each["apiVersion"])
            )

    def observe(self, client: Client, name: str, situation: Situation) -> bool:
        until = time.monotonic() + PATIENCE_S
        while True:
            facts = facts_of(client, f"why-{name}")
            sentence = diagnose(facts).sentence
            true = situation.sentence in sentence
            if true or time.monotonic() > until:
                break
            time.sleep(1.0)
        FOLDER.mkdir(exist_ok=True)
        text = json.dumps(to_json(facts), sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{'    ' if true else 'NOT '}{name}: {sentence}", flush=True)
        return true

    # what is done to the cluster

    def taint(self, namespace: str) -> None:
        own = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
        taint = {"key": "dedicated", "value": "others", "effect": "NoSchedule"}
        before = self.cluster.api.get("Node", "gpu-3")["spec"].get("taints")
        change = {"spec": {"taints": [own, taint]}}
        self.cluster.api.patch("Node", "gpu-3", change)
        self.undo.append(
            lambda: self.cluster.api.patch("Node", "gpu-3", {"spec": {"taints": before}})
        )

    def cordon(self, namespace: str) -> None:
        self.cluster.nodes["gpu-3"].cordon()
        self.undo.append(lambda: self.cluster.nodes["gpu-3"].cordon(False))

    def hold(self, namespace: str) -> None:
        self.other(namespace, per_node=2, nodes=("gpu-1", "gpu-2", "gpu-3"))

    def hold_queue(self, namespace: str) -> None:
        for each in SITUATIONS["queue-full"].objects:
            self.make(each, namespace)
        self.other(namespace, per_node=2, nodes=("gpu-1",), queue="research")

    def other(
        self, namespace: str, *, per_node: int, nodes: tuple[str, ...], **launch: Any
    ) -> None:
        situation = Situation(sentence="", per_node=per_node, launch={"nodes": nodes, **launch})
        client = Client(find_access(None, namespace=namespace))
        manifests = manifests_of("other", situation, namespace)
        submit(client, manifests)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            run = read_run(client, "why-other")
            if run and sum(bool(p["spec"].get("nodeName")) for p in run.rank_pods) == len(nodes):
                return
            time.sleep(0.2)
        raise AssertionError("the other run was not placed")

    def stop_jobset(self, namespace: str) -> None:
        self.cluster.controllers.kill("jobset")
        # without its webhook nothing could be submitted at all
        api = self.cluster.api
        kinds = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
        for kind in kinds:
            for each in api.list(kind, None, ADMISSION):
                if "jobset" in each["metadata"]["name"]:
                    api.delete(kind, each["metadata"]["name"], None, ADMISSION)
        self.undo.append(lambda: self.cluster.controllers.restart("jobset"))

    def cancel(self, client: Client, run_id: str) -> None:
        run = read_run(client, run_id)
        assert run is not None
        cancel_run(client, run, grace_s=None)

    def delete_plan(self, client: Client, run_id: str) -> None:
        client.delete("v1", "ConfigMap", f"{run_id}-plan")
        run = read_run(client, run_id)
        assert run is not None
        for pod in run.rank_pods:
            client.delete("v1", "Pod", pod["metadata"]["name"], grace_s=0)

    def suspend(self, client: Client, run_id: str) -> None:
        client.patch("batch/v1", "Job", run_id, {"spec": {"suspend": True}})

    def wait_25(self, client: Client, run_id: str) -> None:
        time.sleep(25)

    def wait_for_pods(self, client: Client, run_id: str) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            run = read_run(client, run_id)
            phases = (
                [(pod.get("status") or {}).get("phase") for pod in run.rank_pods] if run else []
            )
            if phases == ["Running", "Running"]:
                return
            time.sleep(0.2)

    def stop_kubelet(self, client: Client, run_id: str) -> None:
        self.wait_for_pods(client, run_id)
        self.cluster.nodes["gpu-2"].stop_kubelet()
        self.undo.append(lambda: self.cluster.nodes["gpu-2"].resume_kubelet())

    def kill_node(self, client: Client, run_id: str) -> None:
        self.wait_for_pods(client, run_id)
        self.cluster.nodes["gpu-2"].kill()
        self.undo.append(lambda: self.cluster.nodes["gpu-2"].back())

    def evict(self, client: Client, run_id: str) -> None:
        self.wait_for_pods(client, run_id)
        run = read_run(client, run_id)
        pod = run.newest(1) if run else None
        assert pod is not None
        name = pod["metadata"]["name"]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        client.ask("POST", client.path("v1", "Pod", name) + "/eviction", body=eviction)


def facts_of(client: Client, run_id: str) -> Facts:
    run = read_run(client, run_id)
    assert run is not None, run_id
    return gather_facts(client, run, last_report(leader_log(client, run, whole=False)))


def to_json(facts: Facts) -> Any:
    """Facts as JSON, without what no diagnosis reads."""
    names = (
        "jobs",
        "events",
        "queue_entry",
        "local_queue",
        "cluster_queue",
        "has_kueue",
        "unread",
        "now_unix",
    )
    value = {name: getattr(facts, name) for name in names}
    value["run"] = {"workload": facts.run.workload, "pods": list(facts.run.pods)}
    value["report"] = None if facts.report is None else json.loads(report_text(facts.report))
    value["nodes"] = [
        {
            "metadata": {"name": n["metadata"]["name"], "labels": n["metadata"].get("labels")},
            "spec": n["spec"],
            "status": {key: n["status"].get(key) for key in KEPT_OF_NODE},
        }
        for n in facts.nodes or ()
    ]
    value["others"] = facts.others and [
        {
            "metadata": {k: pod["metadata"].get(k) for k in ("name", "namespace", "labels")},
            "spec": {
                "nodeName": pod["spec"].get("nodeName"),
                "containers": [
                    {"resources": each.get("resources")} for each in pod["spec"]["containers"]
                ],
            },
            "status": {"phase": (pod.get("status") or {}).get("phase")},
        }
        for pod in facts.others
    ]
    return without_unread(value)


def without_unread(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_unread(item) for key, item in value.items() if key not in UNREAD}
    if isinstance(value, (list, tuple)):
        return [without_unread(item) for item in value]
    return value


def main() -> int:
    name = os.environ["PARCTL_CLUSTER"]
    cluster = clusters.assemble(clusters.machine_of(name))
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    chosen = sys.argv[1:] or list(SITUATIONS)
    wrong = []
    with cluster.inside():
        recorder = Recorder(cluster)
        for each in chosen:
            try:
                if not recorder.record(each, SITUATIONS[each]):
                    wrong.append(each)
            except Exception as error:
                print(f"NOT {each}: {type(error).__name__}: {error}", flush=True)
                wrong.append(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
