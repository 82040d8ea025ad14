"""What a device reaches: FLOP/s of products and of attention, bytes/s of memory.

A rate is the vendor's peak times a fitted share of the device's generation. Boards of one
generation differ in power: one that has fewer watts for each FLOP/s of its peak lowers its clock
under load, so its share is smaller (`Constants.power`).
"""

from dataclasses import dataclass

from parctl.planner.time.constants import Constants
from parctl.planner.time.job import Job

MEMORY = 0.85  # share of the bandwidth that copies reach
MOST_POWER = 1.2  # beyond it, watts per FLOP/s no longer bound the clock
# W of a board (vendors' data sheets); the first of a generation is what others are compared with
POWER = {
    "ampere": {"a100-80g": 400.0},
    "hopper": {"h100": 700.0, "h200": 700.0, "h800": 700.0, "h100-500w": 500.0, "h20": 400.0},
    "blackwell": {"gb200": 1200.0, "b200": 1000.0, "b300": 1100.0, "gb300": 1400.0},
}
PEAKS = {"ampere": 312e12, "hopper": 989e12, "blackwell": 2450e12}  # bf16, of that first board
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
    held = held_share(product.key, product.bf16_flops, constants)
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


def held_share(key: str, peak: float, constants: Constants) -> float:
    """How much of its peak a board holds under load, beside the first board of its generation."""
    generation = generation_of(key)
    boards = POWER[generation]
    usual = next(iter(boards.values())) / PEAKS[generation]
    own = boards.get(key, usual * peak) / peak
    return float(min(own / usual, MOST_POWER) ** constants.power)


def generation_of(key: str) -> str:
    return next((name for start, name in GENERATIONS.items() if key.startswith(start)), "ampere")
