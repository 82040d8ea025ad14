"""Expert parallelism: experts on different ranks, and tokens sent to them (2006.16668).

`RankMesh.experts` deals the ranks of a pipeline stage out again over `edp, ep` and `etp` or `tp`
(`topology.placement.experts`). An expert lives on one ep rank, split over etp as the MLP is over
tp; edp ranks hold the same experts and share in storing them as the data axes do for the rest::

    rows sorted by expert --all-to-all--> rows of own experts, from all ranks --sort--> experts
    out                   <--all-to-all--                                     <-sort back-

The splits are uneven: how many rows go where is exchanged first, and the host waits for it. Without
ep, experts are split over tp like the MLP.

Every expert must see each token once. How tokens come to the experts, with tp > 1::

    etp = tp        as to the MLP: TP copy .. reduce, SP gather .. scatter
    else            SP: each tp rank sends its own tokens; TP: they are dealt out first (split ..
                    join); where etp > 1, the ranks of one etp group gather theirs .. scatter

The router always reads the stream, so its gradient is whole on every tp rank, or with SP a part.
Experts that are whole on every tp rank see other tokens on each: their gradients are parts too.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard._fsdp_common import (
    FSDPMeshInfo,
    HSDPMeshInfo,
    ShardPlacementResult,
)
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement

from parctl.planner.expert_placement import expert_order
from parctl.recipes.spec import ParallelismSpec
from parctl.runtime.model.linear import Exchange
from parctl.runtime.model.moe import Experts, Moe, place_rows
from parctl.runtime.model.sequence import SequencePart
from parctl.runtime.model.transformer import Transformer
from parctl.runtime.parallel.collectives import (
    Copy,
    Gather,
    Join,
    Reduce,
    Scatter,
    Split,
    all_gather_tokens,
    all_to_all_rows,
    own_tokens,
    swap_rows,
)
from parctl.runtime.parallel.context_parallel import sequence_part
from parctl.runtime.parallel.mesh import RankMesh
from parctl.runtime.parallel.tensor_parallel import call, set_parameter, sum_gradients

EXPERT, FFN_DIM, DIM = (
    0,
    {"w_gate": 1, "w_up": 1, "w_down": 2},
    {"w_gate": 2, "w_up": 2, "w_down": 1},
)


def apply(
    model: Transformer,
    parallelism: ParallelismSpec,
    mesh: RankMesh,
    *,
    tokens_per_step: int = 1,
) -> frozenset[str]:
    """Split the experts and place the exchanges, in place, on the meta device.

    `tokens_per_step` divides the balance losses of training.
    Returns the names of parameters whose gradient is to be summed over tp.
    """
    summed = set()
    for name, moe in experts_of(model):
        moe.router.token_groups = tuple(token_groups(mesh, sp=parallelism.sp))
        moe.router.tokens_per_step = tokens_per_step
        place_capacity(moe, mesh, parallelism)
        place_exchanges(moe, mesh, sp=parallelism.sp)
        split_experts(moe.experts, mesh)
        if mesh.experts is not None:
            order = expert_order(moe.moe.num_experts, parallelism, layer_of(name))
            moe.order = order if order != tuple(sorted(order)) else None
            moe.dispatch = partial(send_to_experts, mesh.experts["ep"].get_group())
            if "tp" in (mesh.experts.mesh_dim_names or ()) and mesh.sizes["tp"] > 1:
                summed |= {f"{name}.experts.{part}" for part, _ in moe.experts.named_parameters()}
    return frozenset(summed)


def experts_of(model: nn.Module) -> Iterator[tuple[str, Moe]]:
    for name, module in model.named_modules():
        if isinstance(module, Moe):
            yield name, module


def layer_of(name: str) -> int:
    """Layer of the experts called `name`; others than those of blocks count from far on.

    >>> layer_of("blocks.3.moe")
    3
    """
    kind, number, *_ = name.split(".")
    return int(number) if kind == "blocks" else sys.maxsize


def reset(model: nn.Module) -> None:
    """Give the routers' buffers their first values."""
    for _, moe in experts_of(model):
        moe.reset()


def token_groups(mesh: RankMesh, *, sp: bool) -> Iterator[dist.ProcessGroup]:
    """Groups over which a sum takes in every token of a micro-batch once."""
    for axis in ("dp", "fsdp", "tp") if sp else ("dp", "fsdp"):
        along = mesh.axis(axis)
        if along is not None:
            yield along.get_group()


def etp_group(mesh: RankMesh) -> dist.ProcessGroup | None:
    """Ranks that split one expert, where that is more than one."""
    if mesh.experts is None:
        axis = mesh.axis("tp")
    elif "etp" in (mesh.experts.mesh_dim_names or ()):
        axis = mesh.experts["etp"]
    else:
        axis = None
    return axis.get_group() if axis is not None and axis.size() > 1 else None


def place_capacity(moe: Moe, mesh: RankMesh, parallelism: ParallelismSpec) -> None:
    """Let the router see the choices of whole sequences, which cp and SP split."""
    gather: list[Exchange] = []
    own: list[Exchange] = []
    tp = mesh.axis("tp")
    if parallelism.sp and tp is not None:
        gather = [partial(all_gather_tokens, group=tp.get_group())]
        own = [partial(own_tokens, group=tp.get_group())]
    if mesh.cp is not None:
        part = sequence_part(mesh.cp, parallelism)
        gather = [*gather, partial(all_gather_tokens, group=mesh.cp.get_group())]
        gather = [*gather, partial(in_sequence, part)]
        own = [partial(part_of_sequence, part), *own]
    moe.router.gather, moe.router.own = partial(in_turn, gather), partial(in_turn, own)


