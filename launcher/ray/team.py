"""The agents of a run as the driver sees them: one per node, each with one question under way."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parctl.launcher.nodes.team import News

POLL_S = 2.0  # an agent answers at once when there is news, and then at the latest
TICK_S = 0.25
LEAVE_S = 3.0  # for a node process to end what it has started; it takes tenths of a second


@dataclass(slots=True, kw_only=True)
class Member:
    """One agent."""

    node: str
    node_id: str
    address: str
    pid: int
    gpus: tuple[int | str, ...]
    python: str  # the interpreter of the ranks
    inside: Any  # the node's topology as it was found there, JSON; None: not looked at
    actor: Any  # ray.actor.ActorHandle
    preempted: bool = False  # lost because somebody took the node away on purpose
    leaving: bool = False  # its node is told to end, and waits for the ranks to save
    lost: str | None = None  # why nothing can be asked of it any more
    question: Any = None  # the ObjectRef of the poll under way
    orders: list[Any] = field(default_factory=list)

    @property
    def has_gpus(self) -> bool:
        """Whether the machine itself says that there are, and so how they are linked."""
        nodes = self.inside["nodes"] if self.inside else []
        return any(node["kind"] == "gpu" for node in nodes)


class RayTeam:
    """All agents of a placement: a `Team`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.node: member for member in members}

    @property
    def lost(self) -> list[Member]:
        return [member for member in self.members.values() if member.lost is not None]

    @property
    def leaving(self) -> list[Member]:
        return [member for member in self.members.values() if member.leaving]

    def tell(self, node: str, order: Mapping[str, Any]) -> None:
        member = self.members[node]
        if member.lost is None:
            member.orders = [*member.orders[-3:], member.actor.order.remote(order)]

    def tell_all(self, order: Mapping[str, Any]) -> None:
        for node in self.members:
            self.tell(node, order)

    def news(self, timeout_s: float) -> Iterator[News]:
        """Wait for news of any agent, and yield it. A lost agent's last news is `lost`."""
        import ray

        asked = {}
        for member in self.members.values():
            if member.lost is None:
                member.question = member.question or member.actor.poll.remote(POLL_S)
                asked[member.question] = member
        if not asked:
            return
        ready, _ = ray.wait(list(asked), num_returns=1, timeout=timeout_s)
        if ready:  # whatever else is there by now
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for question in ready:
            member = asked[question]
            member.question = None
            try:
                answers = ray.get(question)
            except ray.exceptions.RayError as error:
                member.lost = _why_lost(error)
                member.preempted = bool(getattr(error, "preempted", False))
                yield News(node=member.node, content={"lost": member.lost})
                continue
            for answer in answers:
                member.leaving = member.leaving or "leaving" in answer
                yield News(node=member.node, content=answer)

    def dismiss(self, kill: Callable[[Any], None]) -> None:
        """End every agent that is left, its node process first: it tells that nothing is left."""
        self.tell_all({"leave": True})
        waited = {node for node, member in self.members.items() if member.lost is None}
        deadline = time.monotonic() + LEAVE_S
        while waited and time.monotonic() < deadline:
            for news in self.news(TICK_S):
                if "gone" in news.content or "lost" in news.content:
                    waited.discard(news.node)
        for member in self.members.values():
            kill(member.actor)


def _why_lost(error: Exception) -> str:
    """What Ray says of an actor's end, in one line."""
    text = str(error)
    for mark, words in (
        ("node", "its node died"),
        ("SIGKILL", "its agent was killed"),
        ("died unexpectedly", "its agent died"),
        ("is unavailable", "its node does not answer"),
    ):
        if mark == "node" and ("NODE_DIED" in text or "node was terminated" in text):
            return words
        if mark != "node" and mark in text:
            return words
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
