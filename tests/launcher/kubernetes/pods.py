"""Pods without a cluster: the container's own program, started as processes of this machine.

Everything but the kubelet is real: agents, leader, node processes, ranks, and TCP between them.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parctl.launcher.kubernetes.render import Target, render
from parctl.planner.plan import Plan

RUN = "probe-run"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Pod:
    index: int
    folder: Path
    process: subprocess.Popen[bytes]

    def wait(self, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    @property
    def last_words(self) -> Any:
        text = (self.folder / "last-words").read_text(encoding="utf-8")
        return json.loads(text) if text.startswith("{") else text


@dataclass(slots=True)
class Pods:
    """The pods of one run, on nodes of these names."""

    plan: Plan
    folder: Path
    nodes: Sequence[str]
    target: Target
    port: int = field(default_factory=free_port)
    pods: dict[int, Pod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        payload = self.folder / "plan"
        payload.mkdir(parents=True, exist_ok=True)
        for document in render(self.plan, RUN, self.target).documents:
            for name, data in document.get("binaryData", {}).items():
                (payload / name).write_bytes(base64.b64decode(data))

    def start(self, index: int, *, attempts: int = 0, **environment: str) -> Pod:
        if index in self.pods:
            self.pods[index].process.wait(10)
        folder = self.folder / f"pod-{index}-{time.monotonic_ns()}"
        (folder / "run").mkdir(parents=True)
        own = {
            "PARCTL_RUN_ID": RUN,
            "PARCTL_LEADER": "localhost",
            "PARCTL_CONTROL_PORT": str(self.port),
            "PARCTL_PLAN_FOLDER": str(self.folder / "plan"),
            "PARCTL_RUN_FOLDER": str(folder / "run"),
            "PARCTL_LAST_WORDS": str(folder / "last-words"),
            "PARCTL_NODE": self.nodes[index],
            "PARCTL_POD": f"{RUN}-{index}",
            "PARCTL_POD_UID": folder.name,
            "PARCTL_POD_IP": "127.0.0.1",
            "PARCTL_FAILURES": str(attempts),
            "JOB_COMPLETION_INDEX": str(index),
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "parctl.launcher.kubernetes.pod"],
                env={**os.environ, **own, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        pod = Pod(index=index, folder=folder, process=process)
        self.pods[index] = pod
        return pod

    def start_all(self, order: Sequence[int] | None = None) -> None:
        for index in order or range(len(self.nodes)):
            self.start(index)

    def wait_for(self, text: str, *, index: int = 0, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.pods[index].log:
            assert time.monotonic() < deadline, self.pods[index].log
            time.sleep(0.05)

    def codes(self) -> list[int]:
        return [self.pods[index].wait() for index in sorted(self.pods)]

    def end(self) -> None:
        for pod in self.pods.values():
            if pod.process.poll() is None:
                pod.process.send_signal(signal.SIGKILL)
                pod.process.wait()
