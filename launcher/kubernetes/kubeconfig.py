"""Which cluster to speak to, and as whom: kubeconfig files as kubectl reads them, or the pod's own.

Several files of KUBECONFIG are one: the first that names a cluster, user or context wins, and
relative paths start at the file they are in. Credentials come from certificates, tokens, files with
tokens, or a program (exec plugin); a token in a file is read again for every connection, since the
cluster renews it.
"""

import base64
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from parctl.errors import BackendError, UsageError
from parctl.launcher.kubernetes.exec_plugin import ask_plugin, checked_token
from parctl.launcher.places import home

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


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
                token = self.token_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise BackendError(f"{self.token_file}: cannot be read as a token") from error
            token = checked_token(token, str(self.token_file))
        if token:
            return f"Bearer {token}"
        if self.basic is not None:
            pair = base64.b64encode(":".join(self.basic).encode()).decode()
            return f"Basic {pair}"
        return None

    def ssl_context(self) -> ssl.SSLContext:
        if self.plugin is not None and not self._asked:
            self._ask_plugin()
        try:
            context = ssl.create_default_context(cadata=self.ca)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(
                f"context {self.context}: certificate-authority is no certificate: {error}"
            ) from error
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
        assert self.plugin is not None
        given = ask_plugin(self.plugin, user=self.user, server=self.server, ca=self.ca)
        self._asked = True
        self.token = given.token or self.token
        self.certificate = given.certificate or self.certificate
        self._expires = given.expires_unix


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
    token, plugin = user.get("token"), user.get("exec")
    if plugin is not None and not isinstance(plugin, Mapping):
        raise UsageError(
            f"user {user_name}: exec: found a {type(plugin).__name__}, expected `command: ...`"
        )
    return ClusterAccess(
        server=_address(server, ("http", "https"), f"context {name}: server"),
        namespace=namespace or chosen.get("namespace") or "default",
        context=name,
        ca=_content(cluster, "certificate-authority"),
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name"),
        proxy=_address(cluster.get("proxy-url"), None, f"context {name}: proxy-url") or None,
        user=user_name or "nobody",
        token=checked_token(token, f"user {user_name}: token") if token else None,
        token_file=_path(user, "tokenFile"),
        certificate=_certificate(user),
        basic=_basic(user),
        plugin=plugin,
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
        read += 1
        if content is None:  # an empty file
            continue
        if not isinstance(content, Mapping):
            raise UsageError(f"{path}: is no kubeconfig: found a {type(content).__name__}")
        for kind, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for name, value in _entries(content, kind, inner, path):
                merged[kind].setdefault(name, {**value, "_folder": path.parent})
        merged["current"] = merged["current"] or content.get("current-context") or None
    if not read and os.environ.get("KUBECONFIG"):
        raise UsageError(
            f"KUBECONFIG = {os.environ['KUBECONFIG']}: there is no such file",
            hint="check the path",
        )
    return merged


def _entries(
    content: Mapping[str, Any], kind: str, inner: str, path: Path
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The named clusters, users or contexts of a file."""
    entries = content.get(kind) or []
    if not isinstance(entries, list):
        raise UsageError(f"{path}: {kind}: found a {type(entries).__name__}, expected a list")
    for number, entry in enumerate(entries):
        value = (entry.get(inner) or {}) if isinstance(entry, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(entry.get("name"), str):
            raise UsageError(
                f"{path}: {kind}[{number}]: expected `name: ...` and `{inner}: ...`",
                hint="`kubectl config view` shows what it should look like",
            )
        yield entry["name"], value


def _named(config: Mapping[str, Any], kind: str, name: Any, what: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = config[kind].get(name)
    if found is None:
        known = ", ".join(f"`{each}`" for each in config[kind]) or "none"
        raise UsageError(f"{what} `{name}` is not in the kubeconfig", hint=f"it has {kind} {known}")
    return found


def _address(value: Any, schemes: tuple[str, ...] | None, what: str) -> str:
    """A URL without a slash at its end; `schemes`: those that will do."""
    text = str(value or "").rstrip("/")
    try:
        parts = urlsplit(text)
        good = not text or (parts.hostname is not None and parts.port != 0)
    except ValueError:
        good = False
    if not good or (schemes and parts.scheme not in schemes):
        raise UsageError(f"{what} `{text}` is no address", hint="expected `https://HOST:PORT`")
    return text


def _path(section: Mapping[str, Any], key: str) -> Path | None:
    value = section.get(key)
    return None if not value else section["_folder"] / Path(str(value)).expanduser()


def _content(section: Mapping[str, Any], key: str) -> str | None:
    """What `KEY-data` holds in base64, or the file that `KEY` names."""
    data = section.get(f"{key}-data")
    try:
        if data:
            return base64.b64decode(str(data), validate=True).decode()
        path = _path(section, key)
        return path.read_text(encoding="utf-8") if path else None
    except (OSError, ValueError) as error:
        raise UsageError(f"kubeconfig: {key}: {error}") from error


def _basic(user: Mapping[str, Any]) -> tuple[str, str] | None:
    name = user.get("username")
    return (str(name), str(user.get("password") or "")) if name else None


def _certificate(user: Mapping[str, Any]) -> str | None:
    certificate, key = _content(user, "client-certificate"), _content(user, "client-key")
    return f"{certificate}\n{key}" if certificate and key else None
