"""The cluster is a real one: what runs, dies and is noticed in it does so as in production."""

import json
import time

import pytest
from tests.cluster.api import ApiError, Object, condition, pod_phase
from tests.cluster.cluster import Cluster
from tests.cluster.machine import MachineError
from tests.cluster.pods import exit_code, headless_service, pod, python

pytestmark = pytest.mark.cluster
ENDED = pod_phase("Succeeded", "Failed")
WAIT_FOR_EVER = python("import time", "time.sleep(600)")


def test_every_node_is_ready_and_says_what_gpus_it_has(cluster: Cluster) -> None:
    nodes = {node["metadata"]["name"]: node for node in cluster.api.list("Node")}

    assert {name: condition("Ready")(node) for name, node in nodes.items()} == {
        "cpu-1": True,
        "gpu-1": True,
        "gpu-2": True,
        "gpu-3": True,
    }
    gpus = {
        name: node["status"]["allocatable"].get("nvidia.com/gpu") for name, node in nodes.items()
    }
    assert gpus == {"cpu-1": None, "gpu-1": "2", "gpu-2": "2", "gpu-3": "2"}
    assert "taints" not in nodes["gpu-1"]["spec"]
    assert nodes["gpu-3"]["spec"]["taints"][0]["key"] == "nvidia.com/gpu"


def test_gpus_of_a_node_are_given_out_once(cluster: Cluster, namespace: str) -> None:
    here: Object = {"nodeSelector": {"kubernetes.io/hostname": "gpu-1"}}
    cluster.api.apply(pod("first", WAIT_FOR_EVER, gpus=2, **here), namespace=namespace)
    cluster.api.wait("Pod", "first", pod_phase("Running"), namespace)

    cluster.api.apply(pod("second", WAIT_FOR_EVER, gpus=1, **here), namespace=namespace)

    waiting = cluster.api.wait("Pod", "second", condition("PodScheduled", "False"), namespace)
    why = next(c for c in waiting["status"]["conditions"] if c["type"] == "PodScheduled")
    assert "Insufficient nvidia.com/gpu" in why["message"]


def test_a_pod_runs_the_checkout_with_torch_and_is_not_root(
    cluster: Cluster, namespace: str
) -> None:
    lines = "import json, os, parctl, torch; print(json.dumps([os.getuid(), torch.__version__]))"
    cluster.api.apply(pod("probe", ["python", "-c", lines]), namespace=namespace)

    ended = cluster.api.wait("Pod", "probe", ENDED, namespace, seconds=120)

    said = cluster.api.log("probe", namespace)
    assert exit_code(ended) == 0, said
    assert json.loads(said)[0] == 1000


def test_the_namespace_refuses_a_pod_that_may_become_root(cluster: Cluster, namespace: str) -> None:
    item = pod("root", WAIT_FOR_EVER)
    item["spec"]["securityContext"]["runAsNonRoot"] = False

    with pytest.raises(ApiError, match="violates PodSecurity") as refused:
        cluster.api.apply(item, namespace=namespace)
    assert refused.value.status == 403


def test_pods_of_two_nodes_reach_each_other_by_name(cluster: Cluster, namespace: str) -> None:
    listen = python(
        "import socket",
        "server = socket.create_server(('', 29500))",
        "peer, _ = server.accept()",
        "peer.sendall(b'from the other node')",
    )
    dial = python(
        "import socket, time",
        "for attempt in range(200):",
        "    try:",
        "        print(socket.create_connection(('server.peers', 29500)).recv(99).decode())",
        "        break",
        "    except OSError as error:",
        "        time.sleep(0.1)",
    )
    cluster.api.apply(headless_service("peers", {"group": "peers"}), namespace=namespace)
    for name, node, command in (("server", "gpu-1", listen), ("client", "gpu-2", dial)):
        item = pod(name, command, subdomain="peers", hostname=name, nodeName=node)
        item["metadata"]["labels"]["group"] = "peers"
        cluster.api.apply(item, namespace=namespace)

    cluster.api.wait("Pod", "client", ENDED, namespace, seconds=60)

    assert cluster.api.log("client", namespace) == "from the other node\n"


