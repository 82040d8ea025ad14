"""Make a plan: recipe and cluster in, one frozen value out.

    degrees -> stages -> traffic per axis -> layout -> memory -> plan

Nothing here asks the world anything: the same recipe and topology give the same plan, byte for
byte.
"""

from dataclasses import replace
from typing import Any

from parctl._version import __version__
from parctl.errors import CannotPlaceError
from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.devices import Devices, explain_faults, narrowed, survey
from parctl.planner.expert_placement import explain_experts
from parctl.planner.flops import flops_convention, model_flops_per_token, tokens_per_step
from parctl.planner.gradients import with_grad_sync
from parctl.planner.infer import resolve_degrees
from parctl.planner.inference import estimate_inference_memory
from parctl.planner.inference_estimate import estimate_inference, inference_traffic
from parctl.planner.memory import estimate_memory
from parctl.planner.plan import Plan
from parctl.planner.request import layout_request, node_choice
from parctl.planner.resolution import Resolution
from parctl.planner.search.run import pace_of
from parctl.planner.stages import split_layers
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.estimate import estimate_time
from parctl.planner.traffic import bytes_per_step
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout
from parctl.topology.model import Topology
from parctl.topology.placement import largest_tp, lay_out
from parctl.topology.placement.available import available
from parctl.topology.placement.experts import expert_holders
from parctl.topology.products import find_product


def make_plan(
    recipe: Recipe,
    topology: Topology,
    *,
    backend: str = "local",
    calibration: Calibration | None = None,
) -> Plan:
    """Resolve the degrees of `recipe`, place its ranks on `topology` and estimate what they need.

    `calibration`: what this cluster was measured to reach; step times then follow it.
    A plan that does not fit is still a plan: `parctl.planner.fit.refuse_misfit` is the gate before
    a launch. Raises UsageError for a batch that does not divide, CannotPlaceError when no placement
    obeys the hard rules.
    """
    spec = recipe.parallelism
    usable = available(topology, **node_choice(recipe))
    devices = survey(usable, strict_node=spec.strict_node, allow_pcie_tp=spec.allow_pcie_tp)
    _refuse_precision(recipe, devices)
    most_tp = largest_tp(
        usable,
        allow_pcie_tp=spec.allow_pcie_tp,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        strict_node=spec.strict_node,
    )
    try:
        pace = None
        if spec.auto and recipe.train is not None and recipe.model is not None:
            pace = pace_of(recipe, topology, devices, most_tp, calibration)
        resolution = resolve_degrees(
            recipe,
            devices,
            largest_tp=most_tp,
            pace=None if isinstance(pace, str) else pace,
        )
    except CannotPlaceError as error:
        missing = explain_missing(topology, usable)
        if not missing:
            raise
        raise CannotPlaceError("; ".join((error.message, *missing)), hint=error.hint) from error
    resolved, degrees = resolution.recipe, resolution.degrees
    stages: tuple[tuple[int, ...], ...] = ()
    traffic: dict[str, float] | None = None
    if resolved.model is not None and resolved.train is not None:
        stages = split_layers(resolved.model, degrees.pp * resolved.parallelism.virtual_stages)
        traffic = bytes_per_step(resolved, degrees, stages)
    if resolved.model is not None and resolved.inference is not None:
        stages = split_layers(resolved.model, degrees.pp)
        traffic = inference_traffic(resolved, degrees)
    layout = _lay_out(resolution, topology, traffic)
    devices = narrowed(devices, topology, layout)
    resolved, why = with_grad_sync(resolved, degrees, devices)
    if (
        resolved.train is not None
        and (settled := bytes_per_step(resolved, degrees, stages)) != traffic
    ):
        # the layout answers the traffic that the plan states, so that it can be bound again
        traffic, layout = settled, _lay_out(resolution, topology, settled)
    layout = replace(layout, explain=(*layout.explain, *why))
    return Plan(
        recipe=resolved,
        topology={
            "digest": topology.digest,
            "source": topology.source,
            "kind": devices.kind,
            "largest_tp": most_tp,
            "nodes": _nodes_of(layout),
        },
        layout=layout,
        stages=stages,
        memory=_memory(resolved, degrees, stages, devices),
        time=_time(resolved, degrees, devices, traffic)
        | _step(resolved, degrees, stages, layout, devices, calibration)
        | _inference(resolved, degrees, stages, layout, devices, traffic),
        backend={"kind": backend},
        parctl_version=__version__,
    )


