"""What parctl's own part of a launch on Ray costs on thousands of nodes.

As many nodes of real raylets no machine holds. So one node of a real cluster is recorded as its
dashboard describes it, and a server in this process plays a dashboard with so many of them. Timed
are the command (`parctl launch`, until the cluster has all that it needs) and, in CPU seconds, what
the driver does in the cluster before it asks Ray for the nodes: to find that the planned ones are
free (`planned`); to lay the job out anew when one of them is taken and another is free (`moved`);
to say why none will do (`why`). What Ray itself needs for its part is not in it.

    python -m benchmarks.ray_scale [--nodes 1000 4000 9999]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.ray_placement import start_nodes

GPUS = 8


@dataclass(kw_only=True)
class FakeDashboard:
    """What a dashboard answers, and what it was sent."""

    version: bytes
    nodes: bytes = b""  # of the state API
    summary: bytes = b""  # of the dashboard's own view
    sent: dict[str, bytes] = field(default_factory=dict)  # packages and the job, by path

    def answer(self, path: str) -> bytes | None:
        if path in self.sent:
            return b"{}"
        return {
            "/api/version": self.version,
            "/api/v0/nodes": self.nodes,
            "/nodes": self.summary,
        }.get(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    # one more is there than is planned for, and Ray's state API lists at most 10,000
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 4000, 9999])
    options = parser.parse_args()
    version, row, view = _recorded()
    head = (
        "nodes",
        "ranks",
        "command s",
        "CPU s",
        "MiB sent",
        "planned CPU s",
        "moved CPU s",
        "why CPU s",
    )
    print("".join(f"{word:>14}" for word in head))
    for count in options.nodes:
        dashboard = FakeDashboard(
            version=json.dumps(version).encode(),
            nodes=_wrapped([_copy(row, number) for number in range(count + 1)]),
            summary=json.dumps(
                {"data": {"summary": [_copy(view, number) for number in range(count + 1)]}}
            ).encode(),
        )
        with _serving(dashboard) as address:
            print("".join(f"{cell:>14}" for cell in _measure(dashboard, address, count)))


def _recorded() -> tuple[Any, Any, Any]:
    """What a real dashboard says of itself and of a node, in both forms."""
    from parctl.topology.sources.ray_dashboard import find_dashboard

    with start_nodes(1, gpus=GPUS):
        dashboard = find_dashboard(os.environ["PARCTL_ADDRESS"])
        rows = dashboard.get("/api/v0/nodes", detail=1)["data"]["result"]["result"]
        views = dashboard.get("/nodes", view="summary")["data"]["summary"]
        version = dashboard.get("/api/version")
    (row,) = (row for row in rows if not row["is_head_node"])
    (view,) = (v for v in views if v["raylet"]["nodeId"] == row["node_id"])
    return version, row, view


def _copy(row: Any, number: int) -> Any:
    """The recorded node as another one."""
    text = json.dumps(row)
    old = row.get("node_id") or row["raylet"]["nodeId"]
    return json.loads(text.replace(old, f"{number:056x}").replace('"node-0"', f'"node-{number}"'))


def _wrapped(rows: list[Any]) -> bytes:
    return json.dumps({"data": {"result": {"result": rows}}}).encode()


@contextmanager
def _serving(dashboard: FakeDashboard) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(dashboard.answer(urlsplit(self.path).path))

        def do_PUT(self) -> None:
            dashboard.sent[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self._say(b"{}")

        do_POST = do_PUT

        def _say(self, body: bytes | None) -> None:
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _measure(dashboard: FakeDashboard, address: str, count: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="pr-bench-") as name:
        recipe = Path(name, "recipe.yaml")
        recipe.write_text(
            f"version: 1\nname: many\ntask: script\nparallelism: {{dp: {count}, tp: {GPUS}}}\n"
            "script: {command: [/bin/true]}\n"
        )
        words = ["launch", str(recipe), "-b", "ray", "--address", address, "--run-id", "many-1"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run([sys.executable, "-m", "parctl", *words], check=True, capture_output=True)
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    mebibytes = sum(map(len, dashboard.sent.values())) / 2**20
    driver = _driver(dashboard, address)
    return [
        f"{count:,}",
        f"{count * GPUS:,}",
        f"{seconds:.1f}",
        f"{cpu:.1f}",
        f"{mebibytes:.1f}",
        *(f"{value:.2f}" for value in driver),
    ]


def _driver(dashboard: FakeDashboard, address: str) -> Iterator[float]:
    """CPU seconds of the three things that a driver does before it asks Ray."""
    from parctl.launcher.ray.agents import Sent
    from parctl.launcher.ray.cluster import NodeState
    from parctl.launcher.ray.placement import Placer, need_of
    from parctl.launcher.ray.reasons import why_not_now
    from parctl.planner.plan import plan_from_json
    from parctl.topology.sources.ray import named_nodes, nodes_of
    from parctl.topology.sources.ray_dashboard import Dashboard

    plan_text, settings = _run_package(dashboard)
    plan = plan_from_json(json.loads(plan_text))
    rows = json.loads(dashboard.nodes)["data"]["result"]["result"]

    def states() -> dict[str, NodeState]:
        return {
            name: NodeState(
                name=name,
                node_id=node.node_id,
                total=node.resources,
                free=node.resources,
            )
            for name, node in named_nodes(nodes_of(rows)).items()
        }

    placer = Placer(
        plan,
        Sent(package=None, settings=settings, plan=plan_text),
        Dashboard(address),
        waits=lambda reason: None,
        stopped=lambda: False,
    )
    free = states()
    taken = {**free, "node-0": replace(free["node-0"], free={})}
    full = {name: replace(node, free={}) for name, node in free.items()}
    yield _timed(lambda: placer._plan_on(states(), fewer=False))
    moved = placer._plan_on(taken, fewer=False)
    assert moved is not None and "node-0" in moved[1][0], moved
    yield _timed(lambda: placer._plan_on(taken, fewer=False))
    yield _timed(
        lambda: why_not_now(plan.layout, lambda ranks: need_of(ranks, "gpu"), full, [], waiting=0)
    )


def _run_package(dashboard: FakeDashboard) -> tuple[str, Any]:
    """The plan and the settings, from the package that the command has sent."""
    from parctl.launcher.ray.packages import RUN_FOLDER

    for data in dashboard.sent.values():
        if zipfile.is_zipfile(BytesIO(data)):
            with zipfile.ZipFile(BytesIO(data)) as archive:
                if f"{RUN_FOLDER}/plan.json" in archive.namelist():
                    plan = archive.read(f"{RUN_FOLDER}/plan.json").decode()
                    return plan, json.loads(archive.read(f"{RUN_FOLDER}/run.json"))
    raise RuntimeError("no plan was sent")


def _timed(work: Callable[[], object]) -> float:
    """CPU seconds of this thread: the server's are not in it."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


if __name__ == "__main__":
    main()
