"""From measurements to a calibration: alpha and beta of every class of link, share of the peak.

A collective of S bytes over n ranks takes a x alpha + b x beta seconds, where alpha is the latency
of a step and beta the seconds per byte. a and b are those of `parctl.planner.time.links`, so that
what is fitted here is what is predicted there::

                          one island            i islands of g ranks
    all-gather,           n - 1, S (n-1)/n      n, S (i-1)/i / g
    reduce-scatter
    all-reduce            twice that            twice that
    all-to-all            1, S (n-1)/n          1, S (n-g)/n
    send                  1, S                  1, S

Least squares of relative errors, so that small tensors fix alpha and large ones beta; neither may
be negative.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from parctl.planner.time.calibration import NETWORK, Calibration, Link, Products
from parctl.planner.time.compute import BYTES
from parctl.planner.time.constants import FITTED
from parctl.planner.time.rates import MEMORY
from parctl.topology.layout import Layout
from parctl.topology.model import Topology
from parctl.topology.products import Product


def calibrate(
    lines: Iterable[Mapping[str, Any]],
    layout: Layout,
    topology: Topology,
    product: Product | None,
    *,
    made_unix: float,
) -> Calibration:
    """Fit what the benchmark printed. `product`: the slowest device of the layout."""
    measured = tuple(lines)
    proofs = {proof.axis: proof for proof in layout.proofs}
    islands = {axis: num_islands(layout, topology, axis) for axis in proofs}
    by_class: dict[str, list[tuple[float, float, float]]] = {}
    for line in measured:
        if "collective" in line:
            proof = proofs[line["axis"]]
            a, b = coefficients(
                line["collective"],
                int(line["bytes"]),
                size=proof.size,
                islands=islands[proof.axis] if proof.worst_link == NETWORK else 1,
            )
            by_class.setdefault(proof.worst_link, []).append((a, b, float(line["seconds"])))
    by_type: dict[str, list[Mapping[str, Any]]] = {}
    for line in measured:
        if "product" in line:
            by_type.setdefault(line["dtype"], []).append(line)
    return Calibration(
        topology=topology.digest,
        source=topology.source,
        products={name: _products(found, name, product) for name, found in by_type.items()},
        links={name: fit_link(samples) for name, samples in by_class.items()},
        made_unix=made_unix,
        measurements=measured,
    )


def num_islands(layout: Layout, topology: Topology, axis: str) -> int:
    """How many nodes, or rack-scale NVLink domains, the widest group of an axis touches."""
    if axis not in layout.axes:
        layout = replace(layout, axes=layout.expert_axes or {})
    island = {node.name: node.domain or node.name for node in topology.nodes}
    of_rank = [island[slot.node] for slot in layout.slots]
    return max(len({of_rank[rank] for rank in group}) for group in layout.groups(axis))


def coefficients(
    collective: str, num_bytes: int, *, size: int, islands: int
) -> tuple[float, float]:
    """Steps of latency and bytes on the worst link of a group of `size` ranks."""
    n = size
    steps, share = n - 1.0, (n - 1) / n
    crossing = (n - 1) / n
    if islands > 1:
        inside = n / islands
        steps, share = float(n), (islands - 1) / islands / inside
        crossing = (n - inside) / n
    match collective:
        case "all-reduce":
            return 2 * steps, 2 * share * num_bytes
        case "all-to-all":
            return 1.0, crossing * num_bytes
        case "send":
            return 1.0, float(num_bytes)
    return steps, share * num_bytes


def fit_link(samples: Sequence[tuple[float, float, float]]) -> Link:
    """Fit alpha and beta to (a, b, seconds).

    >>> link = fit_link([(1, 1e3, 1e-5 + 1e-6), (1, 1e6, 1e-5 + 1e-3)])
    >>> round(link.latency_s, 9), round(link.bytes_s)
    (1e-05, 1000000000)
    """
    rows = [(a / t, b / t) for a, b, t in samples]
    aa, ab, bb = (sum(x * y for x, y in pairs) for pairs in _products_of(rows))
    a1, b1 = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    alpha, beta = -1.0, -1.0
    if determinant > 1e-12 * aa * bb:
        alpha = (a1 * bb - b1 * ab) / determinant
        beta = (b1 * aa - a1 * ab) / determinant
    if alpha < 0:
        alpha, beta = 0.0, b1 / bb
    if beta <= 0:  # latency is all that was seen: a bound, by the largest tensor
        alpha, beta = a1 / aa, min(t / b for _, b, t in samples)
    return Link(
        latency_s=alpha,
        bytes_s=1 / beta,
        error=median(abs(alpha * a + beta * b - t) / t for a, b, t in samples),
        samples=len(samples),
    )


def _products_of(
    rows: Sequence[tuple[float, float]],
) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[tuple[float, float]]]:
    return (
        [(a, a) for a, _ in rows],
        [(a, b) for a, b in rows],
        [(b, b) for _, b in rows],
    )


def _products(lines: Sequence[Mapping[str, Any]], dtype: str, product: Product | None) -> Products:
    best, shares = 0.0, []
    for line in lines:
        (m, k, n), seconds = line["product"], float(line["seconds"])
        flops = 2.0 * m * k * n
        best = max(best, flops / seconds)
        if dtype != "bf16" or product is None:
            continue
        if not product.bf16_flops or not product.memory_bytes_s:
            continue
        # the model of time counts separately what passes through memory
        traffic = BYTES * (m * k + k * n + m * n) * FITTED.gemm_traffic
        own = seconds - traffic / (product.memory_bytes_s * MEMORY)
        if own > 0.2 * seconds:  # else memory was measured, not the matrix units
            shares.append(flops / own / product.bf16_flops)
    return Products(
        flops=best, share=min(1.0, median(shares)) if shares else None, samples=len(lines)
    )