def explain_missing(topology: Topology, usable: Topology) -> list[str]:
    """Why a cluster has fewer devices than it seems to."""
    missing = []
    if usable is not topology:
        missing.append(f"`placement` leaves {len(usable.nodes)} of {len(topology.nodes)} nodes")
    faults = explain_faults(usable)
    return [*missing, faults] if faults else missing


def _lay_out(
    resolution: Resolution, topology: Topology, traffic: dict[str, float] | None
) -> Layout:
    layout = lay_out(layout_request(resolution.recipe, resolution.axes, traffic), topology)
    explain = (*resolution.explain, *layout.explain)
    model = resolution.recipe.model
    if layout.expert_axes is not None and model is not None and model.moe is not None:
        holders = expert_holders(layout)
        explain += explain_experts(model, resolution.recipe.parallelism, holders)
    return replace(layout, explain=explain)


def _nodes_of(layout: Layout) -> list[str]:
    return list(dict.fromkeys(slot.node for slot in layout.slots))


def _memory(
    recipe: Recipe, degrees: Degrees, stages: tuple[tuple[int, ...], ...], devices: Devices
) -> dict[str, Any]:
    if recipe.model is None:
        return {"fits": None, "reason": "task: script: parctl does not know the program's memory"}
    estimate = estimate_inference_memory if recipe.inference else estimate_memory
    memory = estimate(
        recipe, degrees, stages=stages, device_bytes=devices.memory_bytes, kind=devices.kind
    )
    return memory.to_json()


def _time(
    recipe: Recipe, degrees: Degrees, devices: Devices, traffic: dict[str, float] | None
) -> dict[str, Any]:
    """What the runtime divides its measurements by."""
    model, train = recipe.model, recipe.train
    if model is None or train is None:
        return {}
    return {
        "model_flops_per_token": model_flops_per_token(model, train.seq_len),
        "flops_convention": flops_convention(model),
        "tokens_per_step": tokens_per_step(train),
        "micro_batches_per_step": num_micro_batches(recipe, degrees),
        "peak_flops_per_device": _peak_flops(devices, recipe),
        "bytes_per_step": traffic,
    }


def _step(
    recipe: Recipe,
    degrees: Degrees,
    stages: tuple[tuple[int, ...], ...],
    layout: Layout,
    devices: Devices,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """How long a step will take. Of a script, nothing is known."""
    if recipe.model is None or recipe.train is None:
        return {}
    return estimate_time(recipe, degrees, stages, layout, devices, calibration)


def _inference(
    recipe: Recipe,
    degrees: Degrees,
    stages: tuple[tuple[int, ...], ...],
    layout: Layout,
    devices: Devices,
    traffic: dict[str, float] | None,
) -> dict[str, Any]:
    """How long tokens take, of a job that makes them."""
    if recipe.inference is None:
        return {}
    memory = estimate_inference_memory(
        recipe, degrees, stages=stages, device_bytes=devices.memory_bytes, kind=devices.kind
    )
    times = estimate_inference(recipe, degrees, layout, devices, memory)
    return {"bytes_per_step": traffic, "inference": times}


def _refuse_precision(recipe: Recipe, devices: Devices) -> None:
    """Raise CannotPlaceError for fp8 on devices that are known not to multiply it."""
    if recipe.train is None or recipe.train.precision != "fp8":
        return
    known = {name: find_product(name) for name in devices.products}
    without = [name for name, product in known.items() if product and product.fp8_flops is None]
    if devices.kind == "cpu":
        without = ["CPUs"]
    if without:
        raise CannotPlaceError(
            f"train.precision = fp8, and {', '.join(without)} cannot multiply it",
            hint="set train.precision: bf16",
        )


def _peak_flops(devices: Devices, recipe: Recipe) -> float | None:
    """The vendor's peak of the slowest product in the recipe's precision; None: not known."""
    assert recipe.train is not None
    peaks = []
    for name in devices.products:
        product = find_product(name)
        if product is None or recipe.train.precision in ("fp32", "fp64"):
            return None
        fp8 = recipe.train.precision == "fp8"
        peaks.append(product.fp8_flops if fp8 else product.bf16_flops)
    known = [peak for peak in peaks if peak is not None]
    return min(known) if known and len(known) == len(peaks) else None
