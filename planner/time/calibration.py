"""What a cluster was measured to reach, and how the time model uses it instead of its constants.

A calibration belongs to one topology, by its digest. It says, by class of link, latency and rate as
the collectives of `parctl.planner.time.links` count them, and what share of a device's peak its
matrix products reach. Measured facts win over fitted ones, one by one: what was not measured stays
as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from parctl.errors import UsageError
from parctl.planner.time.constants import FITTED, Constants
from parctl.planner.time.job import Fabric
from parctl.planner.time.links import FAST, SLOW
from parctl.planner.time.rates import generation_of, held_share
from parctl.recipes.frozen import from_json, to_json
from parctl.topology.products import Product

SCHEMA = 1
NETWORK = "network"  # the one class of link between islands


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One class of link, one way, of one device."""

    latency_s: float  # per step of a ring
    bytes_s: float  # that collectives reach with large tensors
    error: float  # half of the measurements are within this share of the fit
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Matrix products of one type of number."""

    flops: float  # FLOP/s of the best shape
    share: float | None  # of the vendor's peak, beside what passes through memory; None: no peak
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    topology: str  # digest
    source: str  # the cluster in words
    products: Mapping[str, Products]  # by type: bf16, fp32
    links: Mapping[str, Link]  # by class of link
    made_unix: float
    measurements: tuple[Mapping[str, Any], ...] = field(default=())

    def constants(self, product: Product, fitted: Constants = FITTED) -> Constants:
        """The constants of the time model, with what was measured in place of what was fitted."""
        measured: dict[str, float] = {}
        network = self.links.get(NETWORK)
        if network is not None:
            measured["ring_latency"] = network.latency_s
        share = self.products["bf16"].share if "bf16" in self.products else None
        if share is not None and product.bf16_flops:
            held = held_share(product, fitted)
            measured[f"gemm_{generation_of(product.key)}"] = share / held
        return replace(fitted, **measured)

    def fabric(self, fabric: Fabric) -> Fabric:
        """The links of a job, as fast as they were measured."""
        inside = [link for name, link in self.links.items() if name != NETWORK]
        between = self.links.get(NETWORK)
        return replace(
            fabric,
            fast=min(link.bytes_s for link in inside) / FAST if inside else fabric.fast,
            slow=between.bytes_s / SLOW if between else fabric.slow,
            latency=max(link.latency_s for link in inside) if inside else fabric.latency,
        )

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = to_json(self)
        return {"schema": SCHEMA, **document}


def calibration_from_json(data: Any, where: str) -> Calibration:
    """Read a calibration back. UsageError names `where` it was found."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UsageError(
            f"{where} is no calibration of this version",
            hint="`parctl bench RECIPE` measures and writes one",
        )
    try:
        return Calibration(
            topology=data["topology"],
            source=data["source"],
            products={name: from_json(Products, entry) for name, entry in data["products"].items()},
            links={name: from_json(Link, entry) for name, entry in data["links"].items()},
            made_unix=float(data["made_unix"]),
            measurements=tuple(data["measurements"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{where} is incomplete: {type(error).__name__}: {error}",
            hint="`parctl bench RECIPE` measures again",
        ) from error
