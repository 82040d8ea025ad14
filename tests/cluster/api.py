"""A small client of the API server, so that tests look at the cluster with other eyes than parctl.

It knows no kinds: it asks the server which path a kind has, and sends and returns plain dicts.
"""

import http.client
import json
import ssl
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

Object = dict[str, Any]


class ApiError(Exception):
    """An answer of the server that is not success."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """One connection to an API server, as one user.

    Use it from one thread. Connections are made in the network namespace of the thread that
    calls, so callers are inside the cluster's namespace.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.connection: http.client.HTTPSConnection | None = None
        self.headers = {"User-Agent": "parctl-tests"}
        self.paths: dict[tuple[str, str], tuple[str, bool]] = {}

    def connect(self) -> http.client.HTTPSConnection:
        document = yaml.safe_load(self.kubeconfig.read_text())
        cluster = document["clusters"][0]["cluster"]
        user = document["users"][0]["user"]
        authority = b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        if "token" in user:
            self.headers["Authorization"] = f"Bearer {user['token']}"
        else:
            with tempfile.NamedTemporaryFile() as pair:
                for part in ("client-certificate-data", "client-key-data"):
                    pair.write(b64decode(user[part]))
                pair.flush()
                context.load_cert_chain(pair.name)
        address = urlsplit(cluster["server"])
        assert address.hostname
        return http.client.HTTPSConnection(
            address.hostname, address.port, timeout=30, context=context
        )

    def request(
        self, method: str, path: str, body: Object | None = None, content: str = "application/json"
    ) -> Object:
        answer = self.raw(method, path, None if body is None else json.dumps(body), content)
        found = json.loads(answer)
        assert isinstance(found, dict)
        return found

    def raw(
        self, method: str, path: str, body: str | None = None, content: str = "application/json"
    ) -> str:
        """Send a request and return the text of the answer.

        A connection that the server closed while it was idle is opened again once.

        Raises:
            ApiError: the server refused.
            OSError: there is no server.
        """
        for again in (True, False):
            self.connection = self.connection or self.connect()
            headers = {**self.headers, "Content-Type": content}
            try:
                self.connection.request(method, path, body, headers)
                response = self.connection.getresponse()
                text = response.read().decode(errors="replace")
                break
            except (OSError, http.client.HTTPException):
                self.close()
                if not again:
                    raise
        if response.status >= 300:
            try:
                message = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                message = text[:500]
            raise ApiError(response.status, message)
        return text

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # ---------------------------------------------------------------- objects

    def path(self, api_version: str, kind: str, namespace: str | None) -> str:
        """The collection of a kind; of one namespace where it has one."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        if (api_version, kind) not in self.paths:
            for resource in self.request("GET", root)["resources"]:
                if "/" not in resource["name"]:
                    entry = (resource["name"], resource["namespaced"])
                    self.paths[api_version, resource["kind"]] = entry
        if (api_version, kind) not in self.paths:
            raise ApiError(404, f"the server has no {kind} in {api_version}")
        plural, namespaced = self.paths[api_version, kind]
        if namespaced and namespace is not None:
            return f"{root}/namespaces/{namespace}/{plural}"
        return f"{root}/{plural}"

    def apply(self, item: Object, *, namespace: str | None = None, dry_run: bool = False) -> Object:
        """Apply an object on the server; an unknown field is an error."""
        meta = item["metadata"]
        where = meta.get("namespace", namespace or "default")
        query = {"fieldManager": "parctl-tests", "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = f"{self.path(item['apiVersion'], item['kind'], where)}/{meta['name']}"
        return self.request(
            "PATCH", f"{path}?{urlencode(query)}", item, "application/apply-patch+yaml"
        )

    def apply_all(self, documents: str, *, namespace: str | None = None) -> list[Object]:
        """Apply every object of a YAML text."""
        items = [item for item in yaml.safe_load_all(documents) if item]
        return [self.apply(item, namespace=namespace) for item in items]

    def get(
        self, kind: str, name: str, namespace: str | None = None, api_version: str = "v1"
    ) -> Object:
        return self.request("GET", f"{self.path(api_version, kind, namespace)}/{name}")

    def find(
        self, kind: str, name: str, namespace: str | None = None, api_version: str = "v1"
    ) -> Object | None:
        """`get`, or None where there is no such object."""
        try:
            return self.get(kind, name, namespace, api_version)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self,
        kind: str,
        namespace: str | None = None,
        api_version: str = "v1",
        *,
        selector: str = "",
    ) -> list[Object]:
        query = "?" + urlencode({"labelSelector": selector}) if selector else ""
        items = self.request("GET", self.path(api_version, kind, namespace) + query)["items"]
        assert isinstance(items, list)
        return items

    def patch(
        self,
        kind: str,
        name: str,
        change: Object,
        namespace: str | None = None,
        api_version: str = "v1",
        *,
        subresource: str = "",
    ) -> Object:
        """Merge a change into an object, or into its status."""
        path = f"{self.path(api_version, kind, namespace)}/{name}"
        path += f"/{subresource}" if subresource else ""
        return self.request("PATCH", path, change, "application/merge-patch+json")

    def delete(
        self,
        kind: str,
        name: str,
        namespace: str | None = None,
        api_version: str = "v1",
        *,
        grace_s: int | None = None,
    ) -> None:
        """Delete an object and what it owns; one that is not there is fine."""
        options: Object = {"propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            path = f"{self.path(api_version, kind, namespace)}/{name}"
            self.request("DELETE", path, options)
        except ApiError as error:
            if error.status != 404:
                raise

    def delete_all(self, kind: str, api_version: str = "v1", *, selector: str) -> None:
        """Delete every object of a kind that a selector names."""
        query = urlencode({"labelSelector": selector})
        self.request("DELETE", f"{self.path(api_version, kind, None)}?{query}")

    def log(self, pod: str, namespace: str, *, container: str = "") -> str:
        query = "?" + urlencode({"container": container}) if container else ""
        return self.raw("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log{query}")

    def events(self, namespace: str) -> Iterable[str]:
        """`REASON OBJECT: MESSAGE` of each event of a namespace."""
        for event in self.list("Event", namespace):
            about = event["involvedObject"]
            yield f"{event['reason']} {about['kind']}/{about['name']}: {event.get('message', '')}"

    def wait(
        self,
        kind: str,
        name: str,
        true: Callable[[Object], object],
        namespace: str | None = None,
        api_version: str = "v1",
        *,
        seconds: float = 30,
    ) -> Object:
        """Wait until an object exists and is as wanted, and return it.

        Raises:
            TimeoutError: with the object's status and its namespace's events.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = self.find(kind, name, namespace, api_version)
            if found is not None and true(found):
                return found
            if time.monotonic() > deadline:
                told = list(self.events(namespace)) if namespace else []
                status = None if found is None else found.get("status")
                raise TimeoutError(f"{kind}/{name} after {seconds:.0f} s: {status}\n{told[-12:]}")
            time.sleep(0.1)


def pod_phase(*phases: str) -> Callable[[Object], bool]:
    """True of a pod that is in one of these phases."""
    return lambda pod: pod["status"].get("phase") in phases


def condition(kind: str, status: str = "True") -> Callable[[Object], bool]:
    """True of an object that has this condition."""
    return lambda item: any(
        found["type"] == kind and found["status"] == status
        for found in item.get("status", {}).get("conditions") or []
    )
