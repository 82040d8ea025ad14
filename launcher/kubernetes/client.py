"""A client of the Kubernetes API: what parctl needs, over the standard library.

One client serves everything, submitting as well as reading. The `kubernetes` package costs 0.4 CPU
seconds to import, more than a whole `parctl status` may; its generated models drop fields they do
not know, of which JobSet and Kueue are full; and it offers neither server-side apply with strict
field validation in one call nor watches that survive the API server. What it takes is below: JSON
over a kept connection, pages, watches, and errors in words.
"""

import http.client
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from parctl.errors import BackendError
from parctl.launcher.kubernetes.connection import connect
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess
from parctl.launcher.kubernetes.names import MANAGER, Object

TIMEOUT_S = 30.0
PAGE = 500
CLOCK_S = 2.0  # what clocks may differ by unnoticed
PATIENCE_S = 15.0  # how long an API server that restarts is waited for
APPLY = "application/apply-patch+yaml"  # JSON is YAML
MERGE = "application/merge-patch+json"
PLURALS = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Node"): "nodes",
    ("v1", "Pod"): "pods",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("apps/v1", "StatefulSet"): "statefulsets",
    ("batch/v1", "Job"): "jobs",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("rbac.authorization.k8s.io/v1", "Role"): "roles",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "rolebindings",
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): "jobsets",
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "leaderworkersets",
    ("ray.io/v1", "RayJob"): "rayjobs",
    ("ray.io/v1", "RayCluster"): "rayclusters",
}
PLURALS |= {
    (f"kueue.x-k8s.io/{version}", kind): f"{kind.lower()}s"
    for version in ("v1beta1", "v1beta2")
    for kind in ("Workload", "LocalQueue", "ClusterQueue")
}
CLUSTER_WIDE = ("Node", "ClusterQueue")


class ApiError(BackendError):
    """The API server said no. `code` is HTTP's; `reason` is Kubernetes' own word."""

    def __init__(self, code: int, reason: str, said: str, *, hint: str | None = None) -> None:
        super().__init__(f"Kubernetes answers {code} {reason}: {said}", hint=hint)
        self.code, self.reason, self.said = code, reason, said


