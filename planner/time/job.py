"""What the time model looks at: a job as numbers, whoever described it.

A plan's recipe becomes a `Job` through `job_of`; published runs of other systems are made into one
by the benchmark that judges the model. Both then go the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.recipes.spec import ModelSpec, Recipe, Recompute
from parctl.topology.products import Product

Arithmetic = Literal["bf16", "fp8", "fp4"]
ARITHMETIC: Mapping[str, Arithmetic] = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8"}

# "plain": scores pass through memory; "first": never (FlashAttention, 2205.14135); "fused": its
# second version (2307.08691); "tuned": with the asynchronous units of Hopper (2407.08608, cuDNN)
Attention = Literal["plain", "first", "fused", "tuned"]


@dataclass(frozen=True, slots=True)
class Repeated:
    """Shares of the forward pass that the backward pass does again."""

    products: float = 0.0
    attention: float = 0.0
    elements: float = 0.0
    last: bool = True  # the last product, too, though nothing in backward needs its result


NOTHING, ALL = Repeated(), Repeated(1.0, 1.0, 1.0)
# torch stops once backward has what it needs (torch.utils.checkpoint, not reentrant)
STOPPED = Repeated(1.0, 1.0, 1.0, last=False)
REPEATED: Mapping[Recompute, Repeated] = {
    "none": NOTHING,
    "selective": Repeated(elements=1.0),  # results of products, attention and reductions are kept
    "full": STOPPED,
    "partitioned": STOPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What joins the devices of a job. Bandwidths in bytes/s, one way, of one device."""

    fast: float  # NVLink or xGMI, over all links; PCIe where there is none
    slow: float  # the device's share of the node's network
    island: int  # devices that `fast` joins: a node, or a rack-scale domain
    num_devices: int
    latency: float | None = None  # s per step of a ring inside an island; None: not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    model: ModelSpec
    degrees: Degrees
    sp: bool
    zero_stage: int
    schedule: str  # `layer`, or as recipes name it; another one is taken for DualPipe
    virtual_stages: int
    stages: Sequence[Sequence[int]]  # layers of every virtual stage, in model order
    seq_len: int
    micro_batch: int  # sequences
    num_micro_batches: int  # per rank and step
    arithmetic: Arithmetic  # of the layers' matrix products
    repeated: Repeated  # what backward computes again
    gathers_each: bool  # ZeRO-3 gathers weights for every micro-batch, not once per step
    scatters_each: bool  # gradients are exchanged after every micro-batch, not once per step
    gathered_bytes: float  # of a weight on its way
    cp_kind: Literal["ring", "ulysses"]
    windows: Sequence[int | None]  # attention window of layers, over and over; None: all before
    attention: Attention
    tensor_overlap: bool  # tensor exchanges run beside the products they feed
    data_overlap: bool  # data exchanges run beside the passes
    graphs: bool  # layers with experts need no word from the host
    trained_share: float  # of the parameters: 1, or what adapters (LoRA) add
    product: Product
    fabric: Fabric

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one rank."""
        return self.micro_batch * self.seq_len // self.degrees.cp

    @property
    def tokens_per_step(self) -> int:
        """Of all ranks together."""
        sequences = self.micro_batch * self.num_micro_batches * self.degrees.num_data_ranks
        return sequences * self.seq_len


def job_of(
    recipe: Recipe,
    degrees: Degrees,
    stages: Sequence[Sequence[int]],
    product: Product,
    fabric: Fabric,
) -> Job | None:
    """Return the job of a recipe whose degrees are known. None: nothing is known of its precision.

    fp32 and fp64 run outside the matrix units whose rates the model was fitted to.
    """
    model, train, spec = recipe.model, recipe.train, recipe.parallelism
    if model is None or train is None or train.precision not in ARITHMETIC:
        return None
    return Job(
        model=model,
        degrees=degrees,
        sp=spec.sp,
        zero_stage=spec.zero_stage,
        schedule="layer" if spec.layer else spec.schedule,
        virtual_stages=spec.virtual_stages,
        stages=stages,
        seq_len=train.seq_len,
        micro_batch=train.micro_batch,
        num_micro_batches=num_micro_batches(recipe, degrees),
        arithmetic=ARITHMETIC[train.precision],
        repeated=REPEATED[train.recompute],
        gathers_each=spec.zero_stage == 3 and spec.reshard != "never",
        scatters_each=not spec.reduces_once,
        gathered_bytes=2.0,  # shards are cast to bf16, products to float8 after the gathering
        cp_kind=spec.cp_kind,
        windows=(None,),
        attention="fused",
        tensor_overlap=False,
        data_overlap=True,
        graphs=False,
        trained_share=1.0,
        product=product,
        fabric=fabric,
    )
