"""A node: a real kubelet on a real containerd, with GPUs that only the API server believes in.

Every node has its own containerd, sockets, ports, cgroup and bridge of pods; all share the network
namespace of the cluster, so no routes are needed between them. A node that is killed loses its
link first, then every process at once: peers see silence, as when the power goes, and not the
polite end of a connection.
"""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster import image, programs
from tests.cluster.api import Api, Object, condition
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import DNS_SERVICE
from tests.cluster.machine import CGROUPS, Machine, MachineError, command, wait_until

IMAGES = "images.tar"  # in the machine's folder
KUBELET_PORT = 10250
DEVICE_PLUGINS = "device-plugins/kubelet.sock"
STATUS_S = 2
CONTROLLERS = (
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "systemd",
)

# What NVIDIA's operator says of a node with eight H100s, as far as schedulers and parctl read it.
GPU_LABELS = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.family": "hopper",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/gpu.sharing-strategy": "none",
    "nvidia.com/mig.capable": "true",
}
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
BLOCK_LABEL = "parctl.test/topology-block"
RACK_LABEL = "parctl.test/topology-rack"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    name: str
    index: int  # from 1; decides addresses and ports
    gpus: int = 0
    block: str = "a"
    rack: str = "a1"
    tainted: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_labels(self) -> dict[str, str]:
        gpu = {**GPU_LABELS, "nvidia.com/gpu.count": str(self.gpus)} if self.gpus else {}
        return {**gpu, BLOCK_LABEL: self.block, RACK_LABEL: self.rack, **self.labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of a cluster. All methods are called inside the machine's network namespace."""

    spec: NodeSpec
    machine: Machine
    authority: Authority
    api: Api

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def folder(self) -> Path:
        return self.machine.folder / "nodes" / self.name

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def address(self) -> str:
        return f"10.20.0.{10 + self.spec.index}"

    @property
    def bridge(self) -> str:
        return f"pods{self.spec.index}"

    @property
    def daemons(self) -> str:
        """The cgroup of containerd, its shims and the kubelet."""
        return f"{self.name}/daemons"

    def start(self, images: Path) -> None:
        """Start the node's processes; `wait_ready` waits for the result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command("ip", "addr", "replace", f"{self.address}/24", "dev", "nodes")
        self.write_network()
        self.start_containerd()
        containerd = ("ctr", "-a", str(self.socket), "-n", "k8s.io")
        command(*containerd, "images", "import", str(images))
        self.start_kubelet()

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until the node is ready and its GPUs can be had."""

        def registered() -> object:
            self.machine.must_live(f"{self.name}-containerd")
            if self.lost_socket():
                self.start_kubelet()
            self.machine.must_live(f"{self.name}-kubelet")
            return self.api.find("Node", self.name)

        wait_until(registered, seconds=seconds, what=f"registration of {self.name}")
        self.set_gpus(self.spec.gpus)
        self.api.wait("Node", self.name, ready, seconds=seconds)

    def lost_socket(self) -> bool:
        """Whether the kubelet ended because another one took its socket of device plugins.

        All kubelets of a machine make it at one fixed path, whatever their root is, and remove what
        they find there. Two that do so in the same instant are not on one real node; starting again
        is what an init system would do.
        """
        kubelet = f"{self.name}-kubelet"
        ended = self.machine.log_tail(kubelet)
        taken = DEVICE_PLUGINS in ended and "address already in use" in ended
        return taken and not self.machine.alive(kubelet)

    def set_gpus(self, count: int) -> None:
        """Say how many GPUs the node has; the kubelet keeps a resource it does not know."""
        amount = {"nvidia.com/gpu": str(count)} if count else {}
        status = {"status": {"capacity": amount, "allocatable": amount}}
        self.api.patch("Node", self.name, status, subresource="status")
        if count:
            labels = {"nvidia.com/gpu.count": str(count)}
            self.api.patch("Node", self.name, {"metadata": {"labels": labels}})

    # -------------------------------------------------------------- processes

    def write_network(self) -> None:
        """Write the CNI network: one bridge for the pods of this node."""
        folder = self.folder / "cni"
        folder.mkdir(exist_ok=True)
        ranges = [[{"subnet": f"10.21.{self.spec.index}.0/24"}]]
        plugin = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.folder / "addresses"),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}
        (folder / "10-pods.conflist").write_text(json.dumps(network))

    def start_containerd(self) -> None:
        base = self.folder / "base.json"
        base.write_text(json.dumps(base_specification()))
        config = self.folder / "containerd.toml"
        config.write_text(
            CONTAINERD.format(folder=self.folder, socket=self.socket, base=base, pause=image.PAUSE)
        )
        name = f"{self.name}-containerd"
        self.machine.start(name, ["containerd", "-c", str(config)], group=self.daemons)

        def answers() -> bool:
            self.machine.must_live(name)
            try:
                command("ctr", "-a", str(self.socket), "version")
            except MachineError:
                return False
            return True

        wait_until(answers, seconds=30, what=f"containerd of {self.name}")

    def start_kubelet(self) -> None:
        self.make_cgroups()
        user = f"node-{self.name}"
        if not self.authority.certificate(user).exists():
            self.authority.sign(user, f"/O=system:nodes/CN=system:node:{self.name}")
        config = self.folder / "kubelet.json"
        config.write_text(json.dumps(self.kubelet_configuration()))
        labels = ",".join(f"{key}={value}" for key, value in self.spec.all_labels.items())
        self.machine.start(
            f"{self.name}-kubelet",
            [
                programs.path("kubelet"),
                f"--config={config}",
                f"--kubeconfig={self.authority.kubeconfig(user)}",
                f"--root-dir={self.folder}/kubelet",
                f"--cert-dir={self.folder}/kubelet-certificates",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
                f"--node-labels={labels}",
            ],
            group=self.daemons,
        )

    def kubelet_configuration(self) -> dict[str, object]:
        port = KUBELET_PORT + 10 * self.spec.index
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "port": port,
            "healthzBindAddress": "127.0.0.1",
            "healthzPort": port + 1,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.authority.certificate("ca"))},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.machine.cgroup}/{self.name}",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "failCgroupV1": False,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.machine.folder / "resolv.conf"),
            "podLogsDir": str(self.folder / "pod-logs"),
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "localStorageCapacityIsolation": False,
            "nodeStatusUpdateFrequency": f"{STATUS_S}s",
            "nodeLeaseDurationSeconds": 4 * STATUS_S,  # renewed every quarter of it
            "syncFrequency": "10s",
            "maxPods": 200,
            "registerWithTaints": [GPU_TAINT] if self.spec.tainted else [],
        }

    def make_cgroups(self) -> None:
        """Make the parent of the node's pods; version 1 hands no processors down by itself."""
        for controller in CONTROLLERS:
            self.machine.make_cgroup(controller, self.name)
        for folder in (self.machine.cgroup, f"{self.machine.cgroup}/{self.name}"):
            for name in ("cpuset.cpus", "cpuset.mems"):
                whole = (CGROUPS / "cpuset" / name).read_text()
                (CGROUPS / "cpuset" / folder / name).write_text(whole)

    # ----------------------------------------------------------------- faults

    def kill(self) -> None:
        """End the node as a loss of power would: silence, and every process dead."""
        if self.linked():
            command("ip", "link", "set", self.bridge, "down")
        self.machine.kill_group(self.name)

    def linked(self) -> bool:
        try:
            command("ip", "link", "show", self.bridge)
        except MachineError:
            return False
        return True

    def back(self) -> None:
        """Start the node again after `kill`: its disk is as it was, its memory is not."""
        self.machine.unmount(self.folder)
        self.machine.remove_cgroups(self.name)
        command("rm", "-rf", str(self.folder / "state"), str(self.folder / "addresses"))
        self.start(self.machine.folder / IMAGES)
        if self.linked():
            command("ip", "link", "set", self.bridge, "up")
        self.wait_ready()

    def stop_kubelet(self) -> None:
        """End the kubelet only: containers run on, the node falls silent."""
        self.machine.stop(f"{self.name}-kubelet", signal.SIGKILL)

    def resume_kubelet(self) -> None:
        self.start_kubelet()
        self.wait_ready()

    def drain(self) -> None:
        """Cordon the node and evict its pods, as `kubectl drain` does."""
        self.cordon()
        for pod in self.api.list("Pod"):
            if pod["spec"].get("nodeName") == self.name:
                meta = pod["metadata"]
                path = self.api.path("v1", "Pod", meta["namespace"])
                eviction = {
                    "apiVersion": "policy/v1",
                    "kind": "Eviction",
                    "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
                }
                self.api.request("POST", f"{path}/{meta['name']}/eviction", eviction)

    def cordon(self, unschedulable: bool = True) -> None:
        self.api.patch("Node", self.name, {"spec": {"unschedulable": unschedulable}})


def ready(node: Object) -> bool:
    """Whether a node is ready, and the controllers have seen it too."""
    taints = node["spec"].get("taints", [])
    silent = [t for t in taints if t["key"].startswith("node.kubernetes.io/")]
    return condition("Ready")(node) and not silent


def base_specification() -> dict[str, object]:
    """Return what every container starts from: the runtime's own defaults and the bind mounts."""
    specification = json.loads(command("ctr", "oci", "spec"))
    for destination, source in image.binds().items():
        mount = {"destination": destination, "source": source, "type": "bind"}
        specification["mounts"].append({**mount, "options": ["rbind", "ro"]})
    specification["process"].pop("rlimits", None)
    assert isinstance(specification, dict)
    return specification


CONTAINERD = """
version = 2
root = "{folder}/containerd"
state = "{folder}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  stream_server_port = "0"
  # A machine that is itself a container may not lower a process's score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "{base}"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""
