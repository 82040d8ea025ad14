"""Taking the nodes of a plan from Ray: one placement group, one bundle and one agent per node.

A bundle names its node by Ray's own label `ray.io/node-id`, so nothing is left to Ray's choice: its
packing knows neither the mesh nor its groups, and puts eight ranks that belong together on two
nodes. All bundles are got together or none is. Where the planned nodes are taken but others are
free, the job is laid out anew on those, by the same pure function that made the plan.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parctl.errors import CannotPlaceError, ParctlError
from parctl.launcher.nodes.environment import ranks_by_node
from parctl.launcher.ray.agents import Sent, described, start_agent, start_agents
from parctl.launcher.ray.cluster import NodeState, count_waiting, read_holders, read_nodes
from parctl.launcher.ray.inside import with_insides
from parctl.launcher.ray.open_group import NODE_LABEL, OpenGroup
from parctl.launcher.ray.reasons import Reason, why_not_now
from parctl.launcher.ray.team import Member, RayTeam
from parctl.planner.plan import Plan
from parctl.planner.request import request_of
from parctl.topology.model import Topology
from parctl.topology.placement.late_binding import rebind
from parctl.topology.sources.ray import read_cluster
from parctl.topology.sources.ray_dashboard import Dashboard

GROUP_S = 10.0  # Ray answers in milliseconds when what it has is enough
AGENT_S = 120.0  # a node unpacks what it was sent, and starts a worker
MEND_S = 60.0  # the same, where all of it is there
RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Nodes that are ours."""

    group: Any  # ray.util.placement_group.PlacementGroup
    team: RayTeam
    plan: Plan  # with the layout on these nodes
    changes: tuple[str, ...]  # what differs from the plan that was sent, in sentences


