"""Starting agents in the bundles of a placement group, and what they say of their nodes."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parctl.errors import ParctlError
from parctl.launcher.ray import actor
from parctl.launcher.ray.team import Member
from parctl.topology.names import few

INLINE_BYTES = 100_000  # Ray makes an object per call of an argument that is larger


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What every agent is given."""

    package: str | None  # URI of the package with parctl; None: it is installed on the nodes
    settings: Mapping[str, Any]
    plan: str  # JSON, as it was sent


def start_agents(
    group: Any, needs: Mapping[str, Mapping[str, float]], sent: Sent
) -> dict[str, Any]:
    """Start one agent per bundle of a placement group, in their order; by node."""
    start = _starter(group, sent)
    return {name: start(index, name, need) for index, (name, need) in enumerate(needs.items())}


def start_agent(group: Any, index: int, name: str, need: Mapping[str, float], sent: Sent) -> Any:
    """Start the agent of node `name` in a bundle; nothing is waited for."""
    return _starter(group, sent)(index, name, need)


def _starter(group: Any, sent: Sent) -> Callable[[int, str, Mapping[str, float]], Any]:
    """What starts agents in a placement group: all of them are given the same two objects."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(actor)
    agent = ray.remote(actor.ParctlAgent)
    settings, plan = (_once(given) for given in (json.dumps(dict(sent.settings)), sent.plan))

    def start(index: int, name: str, need: Mapping[str, float]) -> Any:
        return agent.options(
            num_cpus=need["CPU"],
            num_gpus=need.get("GPU", 0),
            max_restarts=0,
            max_concurrency=4,  # a poll waits while orders arrive
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=index
            ),
        ).remote(sent.package, name, settings, plan)

    return start


def _once(text: str) -> Any:
    """A text as it goes to every agent: a long one once per node, and not once more per call."""
    import ray

    return text if len(text) < INLINE_BYTES else ray.put(text)


def described(
    actors: Mapping[str, Any],
    *,
    timeout_s: float,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Member]:
    """Wait until every agent has said where it is and what there is.

    `meanwhile` is called every second. Raises ParctlError when one does not start, or its node
    lacks what the run needs.
    """
    import ray

    questions = {actor.describe.remote(): name for name, actor in actors.items()}
    deadline, waiting = time.monotonic() + timeout_s, list(questions)
    while waiting and time.monotonic() < deadline:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
        meanwhile()
    if waiting:
        raise ParctlError(
            f"the agent did not start in {timeout_s:g} s on "
            f"{few([questions[question] for question in waiting])}",
            hint="Ray's logs of that node say why: runtime_env_agent.log, raylet.out",
        )
    answers = [_answer(question, name) for question, name in questions.items()]
    missing = [
        f"{answer['node']} ({answer['python']}): {', '.join(answer['missing'])}"
        for answer in answers
        if answer["missing"]
    ]
    if missing:
        raise ParctlError(
            f"the nodes lack what the run needs: {'; '.join(missing)}",
            hint="install it in the environment that Ray runs in there",
        )
    return [
        Member(
            node=answer["node"],
            node_id=answer["node_id"],
            address=answer["address"],
            pid=answer["pid"],
            gpus=tuple(answer["gpus"]),
            python=answer["python"],
            inside=answer["inside"],
            actor=actors[answer["node"]],
        )
        for answer in answers
    ]


def _answer(question: Any, name: str) -> Any:
    """What the agent of node `name` says of itself."""
    import ray

    try:
        return ray.get(question)
    except ray.exceptions.RuntimeEnvSetupError as error:  # of a working directory
        said = str(error).strip().splitlines()
        raise ParctlError(
            f"{name} could not unpack what was sent: {said[-1][:300] if said else error}",
            hint="Ray's runtime_env_agent.log of that node says more",
        ) from error
    except ray.exceptions.RayTaskError as error:
        cause = f"{type(error.cause).__name__}: {error.cause}".splitlines()[0][:300]
        raise ParctlError(
            f"the agent could not start on {name}: {cause}",
            hint="Ray's logs of that node say more",
        ) from error
