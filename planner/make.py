"""Make a plan: recipe and cluster in, one frozen value out.

    degrees -> stages -> traffic per axis -> layout -> memory -> plan

Nothing here asks the world anything: the same recipe and topology give the same plan, byte for
byte.
"""

from dataclasses import replace
from typing import Any

from parctl._version import __version__
from parctl.errors import NotBuiltError
from parctl.planner.degrees import Degrees, num_micro_batches
from parctl.planner.devices import Devices, narrowed, survey
from parctl.planner.flops import flops_convention, model_flops_per_token, tokens_per_step
from parctl.planner.infer import Resolution, resolve_degrees
from parctl.planner.memory import estimate_memory
from parctl.planner.plan import Plan
from parctl.planner.stages import split_layers
from parctl.planner.traffic import bytes_per_step
from parctl.recipes.spec import Recipe
from parctl.topology.layout import Layout
from parctl.topology.model import Topology
from parctl.topology.placement import LayoutRequest, largest_tp, lay_out
from parctl.topology.products import find_product


def make_plan(recipe: Recipe, topology: Topology, *, backend: str = "local") -> Plan:
    """Resolve the degrees of `recipe`, place its ranks on `topology` and estimate what they need.

    A plan that does not fit is still a plan: `parctl.planner.fit.refuse_misfit` is the gate before
    a launch. Raises UsageError for a batch that does not divide, CannotPlaceError when no placement
    obeys the hard rules.
    """
    spec = recipe.parallelism
    if recipe.task in ("generate", "serve"):
        raise NotBuiltError(
            f"{recipe.source}: task: {recipe.task} cannot be planned yet",
            hint="task: train and task: script can",
        )
    if spec.operator > 1:
        raise NotBuiltError(
            f"{recipe.source}: OP{spec.operator} (operator parallelism) cannot be planned yet",
            hint="leave OP out of `parallelism`",
        )
    devices = survey(topology, strict_node=spec.strict_node, allow_pcie_tp=spec.allow_pcie_tp)
    most_tp = largest_tp(
        topology,
        allow_pcie_tp=spec.allow_pcie_tp,
        allow_cross_node_tp=spec.allow_cross_node_tp,
        strict_node=spec.strict_node,
    )
    resolution = resolve_degrees(recipe, devices, largest_tp=most_tp)
    resolved, degrees = resolution.recipe, resolution.degrees
    stages: tuple[tuple[int, ...], ...] = ()
    traffic: dict[str, float] | None = None
    if resolved.model is not None and resolved.train is not None:
        stages = split_layers(resolved.model, degrees.pp * spec.virtual_stages)
        traffic = bytes_per_step(resolved, degrees, stages)
    layout = _lay_out(resolution, topology, traffic)
    devices = narrowed(devices, topology, layout)
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
        time=_time(resolved, degrees, devices, traffic),
        backend={"kind": backend},
        parctl_version=__version__,
    )


def _lay_out(
    resolution: Resolution, topology: Topology, traffic: dict[str, float] | None
) -> Layout:
    spec = resolution.recipe.parallelism
    layout = lay_out(
        LayoutRequest(
            axes=resolution.axes,
            ep=resolution.degrees.ep,
            etp=resolution.degrees.etp,
            sp=spec.sp,
            traffic=traffic,
            allow_cross_node_tp=spec.allow_cross_node_tp,
            allow_pcie_tp=spec.allow_pcie_tp,
            strict_node=spec.strict_node,
            linear=resolution.recipe.task == "script",
        ),
        topology,
    )
    return replace(layout, explain=(*resolution.explain, *layout.explain))


def _nodes_of(layout: Layout) -> list[str]:
    return list(dict.fromkeys(slot.node for slot in layout.slots))


def _memory(
    recipe: Recipe, degrees: Degrees, stages: tuple[tuple[int, ...], ...], devices: Devices
) -> dict[str, Any]:
    if recipe.model is None:
        return {"fits": None, "reason": "task: script: parctl does not know the program's memory"}
    memory = estimate_memory(
        recipe, degrees, stages=stages, device_bytes=devices.memory_bytes, kind=devices.kind
    )
    return memory.to_json()


def _time(
    recipe: Recipe, degrees: Degrees, devices: Devices, traffic: dict[str, float] | None
) -> dict[str, Any]:
    """What the runtime divides its measurements by. No step time is predicted."""
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
