"""Move stacked experts between their order in checkpoints and the places that the plan gives them.

In checkpoints, in first weights and in Hugging Face folders expert e is row e. On the ranks row p
of the stack is the expert at place p (`planner.expert_placement`). The two differ only where the
recipe asks for another placement than `block`; then one all-to-all over ep moves the rows, at the
start, and into a copy at every save.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parctl.runtime.parallel.collectives import all_to_all_rows

Orders = Mapping[str, tuple[int, ...]]  # of parameters that are not in blocks: expert at each place


def to_places(state: Mapping[str, Tensor], orders: Orders, ep: dist.ProcessGroup) -> None:
    """Move rows in place, from the order of checkpoints."""
    for name in sorted(state):
        order = order_of(name, orders)
        if order is not None:
            own = own_rows(state[name])
            with torch.no_grad():
                own.copy_(moved(own, order, ep))


def in_checkpoint_order(
    state: Mapping[str, Tensor], orders: Orders, ep: dist.ProcessGroup
) -> dict[str, Tensor]:
    """Return the same tensors, moved copies in place of those that are elsewhere."""
    result = dict(state)
    for name in sorted(state):
        order = order_of(name, orders)
        if order is not None:
            tensor = state[name]
            assert isinstance(tensor, DTensor)
            place_of = sorted(range(len(order)), key=lambda place: order[place])
            result[name] = DTensor.from_local(
                moved(own_rows(tensor), place_of, ep),
                tensor.device_mesh,
                tensor.placements,
                shape=tensor.shape,
                stride=tensor.stride(),
            )
    return result


def order_of(name: str, orders: Orders) -> tuple[int, ...] | None:
    """Moments are named after their parameter: `optimizer.exp_avg.NAME`, weights `model.NAME`."""
    return next((order for part, order in orders.items() if name.endswith(part)), None)


def own_rows(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def moved(own: Tensor, source: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Row i of the whole stack becomes what row `source[i]` was. `own` are this rank's rows."""
    room, rank = own.shape[0], group.rank()
    assert room * group.size() == len(source), (own.shape, source)
    send: list[list[int]] = []
    receive: list[list[int]] = []
    for other in range(group.size()):
        theirs = source[other * room : (other + 1) * room]
        send.append([row - rank * room for row in theirs if row // room == rank])
        mine = enumerate(source[rank * room : (rank + 1) * room])
        receive.append([place for place, row in mine if row // room == other])
    flat = own.reshape(room, -1)
    leaving = flat[[row for rows in send for row in rows]]
    arrived = all_to_all_rows(leaving, [len(x) for x in send], [len(x) for x in receive], group)
    result = torch.empty_like(flat)
    result[[place for places in receive for place in places]] = arrived
    return result.view_as(own)
