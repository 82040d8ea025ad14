"""What a device reaches: FLOP/s of products and of attention, bytes/s of memory.

A rate is the vendor's peak times a fitted share of the device's generation. Boards of one
generation differ in power: one that has fewer watts for each FLOP/s of its peak lowers its clock
under load, so its share is smaller (`Constants.power`).
"""

from dataclasses import dataclass

from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Job
from parctl.topology.products import Product

MEMORY = 0.85  # share of the bandwidth that copies reach
MOST_POWER = 1.2  # beyond it, watts per FLOP/s no longer bound the clock
# W per bf16 FLOP/s of the board of a generation that others are compared with
USUAL_POWER = {
    "ampere": 400 / 312e12,  # A100
    "hopper": 700 / 989e12,  # H100
    "blackwell": 1200 / 2450e12,  # GB200
}
# products by how their names begin, whose shares are those of the nearest generation fitted
GENERATIONS = {"b2": "blackwell", "b3": "blackwell", "gb": "blackwell", "h": "hopper"} | {
    "mi3": "hopper",
    "l4": "hopper",
}


@dataclass(frozen=True, slots=True)
class Rates:
    """FLOP/s of the layers' products, of bf16 products and of attention; bytes/s of memory."""

    products: float
    plain: float
    attention: float
    memory: float


def rates(job: Job, constants: Constants) -> Rates:
    product = job.product
    assert product.bf16_flops and product.memory_bytes_s
    generation = generation_of(product.key)
    held = held_share(product, constants)
    plain = product.bf16_flops * held * float(getattr(constants, f"gemm_{generation}"))
    products = plain
    if job.arithmetic != "bf16" and product.fp8_flops and generation != "ampere":
        share = float(getattr(constants, f"gemm_{generation}_fp8"))
        fp4 = 2.0 if job.arithmetic == "fp4" else 1.0
        products = product.fp8_flops * held * fp4 * share
    kernels = "hopper_tuned" if (generation, job.attention) == ("hopper", "tuned") else generation
    return Rates(
        products=products,
        plain=plain,
        attention=product.bf16_flops * held * float(getattr(constants, f"attention_{kernels}")),
        memory=product.memory_bytes_s * MEMORY,
    )


def held_share(product: Product, constants: Constants) -> float:
    """How much of its peak a board holds under load, beside the usual one of its generation."""
    if product.watts is None or not product.bf16_flops:
        return 1.0
    own = product.watts / product.bf16_flops
    usual = USUAL_POWER[generation_of(product.key)]
    return float(min(own / usual, MOST_POWER) ** constants.power)


def generation_of(key: str) -> str:
    return next((name for start, name in GENERATIONS.items() if key.startswith(start)), "ampere")