class Client:
    """Speaks to one API server. Not for several threads at once: make one each."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._ssl: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._answered = False
        self._ahead_s = 0.0  # the server's clock before ours

    @property
    def now_unix(self) -> float:
        """The time by the server's clock, to which all times in objects belong."""
        return time.time() + self._ahead_s

    def __del__(self) -> None:
        self.close()

    # objects

    def get(self, api: str, kind: str, name: str, *, namespace: str | None = None) -> Object | None:
        """None: there is no such object, or no such kind."""
        try:
            return self.ask("GET", self.path(api, kind, name, namespace=namespace))
        except ApiError as error:
            if error.code == http.client.NOT_FOUND:
                return None
            raise

    def list(
        self,
        api: str,
        kind: str,
        *,
        labels: str | None = None,
        fields: str | None = None,
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> list[Object] | None:
        """All objects, page by page; None where the cluster does not serve the kind."""
        path = self.path(api, kind, namespace=namespace, everywhere=everywhere)
        query = {"limit": str(PAGE)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        found: list[Object] = []
        while True:
            try:
                page = self.ask("GET", path, query)
            except ApiError as error:
                if error.code == http.client.NOT_FOUND:
                    return None
                raise
            for each in page.get("items") or ():
                each.setdefault("kind", kind)
                each.setdefault("apiVersion", api)
                found.append(each)
            token = page["metadata"].get("continue")
            if not token:
                return found
            query["continue"] = token

    def create(self, document: Mapping[str, Any]) -> Object:
        """Create an object that is not there yet, else 409; unknown fields are errors."""
        api, kind = document["apiVersion"], document["kind"]
        path = self.path(api, kind, namespace=document["metadata"].get("namespace"))
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return self.ask("POST", path, query, body=document)

    def apply(self, document: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Server-side apply, which creates or updates; unknown fields are errors."""
        metadata = document["metadata"]
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        path = self.path(
            document["apiVersion"],
            document["kind"],
            metadata["name"],
            namespace=metadata.get("namespace"),
        )
        return self.ask("PATCH", path, query, body=document, content=APPLY)

    def patch(
        self, api: str, kind: str, name: str, change: Mapping[str, Any], *, part: str = ""
    ) -> Object | None:
        """Apply a JSON merge patch, `part`: to a subresource. None: there is no such object."""
        path = self.path(api, kind, name) + (f"/{part}" if part else "")
        try:
            return self.ask("PATCH", path, body=change, content=MERGE)
        except ApiError as error:
            if error.code == http.client.NOT_FOUND:
                return None
            raise

    def delete(self, api: str, kind: str, name: str, *, grace_s: int | None = None) -> bool:
        """Delete with what it owns, in the background. False: there was none."""
        body: Object = {"propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            self.ask("DELETE", self.path(api, kind, name), body=body)
        except ApiError as error:
            if error.code == http.client.NOT_FOUND:
                return False
            raise
        return True

    def path(
        self,
        api: str,
        kind: str,
        name: str | None = None,
        *,
        namespace: str | None = None,
        everywhere: bool = False,
    ) -> str:
        base = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        if kind not in CLUSTER_WIDE and not everywhere:
            base += f"/namespaces/{quote(namespace or self.access.namespace)}"
        return f"{base}/{PLURALS[api, kind]}" + (f"/{quote(name)}" if name else "")

    def serves(self, api: str, kind: str) -> bool:
        """Whether the cluster has this version of this kind."""
        path = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        try:
            found = self.ask("GET", path)
        except ApiError as error:
            if error.code == http.client.NOT_FOUND:
                return False
            raise
        return any(each["kind"] == kind for each in found.get("resources") or ())

    # requests

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> Object:
        """One request and its JSON. ApiError: refused; BackendError: nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        renewed = False
        while True:
            try:
                response = self._send(method, path, query, data, content, renew=renewed)
                payload = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if isinstance(error, ssl.SSLCertVerificationError) or time.monotonic() > deadline:
                    raise self._unreachable(error) from error
                # a server that has answered before is coming back; another may not exist at all
                if not (self._answered and isinstance(error, ConnectionError)):
                    raise self._unreachable(error) from error
                time.sleep(0.5)
                continue
            if response.status == http.client.UNAUTHORIZED and not renewed:
                renewed = True
                self.close()
                continue
            busy = response.status in (429, 503, 504)
            if busy and time.monotonic() < deadline:
                time.sleep(min(float(response.headers.get("Retry-After") or 1), 5.0))
                continue
            if response.status >= 400:
                raise api_error(response.status, payload, self.access)
            answer: Object = json.loads(payload) if payload else {}
            return answer

    def stream(
        self, path: str, query: Mapping[str, str] | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Iterator[bytes]:
        """Yield the lines of an answer that goes on; a connection of its own.

        Raises ApiError when refused, OSError or HTTPException when the connection breaks.
        """
        connection = self._connect(timeout_s)
        try:
            connection.request("GET", self._target(path, query), headers=self._headers())
            response = connection.getresponse()
            if response.status >= 400:
                raise api_error(response.status, response.read(), self.access)
            while line := response.readline():
                yield line
        finally:
            connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        data: bytes | None,
        content: str,
        *,
        renew: bool,
    ) -> http.client.HTTPResponse:
        kept = self._connection is not None
        connection = self._connection = self._connection or self._connect(TIMEOUT_S)
        headers = self._headers(renew=renew) | ({"Content-Type": content} if data else {})
        try:
            connection.request(method, self._target(path, query), body=data, headers=headers)
            response = connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            self.close()
            if not kept:
                raise
            # the server closes connections that were idle: once more on a new one
            connection = self._connection = self._connect(TIMEOUT_S)
            connection.request(method, self._target(path, query), body=data, headers=headers)
            response = connection.getresponse()
        self._answered = True
        self._note_clock(response.headers.get("Date"))
        return response

    def _note_clock(self, date: str | None) -> None:
        if date is None:
            return
        ahead_s = parsedate_to_datetime(date).timestamp() - time.time()
        # it says whole seconds, and was said a moment ago
        self._ahead_s = ahead_s if abs(ahead_s) > CLOCK_S else 0.0

    def _headers(self, *, renew: bool = False) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "parctl"}
        authorization = self.access.authorization(renew=renew)
        return headers | ({"Authorization": authorization} if authorization else {})

    def _target(self, path: str, query: Mapping[str, str] | None) -> str:
        prefix = urlsplit(self.access.server).path
        return f"{prefix}{path}" + (f"?{urlencode(query)}" if query else "")

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        self._ssl = self._ssl or self.access.ssl_context()
        return connect(self.access, self._ssl, timeout_s)

    def _unreachable(self, error: Exception) -> BackendError:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = f"the context is `{self.access.context}`: is it the right one, and is its server up?"
        if isinstance(error, ssl.SSLCertVerificationError):
            words = f"its certificate is not trusted: {error.verify_message}"
            hint = "the kubeconfig's certificate-authority does not belong to this server"
        return BackendError(
            f"Kubernetes at {self.access.server} does not answer: {words}", hint=hint
        )


def api_error(code: int, payload: bytes, access: ClusterAccess) -> ApiError:
    """What the server's Status object says, with a hint for what people meet most."""
    try:
        status = json.loads(payload)
        reason, said = status.get("reason") or "", status.get("message") or ""
    except (ValueError, AttributeError):
        reason, said = "", payload.decode(errors="replace").strip()[:300]
    hint = None
    if code == http.client.UNAUTHORIZED:
        said = said if said and said != "Unauthorized" else f"{access.user} is not signed in"
        hint = "the token or certificate has expired: sign in again, or choose another context"
    elif code == http.client.FORBIDDEN:
        hint = f"user {access.user} of context {access.context} lacks that right"
    return ApiError(code, reason, said, hint=hint)