class Placer:
    """Takes the nodes of a plan, and gives them back."""

    def __init__(
        self,
        plan: Plan,
        sent: Sent,
        dashboard: Dashboard,
        *,
        waits: Callable[[Reason], None],  # told why it cannot be now
        stopped: Callable[[], bool],
    ) -> None:
        self._plan, self._sent, self._dashboard = plan, sent, dashboard
        self._settings = sent.settings
        self._waits, self._stopped = waits, stopped
        self._avoided: set[str] = set()
        self._leaving: set[str] = set()
        self._open = OpenGroup(sent.settings["run_id"])

    def avoid(self, nodes: Iterable[str]) -> None:
        """Take these nodes no more."""
        self._avoided.update(nodes)

    def do_without(self, members: Iterable[Member]) -> None:
        """Take the nodes of these no more, which are about to end; others may get their names."""
        self._leaving.update(member.node_id for member in members)

    def place(self, *, deadline: float, fewer_from: float | None) -> Placed | None:
        """Wait for the nodes and take them. None: told to stop meanwhile.

        Both times are monotonic. From `fewer_from` on a smaller job on fewer nodes will do. Raises
        CannotPlaceError at the `deadline`, ParctlError when nodes lack what the run needs.
        """
        try:
            return self._place(deadline, fewer_from)
        finally:
            self._open.withdraw()

    def _place(self, deadline: float, fewer_from: float | None) -> Placed | None:
        while not self._stopped():
            looked = time.monotonic()
            there = read_nodes().items()
            nodes = {name: node for name, node in there if node.node_id not in self._leaving}
            fewer = fewer_from is not None and looked >= fewer_from
            found = self._plan_on(nodes, fewer=fewer)
            look_s = time.monotonic() - looked
            if found is not None:
                placed = self._take(*found, nodes)
                if placed is not None:
                    return placed
            elif given := self._open.given(nodes):
                return self._on_new_nodes(*given)
            reason = why_not_now(
                self._plan.layout,
                lambda count: need_of(count, self._kind),
                nodes,
                read_holders(self._dashboard),
                waiting=count_waiting(self._dashboard),
            )
            if time.monotonic() >= deadline:
                raise CannotPlaceError(reason.sentence, hint=reason.fix)
            self._waits(reason)
            needs = self._needs(self._plan)
            if not all(n in nodes and nodes[n].could_hold(need) for n, need in needs.items()):
                self._open.ask(list(needs.values()), without=self._barred(nodes))
            time.sleep(max(RETRY_S, look_s))  # thousands of nodes are not to keep the head busy
        return None

    def mend(self, placed: Placed) -> bool:
        """Start lost agents again on nodes that live. False: a node is gone, place anew."""
        import ray

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = placed.team.lost
        if not all(member.node_id in alive for member in lost):
            return False
        needs = self._needs(placed.plan)
        try:
            for member in lost:
                ray.kill(member.actor)  # one whose node process alone has ended
                index = list(placed.team.members).index(member.node)
                need = needs[member.node]
                actor = start_agent(placed.group, index, member.node, need, self._sent)
                (again,) = described(
                    {member.node: actor},
                    timeout_s=MEND_S,
                    meanwhile=lambda: list(placed.team.news(0)),  # the others are not to feel alone
                )
                if again.gpus != member.gpus:
                    return False
                placed.team.members[member.node] = again
        except (ray.exceptions.RayError, ParctlError):  # the node was dying after all
            return False
        return True

    def release(self, placed: Placed) -> None:
        """Give the nodes back; whatever still runs there ends with its agent."""
        import ray

        placed.team.dismiss(lambda actor: ray.kill(actor))
        ray.util.remove_placement_group(placed.group)

    @property
    def _kind(self) -> str | None:
        kind: str | None = self._plan.topology.get("kind")
        return kind

    def _plan_on(
        self, nodes: Mapping[str, NodeState], *, fewer: bool
    ) -> tuple[Plan, tuple[str, ...]] | None:
        """The plan itself if its nodes are free, else one for nodes that are."""
        if self._is_free(self._plan, nodes):
            return self._plan, ()
        request = request_of(self._plan)
        free = {
            name
            for name, node in nodes.items()
            if name not in {*request.exclude, *self._avoided} and self._is_whole(node)
        }
        topology = read_cluster(self._dashboard.address)
        there = {node.name: None for node in topology.nodes if node.name in free}
        try:
            binding = rebind(request, self._plan.layout, there, topology)
        except ParctlError:  # the reason is told by `why_not_now`, of the plan's own nodes
            pass
        else:
            bound = replace(self._plan, layout=binding.layout)
            if self._is_free(bound, nodes):
                return bound, binding.difference.sentences
        if fewer:
            from parctl.launcher.nodes.fewer import plan_for_fewer  # the planner: seldom needed

            return plan_for_fewer(
                self._plan,
                replace(topology, nodes=tuple(n for n in topology.nodes if n.name in there)),
                min_nodes=self._settings["min_nodes"],
            )
        return None

    def _is_free(self, plan: Plan, nodes: Mapping[str, NodeState]) -> bool:
        return all(
            name in nodes and name not in self._avoided and nodes[name].holds(need)
            for name, need in self._needs(plan).items()
        )

    def _needs(self, plan: Plan) -> dict[str, dict[str, float]]:
        """What the bundle of every node takes, in the order of node ranks."""
        slots = ranks_by_node(plan.layout)
        return {name: need_of(len(of_node), self._kind) for name, of_node in slots.items()}

    def _barred(self, nodes: Mapping[str, NodeState]) -> list[str]:
        """Ids of nodes that are there and must not, or cannot, be a part of the job."""
        named = {*request_of(self._plan).exclude, *self._avoided}
        return [n.node_id for n in nodes.values() if n.name in named or not self._is_whole(n)]

    def _is_whole(self, node: NodeState) -> bool:
        """Whether every device of a node is free: which ones are, Ray tells too late."""
        resource = "CPU" if self._kind == "cpu" else "GPU"
        return node.holds({resource: node.total.get(resource, 0.0)}) and node.holds(
            need_of(1, self._kind)
        )

    def _take(
        self, plan: Plan, changes: tuple[str, ...], nodes: Mapping[str, NodeState]
    ) -> Placed | None:
        """Make the placement group and its agents; None: somebody else was faster."""
        import ray

        needs = self._needs(plan)
        group = ray.util.placement_group(
            list(needs.values()),
            strategy="PACK",
            name=f"parctl-{self._settings['run_id']}",
            bundle_label_selector=[{NODE_LABEL: nodes[name].node_id} for name in needs],
        )
        if not group.wait(GROUP_S):
            ray.util.remove_placement_group(group)
            return None
        try:
            members = self._start(group, needs)
            plan, more = self._on_given_devices(plan, members)
        except ray.exceptions.ActorDiedError:  # a node died just now: look again
            ray.util.remove_placement_group(group)
            return None
        except BaseException:
            ray.util.remove_placement_group(group)
            raise
        return Placed(group=group, team=RayTeam(members), plan=plan, changes=(*changes, *more))

    def _on_new_nodes(self, group: Any, names: list[str]) -> Placed:
        """Start agents on nodes that nobody planned for, look inside, and lay the job out there."""
        import ray

        needs = dict(zip(names, self._needs(self._plan).values(), strict=True))
        try:
            members = self._start(group, needs)
            real = self._looked_into(members)
            there = {
                member.node: _numbers(member.gpus) if self._kind == "gpu" else None
                for member in members
            }
            binding = rebind(request_of(self._plan), self._plan.layout, there, real)
        except BaseException:
            ray.util.remove_placement_group(group)
            raise
        return Placed(
            group=group,
            team=RayTeam(members),
            plan=replace(self._plan, layout=binding.layout),
            changes=binding.difference.sentences,
        )

    def _start(self, group: Any, needs: Mapping[str, Mapping[str, float]]) -> list[Member]:
        return described(start_agents(group, needs, self._sent), timeout_s=AGENT_S)

    def _on_given_devices(self, plan: Plan, members: list[Member]) -> tuple[Plan, tuple[str, ...]]:
        """Lay the job out anew on the devices that came up, where they are not as planned.

        A fragmented node gives other GPUs, and a node may be other inside than Ray could tell.
        Raises CannotPlaceError when no layout there obeys the rules.
        """
        if self._kind != "gpu":
            return plan, ()
        given = {member.node: member.gpus for member in members}
        as_planned = all(slot.gpu in given[slot.node] for slot in plan.layout.slots)
        if as_planned and not any(member.has_gpus for member in members):
            return plan, ()  # Ray told all that there is to know
        real = self._looked_into(members)
        there = {node: _numbers(gpus) for node, gpus in given.items()}
        binding = rebind(request_of(plan), plan.layout, there, real)
        return replace(plan, layout=binding.layout), binding.difference.sentences

    def _looked_into(self, members: list[Member]) -> Topology:
        """The cluster, with what the agents found on their nodes."""
        told = read_cluster(self._dashboard.address)
        return with_insides(told, {member.node: member.inside for member in members})


def _numbers(gpus: Sequence[int | str]) -> list[int]:
    return [gpu for gpu in gpus if isinstance(gpu, int)]


def need_of(num_ranks: int, kind: str | None) -> dict[str, float]:
    """What a bundle for so many ranks takes of its node."""
    if kind == "cpu":
        return {"CPU": float(num_ranks)}
    return {"GPU": float(num_ranks), "CPU": 1.0}
