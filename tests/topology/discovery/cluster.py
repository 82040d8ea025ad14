"""An API server that keeps objects in memory and answers what the real one would.

It knows just what discovery asks: reading an object, applying one, patching one, creating an event.
Applying leaves fields of the record alone that `others` have written.
"""

from collections.abc import Mapping
from typing import Any

from parctl.errors import BackendError
from parctl.topology.discovery.objects import RECORDS_PATH
from parctl.topology.discovery.publish import MERGE

NODE = "/api/v1/nodes/gpu-1"
RECORD = f"{RECORDS_PATH}/gpu-1"


class Refused(BackendError):
    def __init__(self, code: int) -> None:
        super().__init__(f"the server answers {code}")
        self.code = code


class Cluster:
    """Objects by path; `asked` is every request, `refuse` what to answer to a method and path."""

    def __init__(self) -> None:
        meta = {"name": "gpu-1", "uid": "u-1", "resourceVersion": "1", "labels": {}}
        self.objects: dict[str, Any] = {NODE: {"metadata": meta, "spec": {}}}
        self.events: list[Any] = []
        self.asked: list[str] = []
        self.refuse: dict[str, list[int]] = {}
        self.others: set[str] = set()
        self.served = True  # whether the definition of records is there

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        self.asked.append(f"{method} {path}")
        codes = self.refuse.get(f"{method} {path}")
        if codes:
            raise Refused(codes.pop(0))
        if path.startswith(RECORDS_PATH) and not self.served:
            raise Refused(404)
        if method == "POST":
            self.events.append(body)
            return {}
        if method == "PATCH":
            assert body is not None
            place = path.removesuffix("/status")
            kept = self.objects.get(place, {}).get("spec", {})
            self._merge(self.objects.setdefault(place, {"metadata": {}}), body)
            if place == RECORD and "spec" in body:
                self.objects[place]["spec"] = self._record(kept, body["spec"], content)
        if path.removesuffix("/status") not in self.objects:
            raise Refused(404)
        found: dict[str, Any] = self.objects[path.removesuffix("/status")]
        return found

    def _record(
        self, kept: Mapping[str, Any], change: Mapping[str, Any], content: str
    ) -> dict[str, Any]:
        if content == MERGE:
            return {key: item for key, item in {**kept, **change}.items() if item is not None}
        return {key: kept[key] for key in self.others & set(kept)} | dict(change)

    def _merge(self, into: dict[str, Any], change: Mapping[str, Any]) -> None:
        for key, value in change.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict) and key != "spec":
                self._merge(into[key], value)
            elif key == "spec" and "taints" in value:
                into.setdefault(key, {})["taints"] = value["taints"]
            else:
                into[key] = value
