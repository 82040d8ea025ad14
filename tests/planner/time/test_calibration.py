"""A calibration is fitted back from its own model, and the planner's times follow it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from parctl.errors import UsageError
from parctl.planner.make import make_plan
from parctl.planner.time.calibrate import calibrate, coefficients, fit_link, num_islands
from parctl.planner.time.calibration import Calibration, Link, Products, calibration_from_json
from parctl.planner.time.constants import FITTED
from parctl.planner.time.job import Fabric
from parctl.planner.time.links import group
from parctl.recipes.loader import load_recipe
from parctl.topology.layout import Layout, Proof
from parctl.topology.products import product_named
from parctl.topology.synthetic import parse_cluster

CLUSTER = parse_cluster("h100:4x8")
H100 = product_named("h100")
ISLANDS = {"tp": 1, "fsdp": 4}


def layout() -> Layout:
    return make_plan(load_recipe("llama-70b: TP8+SP+FSDP4"), CLUSTER).layout


def proof(axis: str) -> Proof:
    return next(proof for proof in layout().proofs if proof.axis == axis)


def made(**changes: Any) -> Calibration:
    link = Link(latency_s=5e-6, bytes_s=200e9, error=0.02, samples=20)
    whole = Calibration(
        topology=CLUSTER.digest,
        source=CLUSTER.source,
        products={"bf16": Products(flops=600e12, share=0.6, samples=5)},
        links={"nvlink": link, "network": replace(link, latency_s=2e-5, bytes_s=20e9)},
        made_unix=1.0,
    )
    return replace(whole, **changes)


def printed(alpha: dict[str, float], rate: dict[str, float]) -> list[dict[str, Any]]:
    """What the benchmark would print where links are exactly so."""
    lines: list[dict[str, Any]] = []
    for axis in ("tp", "fsdp"):
        link = proof(axis)
        for name in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send"):
            for num_bytes in (4096, 262_144, 16_777_216, 268_435_456):
                a, b = coefficients(name, num_bytes, size=link.size, islands=ISLANDS[axis])
                seconds = a * alpha[link.worst_link] + b / rate[link.worst_link]
                lines.append(
                    {"axis": axis, "collective": name, "bytes": num_bytes, "seconds": seconds}
                )
    return lines


def test_latency_and_rate_are_found_back() -> None:
    alpha, rate = {"nvlink": 4e-6, "network": 1.5e-5}, {"nvlink": 300e9, "network": 40e9}
    found = calibrate(printed(alpha, rate), layout(), CLUSTER, H100, made_unix=0)

    assert set(found.links) == {"nvlink", "network"}
    for name, link in found.links.items():
        assert link.latency_s == pytest.approx(alpha[name], rel=1e-6)
        assert link.bytes_s == pytest.approx(rate[name], rel=1e-6)
        assert link.error < 1e-9 and link.samples == 20


def test_coefficients_by_hand() -> None:
    def of(name: str, size: int, islands: int) -> tuple[float, float]:
        return coefficients(name, 8000, size=size, islands=islands)

    assert of("all-reduce", 8, 1) == (14, 14_000)
    assert of("all-gather", 8, 1) == (7, 7000)
    assert of("all-to-all", 8, 1) == (1, 7000)
    assert of("send", 8, 1) == (1, 8000)
    # 4 ranks, each on a node of its own; then 8 ranks, 4 on each of 2 islands
    assert of("reduce-scatter", 4, 4) == (4, 6000)
    assert of("reduce-scatter", 8, 2) == (8, 1000)
    assert of("all-to-all", 8, 2) == (1, 4000)


def test_a_rack_scale_domain_is_one_island() -> None:
    racks = parse_cluster("gb200:2x16x4")
    found = make_plan(load_recipe("llama-70b: TP8+SP+FSDP16"), racks).layout
    nodes = make_plan(load_recipe("llama-70b: TP8+SP+FSDP4"), CLUSTER).layout

    assert [num_islands(found, racks, axis) for axis in ("tp", "fsdp")] == [1, 2]
    assert [num_islands(nodes, CLUSTER, axis) for axis in ("tp", "fsdp")] == [1, 4]
    experts = make_plan(load_recipe("mixtral-8x7b: FSDP8+TP4+EP8"), CLUSTER).layout
    assert experts.expert_axes is not None and "ep" in experts.expert_axes
    assert num_islands(experts, CLUSTER, "ep") == 4


def test_what_is_fitted_is_what_the_planner_counts() -> None:
    fabric = Fabric(fast=1.0, slow=1.0, island=8, num_devices=32)
    measured = made()
    constants = measured.constants(H100)
    for axis, stride, size in (("tp", 1, 8), ("fsdp", 8, 4)):
        links = group(measured.fabric(fabric), constants, size=size, stride=stride)
        link = measured.links[proof(axis).worst_link]
        for num_bytes in (1e4, 1e9):
            for name, seconds in (
                ("all-gather", links.gather(num_bytes)),
                ("all-reduce", links.all_reduce(num_bytes)),
            ):
                a, b = coefficients(name, int(num_bytes), size=size, islands=ISLANDS[axis])
                assert seconds == pytest.approx(a * link.latency_s + b / link.bytes_s, rel=1e-9)


def test_outliers_and_bounds_do_not_make_nonsense() -> None:
    only_rate = fit_link([(1, 1e6, 1e-3), (1, 2e6, 2e-3)])
    assert only_rate.latency_s == pytest.approx(0, abs=1e-12)
    assert only_rate.bytes_s == pytest.approx(1e9)
    only_latency = fit_link([(1, 1e3, 1e-3), (1, 2e3, 0.9e-3)])
    assert only_latency.latency_s > 0 and only_latency.bytes_s > 0
    one = fit_link([(1, 1e6, 1e-3)])
    assert one.latency_s == 0 and one.bytes_s == pytest.approx(1e9)


def test_products_give_the_share_of_the_peak_beside_memory() -> None:
    # 8192^3 at half of 989 TFLOP/s, and what passes through memory
    flops, traffic = 2 * 8192**3, 2 * 3 * 8192**2 * FITTED.gemm_traffic
    seconds = flops / (0.5 * 989e12) + traffic / (3.35e12 * 0.85)
    lines = [{"product": [8192, 8192, 8192], "dtype": "bf16", "seconds": seconds}]
    found = calibrate(lines, layout(), CLUSTER, H100, made_unix=0).products["bf16"]

    assert found.share == pytest.approx(0.5, rel=0.01)
    assert found.flops == pytest.approx(flops / seconds)
    assert calibrate(lines, layout(), CLUSTER, None, made_unix=0).products["bf16"].share is None


def test_constants_take_what_was_measured_and_keep_the_rest() -> None:
    changed = made().constants(H100)

    assert changed.gemm_hopper == pytest.approx(0.6)  # an H100 holds its clock as the first board
    assert changed.ring_latency == 2e-5
    assert (
        replace(changed, gemm_hopper=FITTED.gemm_hopper, ring_latency=FITTED.ring_latency) == FITTED
    )
    assert made(products={}, links={}).constants(H100) == FITTED
    fabric = Fabric(fast=1.0, slow=1.0, island=8, num_devices=8)
    assert made(links={}).fabric(fabric) == fabric


def test_predicted_times_follow_the_measurements() -> None:
    recipe = load_recipe("llama-70b: TP8+SP+FSDP4")
    usual = make_plan(recipe, CLUSTER)
    slow = make_plan(recipe, CLUSTER, calibration=made())
    link = Link(latency_s=1e-6, bytes_s=400e9, error=0, samples=1)
    fast = make_plan(
        recipe,
        CLUSTER,
        calibration=made(
            links={"nvlink": link, "network": link},
            products={"bf16": Products(flops=900e12, share=0.9, samples=1)},
        ),
    )
    parts = [plan.time["step_parts_s"] for plan in (fast, usual, slow)]

    assert parts[0]["tensor"] < parts[1]["tensor"] < parts[2]["tensor"]
    assert parts[0]["compute"] < parts[1]["compute"] < parts[2]["compute"]
    assert parts[0]["data"] < parts[1]["data"] < parts[2]["data"]
    assert "as measured here" in slow.time["step_time_basis"]
    assert "as measured here" not in usual.time["step_time_basis"]
    assert slow.hash == usual.hash  # an estimate makes no other plan


def test_a_calibration_survives_its_file() -> None:
    whole = made(measurements=({"axis": "tp", "seconds": 1.0},))
    assert calibration_from_json(json.loads(json.dumps(whole.to_json())), "x") == whole


@pytest.mark.parametrize("data", [{}, [], {"schema": 2}, {"schema": 1}, {"schema": 1, "links": 3}])
def test_a_file_that_is_no_calibration_is_refused(data: object) -> None:
    with pytest.raises(UsageError) as refused:
        calibration_from_json(data, "here.json")
    assert refused.value.message.startswith("here.json is ")
