"""Helm against the test cluster, in namespaces of the test's own."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.api import Object, condition
from tests.cluster.cluster import Cluster
from tests.cluster.machine import MachineError, wait_until
from tests.helm.chart import CHART, IMAGE_VALUES, helm, write_values

DEFINITION = "nodetopologies.parctl.dev"
RECORDS = "parctl.dev/v1alpha1"
NVML = Path(__file__).resolve().parents[3] / "shared" / "data" / "nvml"
GPU_NODES = ("gpu-1", "gpu-2", "gpu-3")
# short times, small pods; a node reads itself every five seconds
TEST_VALUES = {
    **IMAGE_VALUES,
    "discovery": {"intervalSeconds": 5, "pollSeconds": 1},
    "networkPolicy": {"apiServerPorts": [443, 6443]},
    "test": {"timeoutSeconds": 90},
}


def need_nvml() -> None:
    """Skip without the library that stands for NVIDIA's."""
    if not NVML.is_dir():
        pytest.skip("no fake NVML in ../shared/data/nvml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A namespace of the cluster where a release goes, and Helm pointed at it."""

    cluster: Cluster
    namespace: str
    folder: Path
    program: str

    def helm(self, *words: str, check: bool = True, timeout_s: float = 180) -> str:
        """Run Helm as administrator; return what it printed, stderr included if it may fail."""
        flags = ("--namespace", self.namespace, "--kubeconfig", str(self.cluster.kubeconfig))
        done = helm(
            self.program, *words, *flags, check=check, timeout_s=timeout_s, folder=self.folder
        )
        return done.stdout if check else done.stdout + done.stderr

    def install(
        self, release: str, chart: Path = CHART, *parts: dict[str, Any], verb: str = "install"
    ) -> str:
        values = write_values(self.folder, f"{release}-{verb}", TEST_VALUES, *parts)
        return self.helm(verb, release, str(chart), "--values", str(values))

    def pods(self, component: str = "discovery") -> list[Object]:
        selector = f"app.kubernetes.io/component={component}"
        return self.cluster.api.list("Pod", self.namespace, selector=selector)

    def wait_discovery(self, count: int, seconds: float = 60) -> None:
        """Wait until so many discovery pods are ready."""

        def ready() -> bool:
            pods = [p for p in self.pods() if "deletionTimestamp" not in p["metadata"]]
            return len(pods) == count and all(condition("Ready")(pod) for pod in pods)

        try:
            wait_until(ready, seconds=seconds, what=f"{count} discovery pods ready")
        except Exception as error:
            words = list(self.cluster.api.events(self.namespace))[-8:]
            logs = self.cluster.kubectl(
                "-n", self.namespace, "logs", "-l", "app.kubernetes.io/component=discovery"
            )
            raise AssertionError(f"{error}\n{words}\n{logs}") from error

    def record(self, node: str) -> Object | None:
        return self.cluster.api.find("NodeTopology", node, api_version=RECORDS)

    def wait_records(self, *nodes: str, seconds: float = 60) -> dict[str, Object]:
        """Wait until every node has a record with GPUs, and return them."""
        found: dict[str, Object] = {}

        def there() -> bool:
            for node in nodes:
                record = self.record(node)
                if record is None or not record["spec"].get("gpus"):
                    return False
                found[node] = record
            return True

        try:
            wait_until(there, seconds=seconds, what=f"records of {', '.join(nodes)}")
        except Exception as error:
            logs = self.cluster.kubectl(
                "-n", self.namespace, "logs", "-l", "app.kubernetes.io/component=discovery"
            )
            records = {node: self.record(node) for node in nodes}
            raise AssertionError(f"{error}\n{logs}\n{records}") from error
        return found

    def belongings(self, release: str) -> list[str]:
        """Every object in the cluster that says it is of this release."""
        kinds = self.cluster.kubectl("api-resources", "--verbs=list,delete", "-o", "name").split()
        kinds = [kind for kind in kinds if not kind.startswith(("events", "podmetrics"))]
        selector = f"app.kubernetes.io/instance={release}"
        words = ["get", ",".join(kinds), "-A", "-l", selector, "-o", "name"]
        try:
            return self.cluster.kubectl(*words).split()
        except MachineError as error:
            if "doesn't have a resource type" not in str(error):
                raise
            return self.belongings(release)  # a definition went between the two


@contextmanager
def site_in(cluster: Cluster, folder: Path, program: str) -> Iterator[Site]:
    """A namespace that permits host paths; what a failed test left of its releases goes with it."""
    with cluster.namespace(pod_security="privileged") as namespace:
        site = Site(cluster=cluster, namespace=namespace, folder=folder, program=program)
        try:
            yield site
        finally:
            everything = ["--all"] if program == "helm3" else []  # Helm 4 lists all as it is
            for release in yaml.safe_load(site.helm("list", *everything, "-o", "json")) or []:
                site.helm("uninstall", release["name"], check=False)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    with site_in(cluster, tmp_path, "helm4") as made:
        yield made


def release_name() -> str:
    return f"r{uuid.uuid4().hex[:6]}"


def token_of(site: Site, pod: Object) -> Path:
    """The kubeconfig of a pod's own token, which names its node."""
    account = pod["spec"]["serviceAccountName"]
    path = site.cluster.api.path("v1", "ServiceAccount", site.namespace)
    about = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"]}
    spec = {"expirationSeconds": 600, "boundObjectRef": {**about, "uid": pod["metadata"]["uid"]}}
    body: dict[str, Any] = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
    made = site.cluster.api.request("POST", f"{path}/{account}/token", {**body, "spec": spec})
    token = str(made["status"]["token"])
    return site.cluster.authority.token_kubeconfig("daemon", token, site.namespace)
