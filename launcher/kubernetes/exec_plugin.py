"""Programs that sign in to a cluster, as `client.authentication.k8s.io` describes them.

An exec plugin is told of the cluster in KUBERNETES_EXEC_INFO and prints a token, or a certificate
with its key, and until when it is good.
"""

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from parctl.errors import BackendError, UsageError

VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    token: str | None = field(repr=False)
    certificate: str | None = field(repr=False)  # PEM of certificate and key
    expires_unix: float | None


def ask_plugin(plugin: Mapping[str, Any], *, user: str, server: str, ca: str | None) -> Credential:
    """Run the program. UsageError: it is described wrongly; BackendError: it does not sign in."""
    version, name = plugin.get("apiVersion"), plugin.get("command")
    if version not in VERSIONS:
        raise UsageError(
            f"user {user}: exec plugin speaks {version}, expected {VERSIONS[0]}",
            hint="update the plugin, and let it write the kubeconfig again",
        )
    if not isinstance(name, str) or not name:
        raise UsageError(f"user {user}: exec: there is no `command`")
    spec: dict[str, Any] = {"interactive": False}
    if plugin.get("provideClusterInfo"):
        authority = base64.b64encode(ca.encode()).decode() if ca else None
        trust = {"certificate-authority-data": authority} if authority else {}
        spec["cluster"] = {"server": server, **trust}
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    try:
        given = {str(each["name"]): str(each["value"]) for each in plugin.get("env") or ()}
        done = subprocess.run(
            [name, *(str(word) for word in plugin.get("args") or ())],
            env={**os.environ, **given, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            text=True,
            check=True,
        )
        return _credential(json.loads(done.stdout)["status"], f"user {user}: `{name}`")
    except FileNotFoundError as error:
        hint = plugin.get("installHint") or "install it, or use another context"
        raise BackendError(
            f"user {user}: the program `{name}` that signs in is not installed",
            hint=str(hint).strip(),
        ) from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines() or ["it said nothing"]
        raise BackendError(
            f"user {user}: `{name}` failed with {error.returncode}: {said[-1]}",
            hint="sign in again, as that program asks",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BackendError(
            f"user {user}: `{name}` gave no credential within {PATIENCE_S:g} s",
            hint="it may want to be asked something: sign in by hand first",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # not what it printed: that may be a secret
        raise BackendError(
            f"user {user}: `{name}` gave no credential ({type(error).__name__})",
            hint="run it by hand: it should print an ExecCredential as JSON",
        ) from error


def _credential(status: Mapping[str, Any], who: str) -> Credential:
    token, expires = status.get("token"), status.get("expirationTimestamp")
    certificate, key = status.get("clientCertificateData"), status.get("clientKeyData")
    if not token and not (certificate and key):
        raise ValueError("neither a token nor a certificate with its key")
    return Credential(
        token=checked_token(token, f"{who}: its token") if token else None,
        certificate=f"{certificate}\n{key}" if certificate and key else None,
        expires_unix=datetime.fromisoformat(expires).timestamp() if expires else None,
    )


def checked_token(token: Any, where: str) -> str:
    """A token without the line end that files give it. UsageError: no header could hold it."""
    text = str(token).strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(f"{where} holds characters that no token has", hint="sign in again")
    return text
