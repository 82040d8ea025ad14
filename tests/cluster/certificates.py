"""The cluster's certificate authority, and a kubeconfig for everyone who speaks to the API server.

Everybody has a name of their own, as on a real cluster: nodes are `system:node:NAME`, so that the
node authorizer and RBAC decide what each may do.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine import command

CURVE = ("-name", "prime256v1")
NEW = (
    *("openssl", "req", "-x509", "-new", "-nodes", "-days", "30"),
    *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
)
END = "basicConstraints=critical,CA:FALSE"  # `req -x509` makes authorities unless told
SERVER = "extendedKeyUsage=serverAuth,clientAuth"
CLIENT = "extendedKeyUsage=clientAuth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority in a folder of key and certificate files.

    Attributes:
        folder: holds `NAME.key` and `NAME.crt`; `ca.crt` is the authority's own.
        server: address of the API server, `https://HOST:PORT`.
    """

    folder: Path
    server: str

    def make(self, addresses: list[str], names: list[str]) -> None:
        """Make the authority and the certificates of the control plane."""
        self.folder.mkdir(parents=True, mode=0o700)
        subject = ["-subj", "/CN=test-cluster", "-keyout", str(self.key("ca"))]
        command(*NEW, *subject, "-out", str(self.certificate("ca")))
        hosts = [f"IP:{address}" for address in addresses] + [f"DNS:{name}" for name in names]
        self.sign("apiserver", "/CN=kube-apiserver", SERVER, f"subjectAltName={','.join(hosts)}")
        self.sign("webhook", "/CN=webhook", SERVER, "subjectAltName=IP:127.0.0.1,DNS:localhost")
        self.sign("admin", "/O=system:masters/CN=admin")
        self.sign("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet-client")
        self.sign("front-proxy", "/CN=front-proxy-client")
        for component in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
            self.sign(component, f"/CN=system:{component}")
        pair = [str(self.folder / f"service-accounts.{kind}") for kind in ("key", "pub")]
        command("openssl", "ecparam", *CURVE, "-genkey", "-noout", "-out", pair[0])
        command("openssl", "ec", "-in", pair[0], "-pubout", "-out", pair[1])

    def sign(self, name: str, subject: str, *extensions: str) -> None:
        authority = ["-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))]
        files = ["-keyout", str(self.key(name)), "-out", str(self.certificate(name))]
        usage = extensions or (CLIENT,)
        added = [word for text in (END, *usage) for word in ("-addext", text)]
        command(*NEW, *authority, *files, "-subj", subject, *added)

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def kubeconfig(self, name: str) -> Path:
        """Write the kubeconfig of someone who has a certificate, and return its path."""
        user = {
            "client-certificate-data": encoded(self.certificate(name)),
            "client-key-data": encoded(self.key(name)),
        }
        return self.write_kubeconfig(name, user)

    def token_kubeconfig(self, name: str, token: str, namespace: str) -> Path:
        """Write the kubeconfig of someone who has a token."""
        return self.write_kubeconfig(name, {"token": token}, namespace)

    def write_kubeconfig(self, name: str, user: dict[str, str], namespace: str = "default") -> Path:
        cluster = {
            "server": self.server,
            "certificate-authority-data": encoded(self.certificate("ca")),
        }
        context = {"cluster": "test", "user": name, "namespace": namespace}
        file = self.folder / f"{name}.kubeconfig"
        file.touch(mode=0o600)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        file.write_text(json.dumps(document, indent=1))
        return file


def encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
