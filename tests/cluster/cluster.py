"""The cluster as one thing: up, down, its nodes, its controllers, its namespaces, its faults.

with cluster.inside():               # in the cluster's network, as this thread and its children
    cluster.controllers.ensure("jobset")
    cluster.nodes["gpu-2"].kill()
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.cluster import image, programs
from tests.cluster.api import Api, Object
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import API_PORT, ControlPlane
from tests.cluster.controllers import Controllers
from tests.cluster.machine import CGROUPS, Machine, command, wait_until
from tests.cluster.node import IMAGES, Node, NodeSpec

JOBSET = "jobset.x-k8s.io/v1alpha2"
KUEUE = "kueue.x-k8s.io/v1beta2"
NAMESPACE_LABEL = "parctl.test/namespace"  # of what a test's namespace has outside of itself
RBAC = "rbac.authorization.k8s.io"
ROOT = Path("/tmp/parctl-clusters")  # short: sockets lie under it

# One node without GPUs; two equal ones of one rack; one of another block that is tainted. Few GPUs,
# since every rank on one is a process of this machine.
NODES = (
    NodeSpec(name="cpu-1", index=1),
    NodeSpec(name="gpu-1", index=2, gpus=2),
    NodeSpec(name="gpu-2", index=3, gpus=2),
    NodeSpec(name="gpu-3", index=4, gpus=2, block="b", rack="b1", tainted=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that is up."""

    machine: Machine
    authority: Authority
    api: Api
    control_plane: ControlPlane
    controllers: Controllers
    nodes: Mapping[str, Node]

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.authority.folder / "admin.kubeconfig"

    def inside(self) -> contextlib.AbstractContextManager[None]:
        return self.machine.inside()

    def kubectl(self, *words: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        program = [programs.path("kubectl"), f"--kubeconfig={self.kubeconfig}"]
        return command(*program, *words, stdin=stdin, timeout_s=timeout_s)

    def heal(self) -> None:
        """Start what an earlier test ended, so that every test finds a whole cluster."""
        for name, start in self.control_plane.starters().items():
            if not self.machine.alive(name):
                start()
        self.control_plane.wait_for_api_server()
        for node in self.nodes.values():
            if not self.machine.alive(f"{node.name}-containerd"):
                node.kill()
                node.back()
            elif not self.machine.alive(f"{node.name}-kubelet"):
                node.resume_kubelet()
            found = self.api.get("Node", node.name)
            if found["spec"].get("unschedulable"):
                node.cordon(False)
            if int(found["status"]["allocatable"].get("nvidia.com/gpu", 0)) != node.spec.gpus:
                node.set_gpus(node.spec.gpus)

    @contextlib.contextmanager
    def namespace(self, *, pod_security: str = "restricted") -> Iterator[str]:
        """A namespace of its own for one test, with a pod security standard; removed after it."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        labels = {"pod-security.kubernetes.io/enforce": pod_security}
        metadata = {"name": name, "labels": labels}
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.api.wait("ServiceAccount", "default", bool, name)
        try:
            yield name
        finally:
            self.remove_namespace(name)

    def remove_namespace(self, name: str) -> None:
        """Remove a namespace and wait until nothing of it uses a node or a queue."""
        self.api.delete("Namespace", name)
        # who makes pods goes first, at once: the namespace's own controller takes its time
        owners = [("batch/v1", "Job")]
        owners += [(JOBSET, "JobSet")] if self.machine.alive("jobset") else []
        for version, kind in reversed(owners):
            for item in self.api.list(kind, name, version):
                self.api.delete(kind, item["metadata"]["name"], name, version)

        def idle() -> bool:
            pods = self.api.list("Pod", name)
            for pod in pods:
                self.api.delete("Pod", pod["metadata"]["name"], name, grace_s=0)
            return not pods and not (queues and self.api.list("Workload", name, KUEUE))

        queues = self.machine.alive("kueue")
        seconds = 60 + len(self.api.list("Pod", name)) / 4  # a benchmark has a thousand
        wait_until(idle, seconds=seconds, what=f"end of namespace {name}")
        for kind in ("ClusterRole", "ClusterRoleBinding"):
            self.api.delete_all(kind, f"{RBAC}/v1", selector=f"{NAMESPACE_LABEL}={name}")
        for volume in self.api.list("PersistentVolume"):
            if volume["spec"].get("claimRef", {}).get("namespace") == name:
                self.api.delete("PersistentVolume", volume["metadata"]["name"])

    def claim(self, namespace: str, name: str = "shared") -> Path:
        """Make a volume that all nodes share, and return its folder on this machine."""
        folder = self.machine.folder / "volumes" / f"{namespace}-{name}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        wanted: Object = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": folder.name,
        }
        spec: Object = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        spec |= {"capacity": {"storage": "1Gi"}}
        meta = {"name": folder.name}
        volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta}
        self.api.apply({**volume, "spec": {**spec, "hostPath": {"path": str(folder)}}})
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
        requests = {"resources": {"requests": {"storage": "1Gi"}}}
        self.api.apply({**claim, "spec": {**wanted, **requests}}, namespace=namespace)
        return folder

    def user(
        self, namespace: str, rules: list[Object], *, cluster_rules: list[Object] | None = None
    ) -> Path:
        """The kubeconfig of a new service account that may do just what the rules say."""
        name = f"user-{uuid.uuid4().hex[:8]}"
        meta = {"name": name, "namespace": namespace}
        self.api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        subject = {"kind": "ServiceAccount", **meta}
        for prefix, allowed in (("", rules), ("Cluster", cluster_rules or [])):
            role = {"apiGroup": RBAC, "kind": f"{prefix}Role", "name": name}
            labels = {NAMESPACE_LABEL: namespace}
            metadata = {"name": name, "labels": labels} if prefix else meta
            item = {"apiVersion": f"{RBAC}/v1", "metadata": metadata}
            self.api.apply({**item, "kind": f"{prefix}Role", "rules": allowed})
            bound = {"subjects": [subject], "roleRef": role}
            self.api.apply({**item, "kind": f"{prefix}RoleBinding", **bound})
        return self.authority.token_kubeconfig(name, self.token(namespace, name), namespace)

    def token(self, namespace: str, service_account: str, *, seconds: int = 3600) -> str:
        path = self.api.path("v1", "ServiceAccount", namespace)
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        body = {**request, "spec": {"expirationSeconds": seconds}}
        made = self.api.request("POST", f"{path}/{service_account}/token", body)
        return str(made["status"]["token"])


def machine_of(name: str) -> Machine:
    return Machine(name=name, folder=ROOT / name)


def up(name: str, specs: tuple[NodeSpec, ...] = NODES) -> Cluster:
    """Bring up a cluster; what an earlier one of that name left is removed first.

    Raises:
        programs.ProgramsMissing: a program is not here, or this is no place for a cluster.
        MachineError: something did not start; the text holds the end of its log.
    """
    cannot = obstacle()
    if cannot:
        raise programs.ProgramsMissing(cannot)
    machine = machine_of(name)
    machine.remove()
    machine.folder.mkdir(parents=True)
    machine.make_namespace()
    cluster = assemble(machine, specs)
    try:
        with machine.inside():
            cluster.control_plane.up()
            images = machine.folder / IMAGES
            image.write_archive(images)
            with ThreadPoolExecutor() as pool:  # its threads are born in this network
                list(pool.map(lambda node: node.start(images), cluster.nodes.values()))
            for node in cluster.nodes.values():
                node.wait_ready()
    except BaseException:
        cluster.api.close()
        machine.remove()
        raise
    return cluster


def assemble(machine: Machine, specs: tuple[NodeSpec, ...] = NODES) -> Cluster:
    """The handles of a cluster, whether or not it is up."""
    authority = Authority(folder=machine.folder / "pki", server=f"https://127.0.0.1:{API_PORT}")
    api = Api(authority.folder / "admin.kubeconfig")
    first = specs[0].name
    return Cluster(
        machine=machine,
        authority=authority,
        api=api,
        control_plane=ControlPlane(machine=machine, authority=authority, api=api, first_node=first),
        controllers=Controllers(machine=machine, authority=authority, api=api),
        nodes={
            spec.name: Node(spec=spec, machine=machine, authority=authority, api=api)
            for spec in specs
        },
    )


def obstacle() -> str | None:
    """Why there can be no cluster here, in one sentence; None where there can be one."""
    if os.geteuid() != 0:
        return "a Kubernetes cluster needs root: run as root"
    if not (CGROUPS / "cpuset").is_dir():
        return "the test cluster is made for cgroup version 1 and finds version 2"
    absent = programs.missing()
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return f"no {', '.join(absent[:3])}{more} here: run `make cluster-deps`"
    return None


@contextlib.contextmanager
def session() -> Iterator[Cluster]:
    """A cluster for as long as the caller lives: the first name that nobody else holds.

    The hold is a lock on a file, which ends with the process however that ends; so clusters that
    nobody holds, and that nobody asked to keep, are what killed sessions left, and are removed.
    """
    remove_abandoned()
    for number in range(1, 10):
        name = f"test{number}"
        lock = hold(name)
        if lock is not None:
            break
    else:
        raise programs.ProgramsMissing("nine test clusters run on this machine")
    with lock:
        cluster = up(name)
        try:
            yield cluster
        finally:
            cluster.api.close()
            cluster.machine.remove()


def hold(name: str) -> IO[str] | None:
    """Lock a cluster's name until the file is closed; None where another process has it."""
    ROOT.mkdir(parents=True, exist_ok=True)
    lock = (ROOT / f"{name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def keep(name: str) -> None:
    """Let a cluster outlive the process that made it."""
    (ROOT / name / "kept").touch()


def kept(name: str) -> bool:
    return (ROOT / name / "kept").exists()


def remove_abandoned() -> None:
    for name in names():
        lock = None if kept(name) else hold(name)
        if lock is not None:
            with lock:
                machine_of(name).remove()


def names() -> list[str]:
    """Every cluster of which something is left on this machine."""
    found = {folder.name for folder in ROOT.glob("*/")}
    found |= {path.name.removeprefix("parctl-") for path in (CGROUPS / "pids").glob("parctl-*/")}
    return sorted(found)
