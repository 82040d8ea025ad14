"""One reading of this node, in a process of its own.

    python -m parctl.topology.discovery.reading        # prints one JSON document

A driver can hang, leak or crash. So the daemon never loads it: each reading is a child that lives
for a tenth of a second, and a driver that hangs costs that one reading. It also makes a reading
fresh: NVML remembers within a process what it saw first.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 60.0
LAST_WORDS = 300  # characters of a child's complaint that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    kind: str  # as of `parctl.topology.check.findings`, such as `dead-nvlink`
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one child said. `node` is a node of a topology file, None when there is no GPU."""

    node: dict[str, Any] | None
    warnings: tuple[str, ...]
    faults: tuple[Fault, ...]
    failure: str | None  # why there is no reading at all


def read_node(timeout_s: float = TIMEOUT_S) -> Reading:
    """Start a child, wait for it, and return what it read. Never raises."""
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, text=True
        )
    except subprocess.TimeoutExpired:
        return failed(f"the driver did not answer within {timeout_s:g} s")
    except OSError as error:
        return failed(f"no process could be started: {error.strerror}")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return failed(lines[-1][-LAST_WORDS:])
    try:
        return _from_json(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        return failed(f"the reading is not whole: {error}"[:LAST_WORDS])


def failed(why: str) -> Reading:
    """A reading of which nothing came but the reason."""
    return Reading(node=None, warnings=(), faults=(), failure=why)


def _from_json(document: dict[str, Any]) -> Reading:
    return Reading(
        node=document["node"],
        warnings=tuple(document["warnings"]),
        faults=tuple(Fault(kind=f["kind"], message=f["message"]) for f in document["faults"]),
        failure=None,
    )


def main() -> None:
    """Read this machine and print it; what is no GPU node has `node: null`."""
    from parctl.topology.check.findings import find_problems
    from parctl.topology.sources.local import discover_local
    from parctl.topology.store import topology_to_json

    topology = discover_local()
    found = topology.nodes[0].hardware.kind == "gpu"
    # the node's name is the cluster's to say: findings carry none
    faults = [problem for problem in find_problems(topology) if problem.fault] if found else []
    document = {
        "node": topology_to_json(topology)["nodes"][0] if found else None,
        "warnings": list(topology.warnings),
        "faults": [{"kind": problem.kind, "message": problem.message} for problem in faults],
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