def in_sequence(part: SequencePart, gathered_BS: Tensor) -> Tensor:
    """Put the parts of all cp ranks, one after the other, into the order of the sequence."""
    own = gathered_BS.shape[1] // part.count
    ranks = [replace(part, index=rank) for rank in range(part.count)]
    places = torch.cat([rank.positions(own, gathered_BS.device) for rank in ranks])
    return gathered_BS[:, places.argsort()]


def part_of_sequence(part: SequencePart, whole_BS: Tensor) -> Tensor:
    return whole_BS[:, part.positions(whole_BS.shape[1] // part.count, whole_BS.device)]


def place_exchanges(moe: Moe, mesh: RankMesh, *, sp: bool) -> None:
    tp_axis, etp = mesh.axis("tp"), etp_group(mesh)
    if tp_axis is None:
        return
    tp = tp_axis.get_group()
    if etp is not None and etp.size() == tp.size() and not sp:
        moe.enter, moe.leave = partial(call, Copy, tp), partial(call, Reduce, tp)
        return
    enter: list[Exchange] = []
    choices: list[Exchange] = []
    leave: list[Exchange] = []
    if not sp:
        enter, leave = [partial(call, Split, tp)], [partial(call, Join, tp)]
        choices = [partial(own_tokens, group=tp)]
    if etp is not None:
        enter, leave = [*enter, partial(call, Gather, etp)], [partial(call, Scatter, etp), *leave]
        choices = [*choices, partial(all_gather_tokens, group=etp)]
    moe.enter, moe.enter_choices = partial(in_turn, enter), partial(in_turn, choices)
    moe.leave = partial(in_turn, leave)


def in_turn(exchanges: list[Exchange], x: Tensor) -> Tensor:
    for exchange in exchanges:
        x = exchange(x)
    return x


def split_experts(experts: Experts, mesh: RankMesh) -> None:
    """Give this rank its experts, and of them its part."""
    expert: tuple[Placement, ...] = ()
    if mesh.experts is None:
        tp = mesh.axis("tp")
        if tp is None:
            return
        owners = tp
    else:
        expert = (Shard(EXPERT),)
        owners = mesh.experts["ep"]
        if etp_group(mesh) is not None:
            owners = mesh.experts["ep", "etp"]
    for name, parameter in list(experts.named_parameters()):
        split = (Shard(FFN_DIM[name]),) if owners.ndim > len(expert) else ()
        placements = (*expert, *split)
        set_parameter(experts, name, distribute_tensor(parameter.data, owners, placements))


def send_to_experts(
    ep: dist.ProcessGroup, experts: Experts, x_TD: Tensor, tokens_R: Tensor, counts_E: Tensor
) -> Tensor:
    """Let the ranks that own the experts answer our rows, and answer theirs.

    The host waits once: for how many rows go where, which also says how many are dropped.
    """
    counts_PE = counts_E.view(ep.size(), -1)  # E: of one rank, P: ranks
    each = [1] * ep.size()
    theirs_PE = all_to_all_rows(counts_PE, each, each, ep)
    send, receive = torch.stack((counts_PE.sum(dim=1), theirs_PE.sum(dim=1))).tolist()
    swapped_RD = swap_rows(x_TD.index_select(0, tokens_R[: sum(send)]), send, receive, ep)
    # sorted by rank, then expert; experts want all their rows together
    num_ranks, num_experts = theirs_PE.shape
    owners = torch.arange(num_experts, device=x_TD.device).repeat(num_ranks)
    order = owners.repeat_interleave(theirs_PE.flatten(), output_size=sum(receive)).argsort(
        stable=True
    )
    answers_RD = experts(swapped_RD.index_select(0, order), theirs_PE.sum(dim=0))
    return swap_rows(place_rows(answers_RD, order, len(order)), receive, send, ep)


Placing = Callable[[nn.Parameter], Shard | ShardPlacementResult | None]


def placing(model: nn.Module, mesh: RankMesh) -> Placing | None:
    """Say to FSDP over which ranks, and along which dim, it shards experts.

    They belong to the unit of their block, but those that hold the same ones are other ranks. The
    dim is `dim`, which nothing else splits, so a shard is one box of the whole tensor.
    """
    places: dict[nn.Parameter, Shard | ShardPlacementResult] = {}
    ranks: FSDPMeshInfo | None = None
    if mesh.experts is not None:
        names = mesh.experts.mesh_dim_names or ()
        if "edp_replicas" in names:
            both = mesh.experts["edp_replicas", "edp"]
            ranks = HSDPMeshInfo(both, shard_mesh_dim=1, replicate_mesh_dim=0)
        else:
            ranks = FSDPMeshInfo(mesh.experts["edp"], shard_mesh_dim=0)
    for _, moe in experts_of(model):
        for name, parameter in moe.experts.named_parameters():
            shard = Shard(DIM[name])
            places[parameter] = ShardPlacementResult(shard, ranks) if ranks else shard
    return places.get if places else None


def without_shards(model: nn.Module, mesh: RankMesh) -> set[nn.Parameter]:
    """Experts that the replicas of their block are not replicas of: `sum_over_edp` adds up."""
    if mesh.experts is None:
        return set()
    return {parameter for _, moe in experts_of(model) for parameter in moe.experts.parameters()}


def sum_over_edp(model: nn.Module, mesh: RankMesh) -> None:
    """Add up the gradients of experts without shards, in one all-reduce per step.

    torch's `replicate` takes one group of ranks for all parameters of a unit, and a unit inside a
    block would break selective recomputation, which counts the operations of a block.
    """
    if mesh.experts is None or mesh.axis("fsdp") is not None:
        return
    edp = mesh.experts["edp"]
    if edp.size() > 1:
        sum_gradients(
            (value for _, moe in experts_of(model) for value in moe.experts.parameters()), edp
        )
