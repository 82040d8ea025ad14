"""Which cluster to speak to, and as whom: kubeconfig files as kubectl reads them, or the pod's own.

Several files of KUBECONFIG are one: the first that names a cluster, user or context wins, and
relative paths start at the file they are in. Credentials come from certificates, tokens, files with
tokens, or a program (exec plugin); a token in a file is read again for every connection, since the
cluster renews it.
"""

import base64
import json
import os
import ssl
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from parctl.errors import BackendError, UsageError
from parctl.launcher.contexts import home

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXEC_S = 60.0


@dataclass(slots=True, kw_only=True)
class ClusterAccess:
    """An address, and what is needed to be let in. Secrets stay in memory."""

    server: str
    namespace: str
    context: str  # name; "in-cluster" without a kubeconfig
    ca: str | None  # PEM; None: the system's
    verify: bool
    server_name: str | None  # in the certificate, where it is not the address
    proxy: str | None
    user: str  # name in the kubeconfig
    token: str | None = field(repr=False)
    token_file: Path | None
    certificate: str | None = field(repr=False)  # PEM of certificate and key
    basic: tuple[str, str] | None = field(repr=False)
    plugin: Mapping[str, Any] | None = field(repr=False)
    _expires: float | None = None
    _asked: bool = False

    def authorization(self, *, renew: bool = False) -> str | None:
        """The header to send. `renew`: the last one was refused."""
        if self.plugin is not None:
            expired = self._expires is not None and time.time() > self._expires - 10
            if renew or expired or not self._asked:
                self._ask_plugin()
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise BackendError(f"{self.token_file}: {error.strerror}") from error
        if token:
            return f"Bearer {token}"
        if self.basic is not None:
            pair = base64.b64encode(":".join(self.basic).encode()).decode()
            return f"Basic {pair}"
        return None

    def ssl_context(self) -> ssl.SSLContext:
        if self.plugin is not None and not self._asked:
            self._ask_plugin()
        context = ssl.create_default_context(cadata=self.ca)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate is not None:
            # the key is for this process only: a file that has no name on any disk
            handle = os.memfd_create("client-certificate")
            try:
                os.write(handle, self.certificate.encode())
                context.load_cert_chain(f"/proc/self/fd/{handle}")
            except ssl.SSLError as error:
                raise UsageError(f"the client certificate of user {self.user}: {error}") from error
            finally:
                os.close(handle)
        return context

    def _ask_plugin(self) -> None:
        """Run the exec plugin, as `client.authentication.k8s.io` describes it."""
        assert self.plugin is not None
        plugin = self.plugin
        version = plugin.get("apiVersion")
        if version not in EXEC_VERSIONS:
            raise UsageError(
                f"user {self.user}: exec plugin speaks {version}, expected {EXEC_VERSIONS[0]}",
                hint="update the plugin, and let it write the kubeconfig again",
            )
        spec: dict[str, Any] = {"interactive": False}
        if plugin.get("provideClusterInfo"):
            spec["cluster"] = {"server": self.server} | (
                {"certificate-authority-data": base64.b64encode(self.ca.encode()).decode()}
                if self.ca
                else {}
            )
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
        given = {entry["name"]: entry["value"] for entry in plugin.get("env") or ()}
        command = [plugin["command"], *(plugin.get("args") or ())]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(info)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=EXEC_S,
                text=True,
                check=True,
            )
            status = json.loads(done.stdout)["status"]
        except FileNotFoundError as error:
            hint = plugin.get("installHint") or "install it, or use another context"
            raise BackendError(
                f"user {self.user}: the program `{command[0]}` that signs in is not installed",
                hint=str(hint).strip(),
            ) from error
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines() or ["it said nothing"]
            raise BackendError(
                f"user {self.user}: `{command[0]}` failed with {error.returncode}: {said[-1]}",
                hint="sign in again, as that program asks",
            ) from error
        except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"user {self.user}: `{command[0]}` gave no credential: {error}"
            ) from error
        self._asked = True
        self.token = status.get("token") or self.token
        if status.get("clientCertificateData") and status.get("clientKeyData"):
            self.certificate = f"{status['clientCertificateData']}\n{status['clientKeyData']}"
        expires = status.get("expirationTimestamp")
        self._expires = datetime.fromisoformat(expires).timestamp() if expires else None


