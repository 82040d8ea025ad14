"""The fitted constants of the time model: all that was learned from published runs.

Everything else is a vendor's figure or arithmetic. A constant is fitted to all runs together, never
to a row; `benchmarks/plan_accuracy.py --fit` prints new values, and what they predict for a family
of models that was left out of the fit. The interval is what the fit may choose from: the range that
sources report, or that physics leaves.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def fitted(value: float, low: float, high: float, meaning: str) -> Any:
    return field(default=value, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    gemm_ampere: float = fitted(0.8, 0.5, 0.95, "share of the bf16 peak, large products, A100")
    gemm_hopper: float = fitted(0.72, 0.4, 0.9, "the same, H100 and H200")
    gemm_blackwell: float = fitted(0.7, 0.4, 0.9, "the same, B200 and B300")
    gemm_hopper_fp8: float = fitted(0.65, 0.3, 0.9, "share of the fp8 peak, Hopper")
    gemm_blackwell_fp8: float = fitted(0.65, 0.3, 0.9, "share of the fp8 peak, Blackwell")
    gemm_half: float = fitted(200.0, 10.0, 1500.0, "size of a product at half of its best rate")
    attention_ampere: float = fitted(0.55, 0.2, 0.8, "share of the bf16 peak, fused attention, A100")
    attention_hopper: float = fitted(0.35, 0.15, 0.8, "the same, H100 and H200")
    attention_hopper_tuned: float = fitted(0.5, 0.2, 0.8, "kernels made for Hopper (2407.08608)")
    attention_blackwell: float = fitted(0.5, 0.2, 0.8, "the same, B200 and B300")
    power: float = fitted(0.7, 0.0, 1.0, "how the peak that is held grows with W per peak FLOP/s")
    passes: float = fitted(1.5, 0.5, 4.0, "element-wise traffic over the least that is needed")
    tp_exposed: float = fitted(0.3, 0.0, 1.0, "share of overlapped tensor exchanges that shows")
    ep_exposed: float = fitted(0.6, 0.0, 1.0, "share of expert exchanges that shows")
    dp_exposed: float = fitted(0.2, 0.0, 0.6, "share of overlapped data exchanges that shows")
    ring_latency: float = fitted(2e-06, 0.0, 2e-5, "s per rank of a ring between islands")
    expert_passes: float = fitted(2.0, 0.0, 12.0, "passes over rows sorted to and from experts")
    expert_host: float = fitted(0.003, 0.0, 8e-3, "s per layer with experts: launches, waits")
    expert_host_rack: float = fitted(0.002, 0.0, 8e-3, "the same in rack-scale NVLink domains")
    jitter: float = fitted(0.005, 0.0, 0.03, "longer per doubling of nodes: stragglers, collisions")


FITTED = Constants()
assert len(fields(Constants)) <= 20
