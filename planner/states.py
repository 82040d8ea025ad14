"""Weights, gradients and optimizer state of one rank, by the closed forms of ZeRO (1910.02054).

With P the bytes of all parameters in the compute type, G those of the gradients, O those of the
optimizer's moments and of the weights it updates, and N the ranks that shard them:

    stage 0   P + G + O            ddp (weights that are computed with as they are need no copy P)
    stage 1   P + G + O/N          G whole between the micro-batches of a step only
    stage 2   P + (G + O)/N
    stage 3   (G + O)/N            fsdp; two layers of P at a time

The runtime keeps weights, gradients and both AdamW moments in fp32 and computes in the recipe's
precision (fp64 keeps everything in fp64): 16 bytes per parameter, and P. In stages 1 to 3 weights
are sharded at rest, and P is there from the first forward to the last backward pass of a step.

N is fsdp x cp for the dense part: context-parallel ranks hold the same weights, so they share in
storing them. For experts it is what `ep` leaves of that. `dp` replicates and never appears.
"""

from dataclasses import dataclass

from parctl.planner.degrees import Degrees
from parctl.planner.shards import Shard, ceil_div
from parctl.recipes.spec import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """Bytes per parameter (or per activation element, for `compute`)."""

    weight: int
    gradient: int
    optimizer: int
    compute: int

    @property
    def state(self) -> int:
        return self.weight + self.gradient + self.optimizer

    @property
    def sentence(self) -> str:
        return (
            f"{self.weight} B weights + {self.gradient} B gradients + {self.optimizer} B AdamW "
            f"moments per parameter, {self.compute} B per activation element"
        )


MIXED = Regime(weight=4, gradient=4, optimizer=8, compute=2)
REGIMES: dict[Precision, Regime] = {
    "fp64": Regime(weight=8, gradient=8, optimizer=16, compute=8),
    "fp32": Regime(weight=4, gradient=4, optimizer=8, compute=4),
    "bf16": MIXED,
    "fp16": MIXED,
    "fp8": MIXED,  # matmul inputs are cast on the way; what is kept is as in bf16
}


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes on one rank."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def dense_shards(degrees: Degrees) -> int:
    """How many ranks share in storing the dense part."""
    return degrees.fsdp * degrees.cp


def expert_shards(degrees: Degrees) -> int:
    """How many ranks share in storing one expert: what `ep` leaves of fsdp x cp (x tp)."""
    if degrees.fsdp == 1:
        return degrees.cp if degrees.ep == 1 else 1
    data = degrees.dp * degrees.fsdp * degrees.cp
    if data % degrees.ep == 0 and (degrees.ep == 1 or degrees.etp in (1, degrees.tp)):
        holders = data // degrees.ep
    else:
        holders = data * degrees.tp // (degrees.etp * degrees.ep)
    return holders if holders % degrees.dp else holders // degrees.dp


def state_bytes(
    shard: Shard, regime: Regime, zero_stage: int, degrees: Degrees, *, whole_gradients: bool
) -> States:
    """State of a rank that holds `shard`, sharded over the data axes from `zero_stage` on.

    `whole_gradients`: they wait for the last micro-batch of a step before they are scattered.

    A tensor that does not divide is padded by its owner to the next element, as here the whole
    shard is.
    """

    def stored(dense: int, *, shared: bool) -> int:
        if not shared:
            return dense + shard.experts
        own = ceil_div(shard.experts, expert_shards(degrees))
        return ceil_div(dense, dense_shards(degrees)) + own

    moved = shard.dense - shard.fixed
    return States(
        weights=regime.weight * stored(shard.dense, shared=zero_stage >= 1),
        gradients=regime.gradient * stored(moved, shared=zero_stage >= 1 and not whole_gradients),
        optimizer=regime.optimizer * stored(moved - shard.copied, shared=zero_stage >= 1),
    )


def gathered_bytes(
    shard: Shard, unit: Shard, regime: Regime, zero_stage: int, degrees: Degrees, *, crossing: int
) -> int:
    """What the data axes hold beside the state while a step runs.

    Stage 3: two layers (`unit`) gathered for compute, and one layer's gradient before it is
    scattered, as it is and as it crosses, `crossing` bytes per parameter. The head stays gathered
    from forward to backward, when no layer is. Stages 1 and 2: all layers gathered, since they are
    not let go before the step's last backward. Replicas, a lone rank, and one that computes in
    another type than it stores: a copy of all parameters.
    """
    if zero_stage < 1:
        replicas = degrees.dp * degrees.cp
        copied = replicas > 1 or degrees.world_size == 1 or regime.compute != regime.weight
        return regime.compute * shard.total if copied else 0
    gradient = unit.total * (regime.compute + crossing)
    if zero_stage < 3:
        return regime.compute * shard.total + gradient
    if dense_shards(degrees) == 1 and regime.compute == regime.weight:
        return 0
    return 2 * regime.compute * unit.total + gradient