def find_access(context: str | None, *, namespace: str | None = None) -> ClusterAccess:
    """Read the kubeconfig's context, the current one by default; in a pod, its own account.

    UsageError: there is no cluster to speak to, or what is named does not exist.
    """
    config = _read_files(_files())
    name = context or config["current"]
    if name is None:
        if context is None and (SERVICE_ACCOUNT / "token").exists():
            return _in_cluster(namespace)
        raise UsageError(
            "no Kubernetes cluster: no kubeconfig names a current context",
            hint="set KUBECONFIG, or name a context: `--context NAME`",
        )
    chosen = _named(config, "contexts", name, "context")
    cluster = _named(config, "clusters", chosen.get("cluster"), f"context {name}: cluster")
    user_name = chosen.get("user")
    user = _named(config, "users", user_name, f"context {name}: user") if user_name else {}
    if user.get("auth-provider"):
        raise UsageError(
            f"user {user_name} signs in through `auth-provider`, which Kubernetes has removed",
            hint="write the kubeconfig again with the cloud's own program: it uses an exec plugin",
        )
    server = cluster.get("server")
    if not server:
        raise UsageError(f"context {name}: its cluster has no server")
    return ClusterAccess(
        server=str(server).rstrip("/"),
        namespace=namespace or chosen.get("namespace") or "default",
        context=name,
        ca=_content(cluster, "certificate-authority"),
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url"),
        user=user_name or "nobody",
        token=user.get("token"),
        token_file=_path(user, "tokenFile"),
        certificate=_certificate(user),
        basic=(user["username"], user["password"]) if user.get("username") else None,
        plugin=user.get("exec"),
    )


def _in_cluster(namespace: str | None) -> ClusterAccess:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    address = f"[{host}]" if ":" in host else host
    own = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    return ClusterAccess(
        server=f"https://{address}:{port}",
        namespace=namespace or own,
        context="in-cluster",
        ca=(SERVICE_ACCOUNT / "ca.crt").read_text(encoding="utf-8"),
        verify=True,
        server_name=None,
        proxy=None,
        user="the pod's service account",
        token=None,
        token_file=SERVICE_ACCOUNT / "token",
        certificate=None,
        basic=None,
        plugin=None,
    )


def _files() -> list[Path]:
    given = os.environ.get("KUBECONFIG")
    if given:
        return [Path(part) for part in given.split(os.pathsep) if part]
    return [home() / ".kube" / "config"]


def _read_files(paths: list[Path]) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    merged: dict[str, Any] = {"clusters": {}, "users": {}, "contexts": {}, "current": None}
    read = 0
    for path in paths:
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), loader)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"{path}: cannot be read as a kubeconfig: {error}") from error
        if not isinstance(content, Mapping):
            continue
        read += 1
        for kind, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for entry in content.get(kind) or ():
                value = {**(entry.get(inner) or {}), "_folder": path.parent}
                merged[kind].setdefault(entry.get("name"), value)
        merged["current"] = merged["current"] or content.get("current-context") or None
    if not read and os.environ.get("KUBECONFIG"):
        raise UsageError(
            f"KUBECONFIG = {os.environ['KUBECONFIG']}: there is no such file",
            hint="check the path",
        )
    return merged


def _named(config: Mapping[str, Any], kind: str, name: Any, what: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = config[kind].get(name)
    if found is None:
        known = ", ".join(f"`{each}`" for each in config[kind]) or "none"
        raise UsageError(f"{what} `{name}` is not in the kubeconfig", hint=f"it has {kind} {known}")
    return found


def _path(section: Mapping[str, Any], key: str) -> Path | None:
    value = section.get(key)
    return None if not value else section["_folder"] / Path(value).expanduser()


def _content(section: Mapping[str, Any], key: str) -> str | None:
    """What `KEY-data` holds in base64, or the file that `KEY` names."""
    data = section.get(f"{key}-data")
    try:
        if data:
            return base64.b64decode(data, validate=True).decode()
        path = _path(section, key)
        return path.read_text(encoding="utf-8") if path else None
    except (OSError, ValueError) as error:
        raise UsageError(f"kubeconfig: {key}: {error}") from error


def _certificate(user: Mapping[str, Any]) -> str | None:
    certificate, key = _content(user, "client-certificate"), _content(user, "client-key")
    return f"{certificate}\n{key}" if certificate and key else None