def test_a_pod_asks_the_api_server_with_its_service_account(
    cluster: Cluster, namespace: str
) -> None:
    ask = python(
        "import json, os, ssl, urllib.request",
        "here = '/var/run/secrets/kubernetes.io/serviceaccount'",
        "host = os.environ['KUBERNETES_SERVICE_HOST']",
        "context = ssl.create_default_context(cafile=here + '/ca.crt')",
        "token = open(here + '/token').read()",
        "request = urllib.request.Request('https://%s/version' % host)",
        "request.add_header('Authorization', 'Bearer ' + token)",
        "print(json.load(urllib.request.urlopen(request, context=context))['minor'])",
    )
    cluster.api.apply(pod("asking", ask), namespace=namespace)

    cluster.api.wait("Pod", "asking", ENDED, namespace, seconds=60)

    assert cluster.api.log("asking", namespace) == "36\n"


def test_a_container_past_its_memory_limit_is_killed(cluster: Cluster, namespace: str) -> None:
    eat = python("kept = bytearray(200 * 2**20)")
    cluster.api.apply(pod("hungry", eat, memory="50Mi"), namespace=namespace)

    ended = cluster.api.wait("Pod", "hungry", ENDED, namespace, seconds=60)

    state = ended["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)


def test_a_deleted_pod_is_told_and_then_gone(cluster: Cluster, namespace: str) -> None:
    leave = python("import signal", "signal.sigwait([signal.SIGTERM])", "print('told', flush=True)")
    cluster.api.apply(pod("leaving", leave), namespace=namespace)
    cluster.api.wait("Pod", "leaving", pod_phase("Running"), namespace)

    cluster.api.delete("Pod", "leaving", namespace)

    deadline = time.monotonic() + 20
    while cluster.api.find("Pod", "leaving", namespace):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_dead_node_is_noticed_within_15_s_and_comes_back(
    cluster: Cluster, namespace: str
) -> None:
    node = cluster.nodes["gpu-2"]
    item = pod("victim", WAIT_FOR_EVER, nodeName="gpu-2")
    cluster.api.apply(item, namespace=namespace)
    cluster.api.wait("Pod", "victim", pod_phase("Running"), namespace)

    start = time.monotonic()
    node.kill()
    cluster.api.wait("Node", "gpu-2", condition("Ready", "Unknown"), seconds=30)

    assert time.monotonic() - start < 15
    given_up = lambda found: found["metadata"].get("deletionTimestamp")  # noqa: E731
    cluster.api.wait("Pod", "victim", given_up, namespace, seconds=20)
    node.back()
    after = cluster.api.get("Node", "gpu-2")
    assert condition("Ready")(after)
    assert after["status"]["allocatable"]["nvidia.com/gpu"] == "2"


def test_a_stopped_kubelet_leaves_its_containers_running(cluster: Cluster, namespace: str) -> None:
    node = cluster.nodes["gpu-2"]
    item = pod("steady", WAIT_FOR_EVER, nodeName="gpu-2", tolerations=[{"operator": "Exists"}])
    cluster.api.apply(item, namespace=namespace)
    cluster.api.wait("Pod", "steady", pod_phase("Running"), namespace)
    before = containers(cluster, "gpu-2")

    node.stop_kubelet()
    cluster.api.wait("Node", "gpu-2", condition("Ready", "Unknown"), seconds=30)
    during = containers(cluster, "gpu-2")
    node.resume_kubelet()

    assert before <= during
    assert cluster.api.get("Pod", "steady", namespace)["status"]["phase"] == "Running"


def containers(cluster: Cluster, node: str) -> set[int]:
    """Processes of a node that are not its daemons."""
    daemons = set(cluster.machine.processes(f"{node}/daemons"))
    return set(cluster.machine.processes(node)) - daemons


def test_objects_outlive_the_api_server(cluster: Cluster, namespace: str) -> None:
    marker = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "marker"}}
    cluster.api.apply({**marker, "data": {"key": "value"}}, namespace=namespace)

    cluster.control_plane.kill_api_server()
    with pytest.raises(OSError):
        cluster.api.get("ConfigMap", "marker", namespace)
    cluster.control_plane.restart_api_server()

    assert cluster.api.get("ConfigMap", "marker", namespace)["data"] == {"key": "value"}


def test_a_user_may_do_only_what_its_role_says(cluster: Cluster, namespace: str) -> None:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
    user = cluster.user(namespace, [rule])
    as_user = ["--kubeconfig", str(user), "--namespace", namespace]

    assert cluster.kubectl(*as_user, "get", "pods", "-o", "name") == ""
    with pytest.raises(MachineError, match=r'pods "probe" is forbidden.* cannot delete resource'):
        cluster.kubectl(*as_user, "delete", "pod", "probe")
