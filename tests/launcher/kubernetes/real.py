"""Launching on the test cluster as a user would, and probes that cost no import of torch.

The probe counts: every rank adds one to a file of its own on a volume that all nodes share, again
and again, until a file `finish` is there; started again, it goes on from what its file says. So a
test sees what a fault cost without waiting for a training run.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tests.cluster.api import Object
from tests.cluster.cluster import Cluster
from tests.cluster.image import BASE

from parctl.errors import ParctlError
from parctl.launcher.backend import Diagnosis, RunStatus, State
from parctl.launcher.kubernetes.backend import KubernetesBackend
from parctl.launcher.launch import prepared_launch

Answer = TypeVar("Answer")
MOUNT = "/mnt/shared"
PROBE = f"""
import os, signal, sys, time
rank = os.environ["RANK"]
path = "{MOUNT}/count-" + rank
def leave(number, frame):
    open("{MOUNT}/asked-" + rank, "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
count = int(open(path).read()) if os.path.exists(path) else 0
print("rank", rank, "on", os.environ["PARCTL_NODE"], "from", count, flush=True)
open("{MOUNT}/pid-" + rank, "w").write(str(os.getpid()))
while not os.path.exists("{MOUNT}/finish"):
    time.sleep(0.1)
    count += 1
    with open(path + ".part", "w") as file:
        file.write(str(count))
    os.rename(path + ".part", path)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """A namespace of the test cluster, and parctl pointed at it."""

    cluster: Cluster
    namespace: str
    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "PARCTL_NAMESPACE": self.namespace,
            "PARCTL_IMAGE": BASE,
            "PARCTL_BACKEND": "kubernetes",
        }

    def ask(self, question: Callable[[KubernetesBackend], Answer]) -> Answer:
        """Ask a new back end each time: every command of a user is a new process."""
        backend = KubernetesBackend()
        try:
            return question(backend)
        finally:
            backend.client.close()

    def recipe(self, command: list[str], parallelism: str = "DP4", **launch: Any) -> Path:
        """Write the recipe of a script; `kubernetes` among the settings is merged into its own."""
        kubernetes = launch.pop("kubernetes", {})
        document = {
            "version": 1,
            "name": "probe",
            "task": "script",
            "parallelism": parallelism,
            "script": {"command": command},
            "placement": launch.pop("placement", {"exclude": ["gpu-3"]}),
            "launch": {
                "backend": "kubernetes",
                "stop_grace_s": 3,
                **launch,
                "kubernetes": {"cpu": "50m", "dead_node_s": 5, **kubernetes},
            },
        }
        file = self.folder / "probe.yaml"
        file.write_text(yaml.safe_dump(document))
        return file

    def launch(
        self,
        recipe: Path | str,
        run_id: str = "probe-1",
        *overrides: str,
        planned: Callable[[], None] = lambda: None,
    ) -> str:
        """Plan and submit; `planned` is called in between."""
        with prepared_launch(
            str(recipe),
            overrides=overrides,
            num_devices=None,
            backend="kubernetes",
            run_id=run_id,
            force=False,
            ahead=True,
        ) as prepared:
            backend = prepared.backend
            assert isinstance(backend, KubernetesBackend)
            planned()
            try:
                backend.submit(prepared.manifests)
            finally:
                backend.client.close()
        return run_id

    def parctl(self, *words: str, timeout_s: float = 240) -> "subprocess.CompletedProcess[str]":
        """Run the command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "parctl", *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    # ----------------------------------------------------------------- looking

    def status(self, run_id: str = "probe-1") -> RunStatus:
        return self.ask(lambda backend: backend.status(run_id))

    def why(self, run_id: str = "probe-1") -> Diagnosis:
        return self.ask(lambda backend: backend.why(run_id))

    def until(
        self,
        true: Callable[[RunStatus], object],
        run_id: str = "probe-1",
        *,
        seconds: float = 120,
    ) -> RunStatus:
        """Wait until a run's status is as wanted, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(run_id)
            if true(status):
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"{status}\n{self.why(run_id)}")
            time.sleep(0.2)

    def ended(self, run_id: str = "probe-1", *, seconds: float = 120) -> RunStatus:
        return self.until(lambda status: status.state.ended, run_id, seconds=seconds)

    def running(self, run_id: str = "probe-1", *, seconds: float = 120) -> RunStatus:
        return self.until(lambda s: s.state is State.RUNNING, run_id, seconds=seconds)

    def pods(self, run_id: str = "probe-1") -> list[Object]:
        selector = f"parctl.dev/run={run_id},parctl.dev/role=ranks"
        return self.cluster.api.list("Pod", self.namespace, selector=selector)

    def objects(self, run_id: str = "probe-1") -> list[str]:
        """Every object that carries the run's label, as `Kind/name`."""
        kinds = "jobset,job,service,configmap,networkpolicy,pod,role,rolebinding,serviceaccount"
        words = ["-n", self.namespace, "get", kinds, "-l", f"parctl.dev/run={run_id}"]
        return self.cluster.kubectl(*words, "-o", "name").split()

    def log(self, rank: int | None = None, run_id: str = "probe-1") -> list[str]:
        def read(backend: KubernetesBackend) -> list[str]:
            lines = backend.logs(run_id, rank=rank, since=None, tail=None, follow=False)
            return [line.text for line in lines]

        return self.ask(read)

    def diagnosis_until(
        self, words: str, run_id: str = "probe-1", *, seconds: float = 60
    ) -> Diagnosis:
        """Wait until the first sentence of `why` holds these words."""
        deadline = time.monotonic() + seconds
        while True:
            found: Diagnosis | None = None
            with suppress(ParctlError):
                found = self.why(run_id)
            if found is not None and words in found.sentence:
                return found
            assert time.monotonic() < deadline, f"want {words!r}: {found}"
            time.sleep(0.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A counting run, and what its ranks wrote to the shared volume."""

    here: Here
    volume: Path
    run_id: str = "probe-1"

    def counts(self) -> list[int]:
        return [int(file.read_text()) for file in sorted(self.volume.glob("count-?"))]

    def counting(self, num_ranks: int = 4, *, beyond: int = 3, seconds: float = 120) -> list[int]:
        """Wait until every rank has counted so far."""
        deadline = time.monotonic() + seconds
        while True:
            counts = self.counts()
            if len(counts) == num_ranks and min(counts) > beyond:
                return counts
            assert time.monotonic() < deadline, (counts, self.here.why(self.run_id))
            time.sleep(0.1)

    def asked(self) -> list[int]:
        """The ranks that were ever asked to leave, and so could save."""
        return sorted(int(file.name[-1]) for file in self.volume.glob("asked-?"))

    def finish(self) -> RunStatus:
        """Let the ranks end, and wait for the run."""
        (self.volume / "finish").touch()
        return self.here.ended(self.run_id)

    def kill_rank(self, rank: int, name: str = "KILL") -> None:
        """Send a signal to a rank, inside of its container."""
        pid = (self.volume / f"pid-{rank}").read_text()
        node = {found.rank: found.node for found in self.here.status(self.run_id).ranks}[rank]
        pod = next(p for p in self.here.pods(self.run_id) if p["spec"]["nodeName"] == node)
        words = ["-n", self.here.namespace, "exec", pod["metadata"]["name"], "--"]
        self.here.cluster.kubectl(*words, "sh", "-c", f"kill -{name} {pid}")


def start_probe(
    here: Here,
    *,
    run_id: str = "probe-1",
    parallelism: str = "DP4",
    planned: Callable[[], None] = lambda: None,
    **launch: Any,
) -> Probe:
    """Launch the counting probe with a shared volume. `planned`: called before it is submitted."""
    volume = here.cluster.claim(here.namespace, "shared")
    shared = {"shared": {"mount": MOUNT, "claim": "shared"}}
    kubernetes = {"volumes": shared, **launch.pop("kubernetes", {})}
    recipe = here.recipe(
        ["python3", "-S", "-c", PROBE], parallelism, kubernetes=kubernetes, **launch
    )
    here.launch(recipe, run_id, planned=planned)
    return Probe(here=here, volume=volume, run_id=run_id)


def nodes_by_rank(here: Here, run_id: str = "probe-1") -> dict[int, str]:
    """Where each rank is, by what the ranks themselves printed and the API server says."""
    found: dict[int, str] = {}
    for pod in here.pods(run_id):
        text = here.cluster.api.log(pod["metadata"]["name"], here.namespace)
        for line in text.splitlines():
            words = line.partition("placed ")[2]
            if words:
                told = json.loads(words)
                assert told["node"] == pod["spec"]["nodeName"]
                found[told["rank"]] = told["node"]
    return found
