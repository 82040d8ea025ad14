"""The actor that holds one node for a run, and passes words between the driver and the node.

It owns the node's share of the placement group, so Ray takes it along when the driver or the job
ends; its own end closes the pipe to the node process, which then stops the ranks. The ranks are not
its children: PR_SET_PDEATHSIG follows a thread, and an actor's methods run in threads.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.launcher.nodes.interface import interface_of
from parctl.launcher.processes import processes_with
from parctl.launcher.ray.packages import SHIPPED
from parctl.launcher.ray.run_files import run_directory

NEEDED = ("torch", "numpy")  # of parctl's own runtime
DEATH_S = 5.0
MOST_NEWS = 64  # messages that wait for the driver; one with lines of a rank has 256 KiB at most
PATIENCE_S = 10.0  # the driver may have gone; the node process is not to be stuck for ever


class Agent:
    """Lives on one node. The driver makes it an actor with a few threads."""

    def __init__(self, node: str, settings: Mapping[str, Any], plan: str) -> None:
        self._node, self._settings, self._plan = node, settings, plan
        self._news: deque[str] = deque()
        self._arrived = threading.Condition()
        self._gone = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._marks: dict[str, str] = {}

    def describe(self) -> dict[str, Any]:
        """Say where this is and what there is, and start the node process."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        missing = self._missing()
        if not missing:
            self._start_process(address)
        inside = None
        if self._gpus_matter:
            from parctl.launcher.ray.look import look  # torch is on its way meanwhile

            inside = look()
        return {
            "node": self._node,
            "node_id": context.get_node_id(),
            "address": address,
            "host": socket.gethostname(),
            "gpus": [_number(name) for name in context.get_accelerator_ids().get("GPU", [])],
            "inside": inside,
            "python": sys.executable,
            "missing": missing,
            "pid": os.getpid(),
        }

    def order(self, order: Mapping[str, Any]) -> None:
        self._write(order)

    def poll(self, timeout_s: float) -> list[dict[str, Any]]:
        """Return what the node process has said since, having waited for something to be said."""
        self._write({"beat": 1})
        with self._arrived:
            self._arrived.wait_for(lambda: self._news or self._gone, timeout_s)
            news = [json.loads(line) for line in self._news]
            self._news.clear()
            self._arrived.notify_all()
        if self._gone:
            news.append({"gone": self._end_of_process()})
        return news

    @property
    def _gpus_matter(self) -> bool:
        return bool(self._settings["device_kind"] == "gpu")

    def _missing(self) -> list[str]:
        """What this node lacks, in words."""
        runs_torch = self._settings["start"] == "fork" or self._settings["preflight"]
        wanted: Sequence[str] = NEEDED if runs_torch else ()
        found = [f"`{name}` is not installed" for name in wanted if find_spec(name) is None]
        secrets = self._settings["secrets"].items()
        found += [
            f"launch.secrets.{name} needs `{source}` in the environment that Ray was started with"
            for name, source in secrets
            if source not in os.environ
        ]
        workdir = self._settings["workdir"]
        if workdir not in (None, SHIPPED) and not Path(workdir).is_dir():
            found.append(f"there is no directory `{workdir}` (script.workdir)")
        return found

    def _start_process(self, address: str) -> None:
        run = run_directory(self._settings)
        self._marks = {
            "PARCTL_RUN_ID": self._settings["run_id"],
            "PARCTL_RUN_DIR": str(run),
            "PARCTL_NODE": self._node,
        }
        plan = run / f"plan-{self._node}.json"  # replaced when the layout is
        plan.write_text(self._plan, encoding="utf-8")
        interface = interface_of(address)
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        workdir = self._settings["workdir"]
        hello = {
            "settings": dict(self._settings),
            "plan": str(plan),
            "run_dir": str(run),
            "marks": self._marks,
            "defaults": dict.fromkeys(names, interface) if interface else {},
            "workdir": os.getcwd() if workdir == SHIPPED else workdir,
        }
        log = run / "logs" / f"node-{self._node}.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "parctl.launcher.nodes.node"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # Ray signals the group of a worker; the ranks may save
            )
        self._write(hello)
        threading.Thread(target=self._read, name="news", daemon=True).start()

    def _write(self, order: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            except OSError:  # it has gone, which is told by the end of its output
                pass

    def _read(self) -> None:
        """Take the node process's words at once, as long as the driver asks for them.

        Past MOST_NEWS the node process has to wait: ranks may write faster than a driver prints,
        and what they write is kept in their files anyhow.
        """
        assert self._process and self._process.stdout
        for line in self._process.stdout:
            with self._arrived:
                self._arrived.wait_for(lambda: len(self._news) < MOST_NEWS, PATIENCE_S)
                self._news.append(line.decode())
                self._arrived.notify_all()
        with self._arrived:
            self._gone = True
            self._arrived.notify_all()

    def _end_of_process(self) -> int:
        """Wait for the node process's end, and end what it left."""
        assert self._process
        code = self._process.wait(DEATH_S)
        deadline = time.monotonic() + DEATH_S
        while (left := processes_with(self._marks)) and time.monotonic() < deadline:
            for member in left:
                member.signal(signal.SIGKILL)
            time.sleep(0.02)
        return code


def _number(name: str) -> int | str:
    """A GPU as the topology counts it, where Ray names it by a number."""
    return int(name) if str(name).isdigit() else str(name)
