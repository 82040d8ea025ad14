"""An API server in memory: objects by path, versions, watches, and refusals on demand.

It answers what a real one answers to the few things that parctl's client asks; the tests on a real
cluster hold it to that.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
Answer = tuple[int, Object] | None


class FakeApi:
    """`refuse` is asked before each request: METHOD, path -> an answer in place of the usual."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[str | None] = []
        self.refuse: Callable[[str, str], Answer] = lambda method, path: None
        self.version = 10
        self.oldest = 0  # watches from before are gone
        self.changed = threading.Condition()
        self.history: list[tuple[int, str, str, Object]] = []  # version, type, path, object
        self.drop_watches = 0  # so many watches end at once

    def put(self, path: str, each: Object) -> Object:
        with self.changed:
            self.version += 1
            known = self.objects.get(path)
            kind = "MODIFIED" if known else "ADDED"
            each = json.loads(json.dumps(each))
            metadata = each.setdefault("metadata", {})
            metadata["resourceVersion"] = str(self.version)
            metadata.setdefault("uid", known["metadata"]["uid"] if known else f"u{self.version}")
            metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            self.objects[path] = each
            self.history.append((self.version, kind, path, each))
            self.changed.notify_all()
            return each

    def remove(self, path: str) -> bool:
        with self.changed:
            each = self.objects.pop(path, None)
            if each is None:
                return False
            self.version += 1
            self.history.append((self.version, "DELETED", path, each))
            self.changed.notify_all()
            return True

    def names(self) -> list[str]:
        return [path.rsplit("/", 2)[-2] + "/" + path.rsplit("/", 1)[-1] for path in self.objects]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def log_message(self, format: str, *words: Any) -> None:
        pass

    def handle_one(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        api.asked.append((self.command, self.path))
        api.tokens.append(self.headers.get("Authorization"))
        refusal = api.refuse(self.command, self.path)
        if refusal is not None:
            self.answer(*refusal)
            return
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        method = getattr(self, f"do_{self.command.lower()}")
        method(parts.path, query, body)

    do_GET = do_PATCH = do_DELETE = do_POST = handle_one

    def do_get(self, path: str, query: dict[str, str], body: Object) -> None:
        if query.get("watch"):
            self.watch(path, int(query["resourceVersion"]))
        elif path in self.api.objects:
            self.answer(200, self.api.objects[path])
        elif path.rsplit("/", 1)[-1].endswith("s"):
            items = [each for name, each in self.api.objects.items() if _under(name, path)]
            only = query.get("fieldSelector", "").removeprefix("metadata.name=")
            items = [each for each in items if only in ("", each["metadata"]["name"])]
            self.answer(
                200, {"items": items, "metadata": {"resourceVersion": str(self.api.version)}}
            )
        else:
            self.answer(404, {"reason": "NotFound", "message": f"{path} not found"})

    def do_post(self, path: str, query: dict[str, str], body: Object) -> None:
        own = f"{path}/{body['metadata']['name']}"
        if own in self.api.objects:
            self.answer(409, {"reason": "AlreadyExists", "message": f"{own} already exists"})
        else:
            self.answer(201, self.api.put(own, body))

    def do_patch(self, path: str, query: dict[str, str], body: Object) -> None:
        if query.get("dryRun"):
            self.answer(200, body)
        elif "apply" in self.headers["Content-Type"]:
            self.answer(200, self.api.put(path, body))
        elif path in self.api.objects:
            known = json.loads(json.dumps(self.api.objects[path]))
            _merge(known, body)
            self.answer(200, self.api.put(path, known))
        else:
            self.answer(404, {"reason": "NotFound", "message": "not found"})

    def do_delete(self, path: str, query: dict[str, str], body: Object) -> None:
        code = 200 if self.api.remove(path) else 404
        self.answer(code, {"reason": "NotFound", "message": "not found"})

    def watch(self, path: str, version: int) -> None:
        api = self.api
        if version < api.oldest:
            self.send_stream()
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            self.chunk({"type": "ERROR", "object": gone})
            self.chunk(None)
            return
        self.send_stream()
        while True:
            with api.changed:
                if api.drop_watches:
                    api.drop_watches -= 1
                    self.close_connection = True
                    return
                fresh = [
                    each for each in api.history if each[0] > version and _under(each[2], path)
                ]
                if not fresh:
                    api.changed.wait(0.05)
            version = max([version, *(each[0] for each in fresh)])
            for _, kind, _, each in fresh:
                try:
                    self.chunk({"type": kind, "object": each})
                except OSError:
                    return

    def send_stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, value: Object | None) -> None:
        data = b"" if value is None else json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def answer(self, code: int, value: Object) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        for name, text in value.pop("headers", {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _under(name: str, path: str) -> bool:
    return name.startswith(f"{path}/") and "/" not in name[len(path) + 1 :]


def _merge(value: Object, change: Object) -> None:
    for key, item in change.items():
        if isinstance(item, dict):
            _merge(value.setdefault(key, {}), item)
        else:
            value[key] = item


@contextmanager
def serve() -> Iterator[tuple[FakeApi, str]]:
    """Yield the server and its address."""
    api = FakeApi()
    handler = type("OwnHandler", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(path: Path, server: str, **user: Any) -> Path:
    """Write a kubeconfig for that server."""
    import yaml

    content = {
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "ada", "user": user}],
        "contexts": [
            {"name": "test", "context": {"cluster": "c", "user": "ada", "namespace": "team-a"}}
        ],
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
