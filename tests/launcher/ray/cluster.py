"""A Ray cluster on this machine, with fake GPUs: `python -m tests.launcher.ray.cluster`.

A process of its own holds it (Ray is imported nowhere else), in a directory of its own, on ports
that are free, with a token of its own. It takes one order per line on stdin and answers with one
line of JSON. Its end is the end of all.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a-token-for-tests-only"
# a node that is dead is missed within five seconds, one that is slow is waited for: tests share
# their machine; no worker is started before it is needed
CONFIG = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}

HEAD = {
    "num_cpus": 0,
    "num_gpus": 0,
    "include_dashboard": True,
    "dashboard_agent_listen_port": 0,  # whichever is free
    "include_log_monitor": False,
    "labels": {"parctl.dev/node": "head"},
}


@dataclass(kw_only=True)
class RayCluster:
    """A running cluster, seen from the test: an address and a pipe to its holder."""

    holder: subprocess.Popen[str]
    folder: Path
    address: str
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> id, raylet's pid

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to be let in."""
        return {
            "PARCTL_BACKEND": "ray",
            "PARCTL_ADDRESS": self.address,
            "RAY_AUTH_TOKEN": TOKEN,
        }

    def add(self, name: str, **resources: Any) -> None:
        self.nodes[name] = self._order(add=name, **resources)

    def kill_raylet(self, name: str) -> None:
        """As a machine that loses its power: nothing is tidied up.

        It is reaped, since its workers end when it is gone, and a zombie counts as there.
        """
        os.kill(self.nodes.pop(name)["raylet"], signal.SIGKILL)
        self._order(reap=name)

    def kill_head(self) -> None:
        """End the head with its tables, dashboard and raylet."""
        self._order(behead=True)

    def restart_head(self) -> None:
        """End the head as `kill_head` does, and start another at the same addresses."""
        self._order(restart=True)

    def forget(self, name: str) -> None:
        """Let the holder reap what is left of a node."""
        self._order(forget=name)

    def close(self) -> None:
        """End every process of the cluster, and remove its files."""
        with contextlib.suppress(OSError):
            assert self.holder.stdin
            self.holder.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.holder.wait(20)
        for pid in _processes_in(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.holder.kill()
        self.holder.wait()
        for pipe in (self.holder.stdin, self.holder.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _order(self, **order: Any) -> dict[str, Any]:
        assert self.holder.stdin and self.holder.stdout
        self.holder.stdin.write(json.dumps(order) + "\n")
        self.holder.stdin.flush()
        line = self.holder.stdout.readline()
        assert line, (self.folder / "holder.log").read_text()[-3000:]
        answer: dict[str, Any] = json.loads(line)
        return answer


def start_cluster(
    nodes: Mapping[str, Mapping[str, Any]],
    *,
    python: str = sys.executable,
    fault_tolerant: bool = False,
) -> RayCluster:
    """Start a head without devices and `nodes`, each `{"num_gpus": 8, "num_cpus": 2}` or alike.

    `python` is the interpreter that Ray runs in. `fault_tolerant`: the head keeps its tables in
    files, and has them again when it is restarted.
    """
    folder = Path(tempfile.mkdtemp(prefix="pr-", dir="/tmp"))  # short: Ray makes sockets below it
    with (folder / "holder.log").open("w") as log:
        holder = subprocess.Popen(
            [python, "-m", "tests.launcher.ray.cluster", "--hold", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_clean_environment(folder, python, fault_tolerant=fault_tolerant),
            start_new_session=True,
        )
    cluster = RayCluster(holder=holder, folder=folder, address="")
    try:
        cluster.address = cluster._order(start="")["address"]
        for name, resources in nodes.items():
            cluster.add(name, **resources)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _clean_environment(folder: Path, python: str, *, fault_tolerant: bool) -> dict[str, str]:
    token = folder / "token"
    token.write_text(TOKEN)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "PARCTL_", "CUDA_"))
    }
    kept_tables = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "tables")}
    return {
        **kept,
        **CONFIG,
        **(kept_tables if fault_tolerant else {}),
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PARCTL_TEST_CLUSTER": str(folder),
        # the job's entry point is the `python3` of the head's PATH
        "PATH": os.path.dirname(python) + os.pathsep + os.environ["PATH"],
    }


def _processes_in(folder: Path) -> list[int]:
    """Every process that was started for the cluster in `folder`."""
    mark = f"PARCTL_TEST_CLUSTER={folder}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def _hold(folder: str) -> None:
    """Keep the cluster, and obey."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints what it likes
    from ray._private import services
    from ray.cluster_utils import Cluster

    services.get_node = _patient(services.get_node)
    cluster: Any = Cluster(shutdown_at_exit=True)
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        if "start" in order:
            head = _tried(lambda: cluster.add_node(**HEAD, dashboard_port=_free_port()))
            answer = {"address": f"http://{head.webui_url}"}
        elif "restart" in order:
            _behead(cluster)
            ports = {
                "dashboard_port": _port(cluster.webui_url),
                "gcs_server_port": _port(cluster.gcs_address),
            }
            cluster.head_node = None
            _tried(partial(cluster.add_node, **HEAD, **ports))
        elif "add" in order:
            name = order.pop("add")
            labels = {"parctl.dev/node": name, **order.pop("labels", {})}
            node = _tried(partial(cluster.add_node, labels=labels, **order))
            nodes[name] = node
            (raylet,) = node.all_processes["raylet"]
            answer = {"id": node.node_id, "raylet": raylet.process.pid}
        elif "reap" in order:
            (raylet,) = nodes[order["reap"]].all_processes["raylet"]
            raylet.process.wait()
        elif "behead" in order:
            _behead(cluster)
        elif "forget" in order:
            node = nodes.pop(order["forget"])
            cluster.remove_node(node, allow_graceful=False)
            while any(row["Alive"] for row in _rows(cluster, node.node_id)):
                time.sleep(0.2)  # until it is missed
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    cluster.shutdown()


def _behead(cluster: Any) -> None:
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _rows(cluster: Any, node_id: str) -> list[Any]:
    return [row for row in cluster.global_state.node_table() if row["NodeID"] == node_id]


def _patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """Ray asks once whether a node is up, for 30 seconds; a machine under load may need longer."""

    def asked(*words: Any) -> Any:
        for _ in range(3):
            with contextlib.suppress(RuntimeError):
                return ask(*words)
        return ask(*words)

    return asked


def _tried(add: Callable[[], Any]) -> Any:
    """Ray gives a node 15 to 30 seconds to start, which a machine under load may not do at once."""
    for _ in range(3):
        try:
            return add()
        except Exception as error:  # that is all that Ray raises
            refusal = error
            print(f"once more: {error}", file=sys.stderr)
    raise refusal


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="A Ray cluster on this machine, with fake GPUs.")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hold", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.hold:
        _hold(given.hold)
        return
    nodes = {
        f"node-{number}": {"num_gpus": given.gpus, "num_cpus": 8} for number in range(given.nodes)
    }
    cluster = start_cluster(nodes)
    print(f"export PARCTL_BACKEND=ray PARCTL_ADDRESS={cluster.address} RAY_AUTH_TOKEN={TOKEN}")
    print("^C ends it", file=sys.stderr)
    try:
        while cluster.holder.poll() is None:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        cluster.close()


if __name__ == "__main__":
    main(sys.argv[1:])
