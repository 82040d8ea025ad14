"""Asking for nodes that do not exist yet: a placement group that names none.

An autoscaler makes nodes for what waits in Ray, and a group bound to nodes by their ids waits for
exactly those. So while nodes of the plan are missing, a second, open group of the same shape waits:
so much on so many different nodes, whichever. What comes is not what was planned for, and the job
is laid out anew on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from parctl.launcher.ray.cluster import NodeState

NODE_LABEL = "ray.io/node-id"


class OpenGroup:
    """One such group; nothing is asked for before `ask`."""

    def __init__(self, run_id: str) -> None:
        self._name = f"parctl-{run_id}-open"
        self._group: Any = None

    def ask(self, needs: Sequence[Mapping[str, float]], *, without: Sequence[str]) -> None:
        """Let Ray know what is wanted, on no node of these ids. A second call changes nothing."""
        import ray

        if self._group is None:
            elsewhere = {NODE_LABEL: f"!in({','.join(without)})"} if without else {}
            self._group = ray.util.placement_group(
                [dict(need) for need in needs],
                strategy="STRICT_SPREAD",
                name=self._name,
                bundle_label_selector=[elsewhere] * len(needs),
            )

    def given(self, nodes: Mapping[str, NodeState]) -> tuple[Any, list[str]] | None:
        """The group and the names of its nodes, by bundle, once Ray has them all."""
        import ray

        if self._group is None:
            return None
        table = ray.util.placement_group_table(self._group)
        if table["state"] != "CREATED":
            return None
        names = {node.node_id: name for name, node in nodes.items()}
        on = table["bundles_to_node_id"]
        found = [names.get(on[index]) for index in range(len(on))]
        if None in found:  # a node that came and went, or is not listed yet
            return None
        group, self._group = self._group, None
        return group, [name for name in found if name is not None]

    def withdraw(self) -> None:
        """Ask no more, and give back what came of it."""
        import ray

        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None
