"""The leaders of replicas that step together, where experts are dealt out over replicas.

A step of one engine then waits for the same step of the others, so none may leave before all do:
after every step they tell each other whether they are through. Replicas without common experts know
nothing of each other, and each leaves by itself.
"""

import torch
import torch.distributed as dist

from parctl.runtime.parallel.mesh import RankMesh


class Leaders:
    """One per rank; all ranks make it at the same time."""

    def __init__(self, mesh: RankMesh) -> None:
        sizes = mesh.sizes
        self._group: dist.ProcessGroup | None = None
        if mesh.experts is None or mesh.data_size == 1:
            return
        replicas = torch.arange(dist.get_world_size()).view(
            sizes["pp"], mesh.data_size, sizes["cp"] * sizes["tp"]
        )
        first = replicas[0, :, 0].tolist()
        group = dist.new_group(first, backend="gloo", group_desc="leaders")
        if dist.get_rank() in first:
            self._group = group

    @property
    def together(self) -> bool:
        """Whether this is a leader that steps with others."""
        return self._group is not None

    def all_through(self, through: bool) -> bool:
        """Return whether every leader is; those that step together call it after each step."""
        if self._group is None:
            return through
        flag = torch.tensor(int(through))
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._group)
        return bool(flag)
