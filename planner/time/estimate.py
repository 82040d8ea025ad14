"""The time section of a plan: step time, what it is spent on, throughput, and how sure that is.

A prediction is made where the model's parts were held against published runs. Elsewhere the plan
says why there is none: a guess that nobody has checked would be taken for more than it is.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from parctl.planner.degrees import Degrees
from parctl.planner.devices import Devices
from parctl.planner.flops import model_flops_per_token
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.constants import ERRORS, FITTED
from parctl.planner.time.job import Fabric, job_of
from parctl.planner.time.step import step_time
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout
from parctl.topology.products import Product, find_product

PCIE = 32.0  # GB/s one way, fourth generation, 16 lanes
NETWORK = 100.0  # Gbit/s
UNPREDICTED: dict[str, Any] = {
    "step_time_s": None,
    "step_parts_s": None,
    "tokens_per_s_per_gpu": None,
    "mfu": None,
}


def estimate_time(
    recipe: Recipe,
    degrees: Degrees,
    stages: Sequence[Sequence[int]],
    layout: Layout,
    devices: Devices,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Predict a step of `recipe` on its layout. What a calibration measured wins over constants.

    `step_time_basis` says how far such predictions are off, or why there is none.
    """
    model, train = recipe.model, recipe.train
    assert model is not None and train is not None
    product = slowest(devices)
    reason = not_modelled(recipe, devices, product)
    if reason is not None or product is None:
        return UNPREDICTED | {"step_time_basis": f"not predicted: {reason}"}
    fabric = fabric_of(layout, devices, product)
    constants = FITTED
    if calibration is not None:
        fabric, constants = calibration.fabric(fabric), calibration.constants(product)
    job = job_of(recipe, degrees, stages, product, fabric)
    assert job is not None  # the precision is one that `not_modelled` let pass
    time = step_time(job, constants)
    per_device = job.tokens_per_step / time.total / fabric.num_devices
    peak = product.fp8_flops if job.arithmetic == "fp8" else product.bf16_flops
    flops = model_flops_per_token(model, train.seq_len) * per_device
    middle, tail = ERRORS["moe" if model.moe is not None else "dense"]
    return {
        "step_time_s": time.total,
        "step_parts_s": asdict(time),
        "tokens_per_s_per_gpu": per_device,
        "mfu": flops / peak if peak else None,
        "step_time_basis": (
            f"estimate{', with links and products as measured here' if calibration else ''}; on "
            f"published runs of other models half are within {middle:.0%} and nine in ten within "
            f"{tail:.0%}"
        ),
    }


def not_modelled(recipe: Recipe, devices: Devices, product: Product | None) -> str | None:
    """Why there is no prediction. None: there is one."""
    model, train, spec = recipe.model, recipe.train, recipe.parallelism
    assert model is not None and train is not None
    if devices.kind == "cpu":
        return "the devices are CPUs"
    if product is None or not product.bf16_flops or not product.memory_bytes_s:
        return "the speed of the devices is not known"
    if train.precision in ("fp32", "fp64"):
        return f"train.precision {train.precision} was not held against published runs"
    reasons = {
        "encoder layers": model.num_encoder_layers > 0,
        "images": model.vision is not None,
        "operator parallelism": spec.operator > 1,
        "streams": train.streams > 1,
        "offloading": train.offload_activations or train.offload_optimizer,
        "a schedule of its own": spec.schedule_table is not None,
        "recomputation by layer": bool(train.recompute_layers),
    }
    return next(
        (f"{name} not in the model of time" for name, is_so in reasons.items() if is_so), None
    )


def slowest(devices: Devices) -> Product | None:
    """The product that the others wait for; None when one is not known."""
    found = [find_product(name) for name in devices.products]
    known = [product for product in found if product is not None]
    if not known or len(known) < len(found):
        return None
    return min(known, key=lambda product: product.bf16_flops or 0.0)


def fabric_of(layout: Layout, devices: Devices, product: Product) -> Fabric:
    """The links that the layout's groups cross, at the bandwidth of the worst of each class.

    What no group crosses, or is not known, is as the product usually has it.
    """
    inside = [
        proof.bandwidth
        for proof in layout.proofs
        if proof.worst_link in ("nvlink", "xgmi", "pcie") and proof.bandwidth is not None
    ]
    between = [
        proof.bandwidth
        for proof in layout.proofs
        if proof.worst_link == "network" and proof.bandwidth is not None
    ]
    fast = min(inside, default=product.nvlink_gb_s or product.pcie_gb_s or PCIE)
    slow = min(between, default=(product.nic_gbit_s or NETWORK) / 8)
    return Fabric(
        fast=fast * 1e9,
        slow=slow * 1e9,
        island=max(1, devices.largest_island),
        num_devices=layout.world_size,
    )
