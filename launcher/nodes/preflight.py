"""Try every node alone before the job takes them together, and name the ones that are bad.

Each node runs `parctl.runtime.preflight` on the devices that the job has there, with a store of its
own. Nodes are judged beside each other, since nobody knows what is normal here: one that reaches
less than half of the median is bad, as is one that fails or does not come back. A rank on CPUs has
them together with whoever else is there, so its rate tells nothing and only its results count.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from parctl.launcher.nodes.environment import ranks_by_node
from parctl.launcher.nodes.team import Team
from parctl.launcher.verdict import signal_name
from parctl.topology.layout import Layout, Slot

LIMIT_S = 180.0
SLOW = 0.5  # of the median
STOP_S = 2.0
MARK = "preflight "
RATES = (("tflops", "multiplies at", "TFLOP/s"), ("gb_per_s", "reduces at", "GB/s"))


@dataclass(slots=True)
class Trial:
    """What is known of one node."""

    measured: list[Mapping[str, Any]] = field(default_factory=list)  # one per rank
    failure: str | None = None
    over: bool = False


def try_nodes(
    team: Team,
    layout: Layout,
    *,
    pythons: Mapping[str, str],  # the interpreter of the ranks, by node
    kind: str | None,
    stopped: Callable[[], bool],
) -> dict[str, Trial]:
    """Run the preflight on every node at once; returns when all are over or the time is."""
    trials = {node: Trial() for node in ranks_by_node(layout)}
    slots = ranks_by_node(layout)
    for node in trials:
        team.tell(node, {"bind": team.members[node].address})
    deadline = time.monotonic() + LIMIT_S
    told = False
    while not all(trial.over for trial in trials.values()):
        for news in team.news(0.5):
            if news.node not in trials:  # it is there, and a smaller job has left it out
                continue
            trial, content = trials[news.node], news.content
            if "port" in content:
                order = _order(
                    slots[news.node],
                    address=team.members[news.node].address,
                    port=content["port"],
                    python=pythons[news.node],
                    kind=kind,
                )
                team.tell(news.node, {"start": order})
            for rank, text in content.get("lines", ()):
                _hear(trial, rank, text)
            if "exit" in content and content["exit"]["code"] != 0:
                trial.failure = trial.failure or _ended(content["exit"])
            if "complaint" in content:
                trial.failure = trial.failure or content["complaint"]
            if "lost" in content or "gone" in content:
                trial.failure, trial.over = content.get("lost", "its node process ended"), True
            trial.over = trial.over or "over" in content
        if (stopped() or time.monotonic() >= deadline) and not told:
            told = True
            for node, trial in trials.items():
                if not trial.over:
                    trial.failure = trial.failure or f"it has not answered for {LIMIT_S:g} s"
                    team.tell(node, {"stop": STOP_S})
        if told and time.monotonic() >= deadline + 5 * STOP_S:
            break
    return trials


def bad_nodes(trials: Mapping[str, Trial], num_ranks: Mapping[str, int]) -> dict[str, str]:
    """Say of every bad node what is bad about it."""
    found = {}
    for node, trial in trials.items():
        if trial.failure is not None:
            found[node] = trial.failure
        elif len(trial.measured) < num_ranks[node]:
            found[node] = f"{len(trial.measured)} of {num_ranks[node]} devices answered"
    for key, verb, unit in RATES:
        worst = {
            node: min(float(row[key]) for row in trial.measured)
            for node, trial in trials.items()
            if node not in found and all(row["device"] != "cpu" for row in trial.measured)
        }
        if len(worst) < 2:
            continue
        middle = median(worst.values())
        for node, rate in worst.items():
            if rate < SLOW * middle and node not in found:
                rank = min(trials[node].measured, key=lambda row: float(row[key]))["rank"]
                found[node] = (
                    f"rank {rank} {verb} {rate:.3g} {unit}, half of the nodes reach {middle:.3g}"
                )
    return found


def _order(
    slots: Sequence[Slot], *, address: str, port: int, python: str, kind: str | None
) -> dict[str, Any]:
    """What starts the ranks of one node as a world of their own."""
    mask = ",".join(str(slot.gpu) for slot in sorted(slots, key=lambda slot: slot.local_rank))
    common = {
        "WORLD_SIZE": str(len(slots)),
        "LOCAL_WORLD_SIZE": str(len(slots)),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": mask if kind == "gpu" else "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    ranks = [
        {
            "rank": slot.rank,
            "env": {
                **common,
                "RANK": str(slot.local_rank),
                "LOCAL_RANK": str(slot.local_rank),
                "PARCTL_PREFLIGHT_RANK": str(slot.rank),
            },
        }
        for slot in slots
    ]
    return {
        "attempt": 0,
        "plan": None,
        "leads": False,
        "ranks": ranks,
        "command": [python, "-P", "-m", "parctl.runtime.preflight"],
    }


def _hear(trial: Trial, rank: int, text: str) -> None:
    if not text.startswith(MARK):
        return
    row = json.loads(text.removeprefix(MARK))
    trial.measured.append(row)
    if not row["right"]:
        trial.failure = f"rank {rank} computes wrong results"


def _ended(end: Mapping[str, Any]) -> str:
    code = end["code"]
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"failed: {end.get('cause', code)}"
    return f"rank {end['rank']} {how}"
