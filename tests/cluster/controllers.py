"""Controllers that a test asks for: JobSet, Kueue, LeaderWorkerSet, KubeRay, kwok.

They run as processes beside the control plane, as administrators, and their admission webhooks are
called at a port of this machine; their own definitions and webhook lists are what the module that
they were built from brings, with only the addresses changed.
"""

import base64
import json
import shutil
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tests.cluster import programs
from tests.cluster.api import Api, Object, condition
from tests.cluster.certificates import Authority
from tests.cluster.machine import Machine, wait_until

DEFINITIONS = "apiextensions.k8s.io/v1"
# Webhooks on kinds that belong to everybody are left out of the system's own namespaces, and a
# controller that is down does not stop every pod of the cluster: as the projects install them.
SHARED_KINDS = ("pod", "deployment", "statefulset")
# The only kinds of Kueue that convert between versions by webhook.
CONVERTED = ("clusterqueues", "cohorts", "localqueues", "multikueueclusters", "workloads")

# A private view of /etc, with files of the cluster in place of the machine's.
PRIVATE_ETC = """
set -e
mount -t tmpfs tmpfs "$0"
mkdir "$0/upper" "$0/work"
mount -t overlay overlay -o lowerdir=/etc,upperdir="$0/upper",workdir="$0/work" /etc
cp "$1" /etc/resolv.conf
mkdir -p /etc/kueue/metrics
ln -s "$2" /etc/kueue/metrics/certs
shift 2
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    name: str
    port: int  # of its webhooks; health is at port + 100, metrics at port + 200
    configuration: Object | None = None  # None: it is configured by flags alone
    flags: tuple[str, ...] = ()

    @property
    def health_port(self) -> int:
        return self.port + 100


CONTROLLERS = {
    controller.name: controller
    for controller in (
        Controller(
            name="jobset",
            port=19443,
            configuration={"apiVersion": "config.jobset.x-k8s.io/v1alpha1"},
        ),
        Controller(
            name="kueue",
            port=19444,
            configuration={
                "apiVersion": "config.kueue.x-k8s.io/v1beta2",
                "manageJobsWithoutQueueName": False,
                "clientConnection": {"qps": 300, "burst": 500},
                "featureGates": {"VisibilityOnDemand": False},
                "integrations": {
                    "frameworks": [
                        "batch/job",
                        "pod",
                        "jobset.x-k8s.io/jobset",
                        "leaderworkerset.x-k8s.io/leaderworkerset",
                        "ray.io/rayjob",
                        "ray.io/raycluster",
                    ]
                },
            },
        ),
        Controller(
            name="lws",
            port=19445,
            configuration={"apiVersion": "config.lws.x-k8s.io/v1alpha1"},
        ),
        Controller(name="kuberay", port=19446),
        Controller(
            name="kwok",
            port=19447,
            flags=(
                "--manage-all-nodes=false",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                "--node-lease-duration-seconds=200",  # renewed in a quarter of that
                "--server-address=127.0.0.1:19547",
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Controllers:
    """Starts controllers. All methods are called inside the machine's network namespace."""

    machine: Machine
    authority: Authority
    api: Api

    def ensure(self, *names: str) -> None:
        """Bring up the named controllers that are not up."""
        for name in names:
            if not programs.PROGRAMS[name].built:
                raise programs.ProgramsMissing(f"no {name} here: run `make cluster-deps`")
            if not self.machine.alive(name):
                self.up(CONTROLLERS[name])

    def up(self, controller: Controller) -> None:
        definitions, webhooks = self.manifests(controller)
        namespace = {"name": f"{controller.name}-system"}
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})
        define(self.api, definitions)
        self.start(controller)
        for item in webhooks:
            self.api.apply(item)

    def start(self, controller: Controller) -> None:
        private = self.machine.folder / f"{controller.name}-etc"
        private.mkdir(exist_ok=True)
        certificates = self.machine.folder / "webhook"
        if not certificates.exists():
            certificates.mkdir()
            shutil.copyfile(self.authority.certificate("webhook"), certificates / "tls.crt")
            shutil.copyfile(self.authority.key("webhook"), certificates / "tls.key")
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", PRIVATE_ETC]
        words += [str(private), str(self.machine.folder / "resolv.conf"), str(certificates)]
        words.append(programs.path(controller.name))
        kubeconfig = str(self.authority.kubeconfig("admin"))
        if controller.configuration is not None:
            file = self.machine.folder / f"{controller.name}.json"
            file.write_text(json.dumps(self.configuration(controller, certificates)))
            words.append(f"--config={file}")
        if controller.name == "kwok":
            words.append(f"--kubeconfig={kubeconfig}")
            stages = programs.PROGRAMS["kwok"].manifests_path.glob("*.yaml")
            words += [f"--config={file}" for file in stages]
        self.machine.start(
            controller.name, [*words, *controller.flags], environment={"KUBECONFIG": kubeconfig}
        )
        self.wait_ready(controller)

    def configuration(self, controller: Controller, certificates: Path) -> Object:
        assert controller.configuration is not None
        return {
            **controller.configuration,
            "kind": "Configuration",
            "health": {"healthProbeBindAddress": f"127.0.0.1:{controller.health_port}"},
            "metrics": {"bindAddress": f"127.0.0.1:{controller.port + 200}"},
            "webhook": {
                "host": "127.0.0.1",
                "port": controller.port,
                "certDir": str(certificates),
            },
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
        }

    def wait_ready(self, controller: Controller) -> None:
        """Wait for the controller to be ready and for every webhook of its list to answer.

        No controller's readiness says that: LeaderWorkerSet's does not wait for its webhooks, and
        JobSet serves the port before it knows the paths. The API server refuses what a webhook that
        is not there should have seen.
        """
        _, lists = self.manifests(controller)
        webhooks = [
            webhook["clientConfig"]["url"] for item in lists for webhook in item["webhooks"]
        ]

        def ready() -> bool:
            self.machine.must_live(controller.name)
            path = "/healthz" if controller.configuration is None else "/readyz"
            try:
                if self.status(f"http://127.0.0.1:{controller.health_port}{path}") != 200:
                    return False
                return all(self.status(url, "POST") != 404 for url in webhooks)
            except OSError:
                return False

        wait_until(ready, seconds=60, what=f"controller {controller.name} ready")

    def status(self, url: str, method: str = "GET") -> int:
        """The HTTP status that a server of a controller answers with.

        Raises:
            OSError: there is no server.
        """
        trusted = ssl.create_default_context(cafile=str(self.authority.certificate("ca")))
        request = urllib.request.Request(url, method=method)
        try:
            with urllib.request.urlopen(request, timeout=2, context=trusted) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refusal:
            return refusal.code

    def manifests(self, controller: Controller) -> tuple[list[Object], list[Object]]:
        """The kinds that a controller defines, and the webhook lists, pointed at this machine."""
        folder = programs.PROGRAMS[controller.name].manifests_path
        definitions, webhooks = [], []
        for item in read_all(folder):
            if item["kind"] == "CustomResourceDefinition":
                if item["spec"]["names"]["plural"] in CONVERTED and controller.name == "kueue":
                    item["spec"]["conversion"] = {
                        "strategy": "Webhook",
                        "webhook": {
                            "clientConfig": self.client(controller, "/convert"),
                            "conversionReviewVersions": ["v1"],
                        },
                    }
                definitions.append(item)
            elif item["kind"].endswith("WebhookConfiguration"):
                item["metadata"]["name"] = f"{controller.name}-{item['metadata']['name']}"
                for webhook in item["webhooks"]:
                    path = webhook["clientConfig"]["service"]["path"]
                    webhook["clientConfig"] = self.client(controller, path)
                    if any(kind in webhook["name"] for kind in SHARED_KINDS):
                        webhook["namespaceSelector"] = not_in("kube-system", controller.name)
                        webhook["failurePolicy"] = "Ignore"
                webhooks.append(item)
        return definitions, webhooks

    def client(self, controller: Controller, path: str) -> Object:
        authority = base64.b64encode(self.authority.certificate("ca").read_bytes()).decode()
        return {"url": f"https://127.0.0.1:{controller.port}{path}", "caBundle": authority}

    def kill(self, name: str) -> None:
        self.machine.stop(name, signal.SIGKILL)

    def restart(self, name: str) -> None:
        """End a controller at once and start it again."""
        self.kill(name)
        self.start(CONTROLLERS[name])


def not_in(*namespaces: str) -> Object:
    key = "kubernetes.io/metadata.name"
    return {"matchExpressions": [{"key": key, "operator": "NotIn", "values": list(namespaces)}]}


def read_all(folder: Path) -> Iterator[Object]:
    for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
        for item in yaml.load_all(file.read_text(), yaml.CSafeLoader):  # megabytes
            if item:
                yield item


def define(api: Api, definitions: Sequence[Object]) -> None:
    """Make kinds known. `kubectl wait` fails at a definition that says nothing of itself yet."""
    for item in definitions:
        api.apply(item)
    for item in definitions:
        name, established = item["metadata"]["name"], condition("Established")
        api.wait("CustomResourceDefinition", name, established, None, DEFINITIONS)
