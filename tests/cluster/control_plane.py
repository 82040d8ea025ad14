"""The control plane as processes of this machine: etcd, API server, controllers, scheduler, DNS.

Times are short where a test would wait for them: a silent node is noticed in eight seconds and its
pods are given up five seconds later, unless a pod says otherwise.
"""

import http.client
import json
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster import programs
from tests.cluster.api import Api, ApiError
from tests.cluster.certificates import Authority
from tests.cluster.machine import Machine, command, wait_until

GATEWAY = "10.20.0.1"  # this machine as nodes and pods see it; node I has 10.20.0.(10+I)
NODE_ADDRESSES = "10.20.0.0/24"
POD_ADDRESSES = "10.21.0.0/16"  # node I has 10.21.I.0/24
SERVICE_ADDRESSES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"

API_PORT = 16443
ETCD = "http://127.0.0.1:23790"
ETCD_PEER = "http://127.0.0.1:23800"
CONTROLLER_MANAGER_PORT = 16257
SCHEDULER_PORT = 16259
PROXY_HEALTH_PORT = 10256

NODE_GRACE_S = 8
EVICTION_S = 5

COREFILE = f"""cluster.local in-addr.arpa {{
    bind {GATEWAY}
    errors
    kubernetes {{
        kubeconfig KUBECONFIG
        ttl 2
    }}
}}
. {{
    bind {GATEWAY}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
# CoreDNS runs outside of the cluster that it serves, so its Service has hand-made endpoints.
DNS = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {DNS_SERVICE}
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns-1
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv4
endpoints: [{{addresses: [{GATEWAY}], conditions: {{ready: true}}}}]
ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Starts and restarts the processes that are the cluster without its nodes.

    All methods are called inside the machine's network namespace.
    """

    machine: Machine
    authority: Authority
    api: Api
    first_node: str  # the one proxy speaks as this node

    def up(self) -> None:
        """Start everything."""
        self.make_network()
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        names += ["kubernetes.default.svc.cluster.local", "localhost"]
        self.authority.make(["127.0.0.1", GATEWAY, API_SERVICE], names)
        self.start_etcd()
        self.authority.kubeconfig("admin")
        self.start_api_server()
        self.wait_for_api_server()
        # Not before: the controller manager ends when RBAC has not been set up yet.
        self.start_controller_manager()
        self.start_scheduler()
        self.api.apply_all(DNS)
        self.start_dns()
        self.start_proxy()
        self.machine.must_live("kube-controller-manager", "kube-scheduler", "coredns", "kube-proxy")
        wait_until(
            lambda: self.api.find("ServiceAccount", "default", "default"),
            seconds=30,
            what="service account of the default namespace",
        )

    def make_network(self) -> None:
        """Give nodes a bridge; one with no port stays down, so it has one."""
        for line in (
            "link set lo up",
            "link add nodes type bridge",
            f"addr add {GATEWAY}/24 dev nodes",
            "link add port0 type veth peer name port1",
            "link set port0 master nodes",
            "link set port0 up",
            "link set port1 up",
            "link set nodes up",
            "route add default dev nodes",  # without a route, a Service's address is unreachable
        ):
            command("ip", *line.split())
        for name in ("ip_forward", "conf/all/route_localnet"):
            command("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/{name}")

    def start_etcd(self) -> None:
        self.machine.start(
            "etcd",
            [
                programs.path("etcd"),
                f"--data-dir={self.machine.folder}/etcd",
                f"--listen-client-urls={ETCD}",
                f"--advertise-client-urls={ETCD}",
                f"--listen-peer-urls={ETCD_PEER}",
                f"--initial-advertise-peer-urls={ETCD_PEER}",
                f"--initial-cluster=default={ETCD_PEER}",
                "--unsafe-no-fsync",
            ],
        )

    def start_api_server(self) -> None:
        of = self.authority
        self.machine.start(
            "kube-apiserver",
            [
                programs.path("kube-apiserver"),
                "--bind-address=0.0.0.0",
                f"--advertise-address={GATEWAY}",
                f"--secure-port={API_PORT}",
                f"--etcd-servers={ETCD}",
                f"--cert-dir={of.folder}",
                f"--tls-cert-file={of.certificate('apiserver')}",
                f"--tls-private-key-file={of.key('apiserver')}",
                f"--client-ca-file={of.certificate('ca')}",
                f"--kubelet-client-certificate={of.certificate('apiserver-kubelet')}",
                f"--kubelet-client-key={of.key('apiserver-kubelet')}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--requestheader-client-ca-file={of.certificate('ca')}",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-username-headers=X-Remote-User",
                f"--proxy-client-cert-file={of.certificate('front-proxy')}",
                f"--proxy-client-key-file={of.key('front-proxy')}",
                f"--service-account-key-file={of.folder}/service-accounts.pub",
                f"--service-account-signing-key-file={of.key('service-accounts')}",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                f"--default-not-ready-toleration-seconds={EVICTION_S}",
                f"--default-unreachable-toleration-seconds={EVICTION_S}",
                f"--audit-policy-file={self.audit_policy()}",
                f"--audit-log-path={self.machine.logs}/audit.log",
                "--audit-log-maxsize=1000",
            ],
        )

    def audit_policy(self) -> str:
        """Log who asked for what, once per request: tests count the calls that parctl makes."""
        file = self.machine.folder / "audit.json"
        rule = {"level": "Metadata", "omitStages": ["RequestReceived"]}
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [rule]}
        file.write_text(json.dumps(policy))
        return str(file)

    def wait_for_api_server(self, seconds: float = 60) -> None:
        def ready() -> bool:
            self.machine.must_live("etcd", "kube-apiserver")
            try:
                return self.api.raw("GET", "/readyz") == "ok"
            except (OSError, ApiError, http.client.HTTPException):
                return False

        wait_until(ready, seconds=seconds, what="API server ready")

    def start_controller_manager(self, node_grace_s: int = NODE_GRACE_S) -> None:
        name = "kube-controller-manager"
        of = self.authority
        self.machine.start(
            name,
            [
                programs.path(name),
                *self.client_flags(name),
                f"--secure-port={CONTROLLER_MANAGER_PORT}",
                "--use-service-account-credentials=true",
                f"--service-account-private-key-file={of.key('service-accounts')}",
                f"--root-ca-file={of.certificate('ca')}",
                f"--cluster-signing-cert-file={of.certificate('ca')}",
                f"--cluster-signing-key-file={of.key('ca')}",
                f"--node-monitor-grace-period={node_grace_s}s",
                "--node-monitor-period=1s",
                "--kube-api-qps=400",  # thousands of nodes and pods are made at once by some tests
                "--kube-api-burst=800",
            ],
        )
        wait_for_health(CONTROLLER_MANAGER_PORT, name)

    def start_scheduler(self) -> None:
        name = "kube-scheduler"
        self.machine.start(
            name,
            [
                programs.path(name),
                *self.client_flags(name),
                f"--secure-port={SCHEDULER_PORT}",
                "--kube-api-qps=400",
                "--kube-api-burst=800",
            ],
        )
        wait_for_health(SCHEDULER_PORT, name)

    def client_flags(self, name: str) -> list[str]:
        config = self.authority.kubeconfig(name)
        return [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.authority.folder}",
            "--leader-elect=false",
        ]

    def start_dns(self) -> None:
        corefile = self.machine.folder / "Corefile"
        corefile.write_text(COREFILE.replace("KUBECONFIG", str(self.authority.kubeconfig("admin"))))
        (self.machine.folder / "resolv.conf").write_text(f"nameserver {DNS_SERVICE}\n")
        self.machine.start("coredns", [programs.path("coredns"), "-conf", str(corefile)])

    def start_proxy(self) -> None:
        """Start one proxy for all nodes: they share this network namespace."""
        file = self.machine.folder / "kube-proxy.json"
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                    "kind": "KubeProxyConfiguration",
                    "mode": "nftables",
                    "bindAddress": GATEWAY,
                    "clusterCIDR": POD_ADDRESSES,
                    "hostnameOverride": self.first_node,
                    "healthzBindAddress": f"127.0.0.1:{PROXY_HEALTH_PORT}",
                    "metricsBindAddress": "127.0.0.1:10249",
                    "clientConnection": {
                        "kubeconfig": str(self.authority.kubeconfig("kube-proxy"))
                    },
                    "conntrack": {
                        "maxPerCore": 0,
                        "tcpEstablishedTimeout": "0s",
                        "tcpCloseWaitTimeout": "0s",
                    },
                    "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
                }
            )
        )
        self.machine.start("kube-proxy", [programs.path("kube-proxy"), f"--config={file}"])

    def starters(self) -> dict[str, Callable[[], None]]:
        """How each process is started, in the order of need."""
        return {
            "etcd": self.start_etcd,
            "kube-apiserver": self.start_api_server,
            "kube-controller-manager": self.start_controller_manager,
            "kube-scheduler": self.start_scheduler,
            "coredns": self.start_dns,
            "kube-proxy": self.start_proxy,
        }

    # ----------------------------------------------------------------- faults

    def kill_api_server(self) -> None:
        self.machine.stop("kube-apiserver", signal.SIGKILL)

    def restart_api_server(self) -> None:
        """End the API server at once and start it again on the same data."""
        self.kill_api_server()
        self.start_api_server()
        self.wait_for_api_server()

    def restart_controller_manager(self, node_grace_s: int = NODE_GRACE_S) -> None:
        """End the controllers at once and start them, with other patience for silent nodes."""
        self.machine.stop("kube-controller-manager", signal.SIGKILL)
        self.start_controller_manager(node_grace_s)


def wait_for_health(port: int, name: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # a certificate of its own

    def healthy() -> bool:
        try:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=context)
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    wait_until(healthy, seconds=30, what=f"health of {name}")
