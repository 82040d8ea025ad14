"""The fitted constants of the time model: all that was learned from published runs.

Everything else is a vendor's figure or arithmetic. A constant is fitted to all runs together, never
to a row; `benchmarks/plan_accuracy.py --fit` prints new values, and what they predict for a family
of models that was left out of the fit. The interval is what the fit may choose from: the range that
sources report, or that physics leaves. A fit is drawn towards the expected value, so that a
constant that few rows bear on stays there: for kernels what papers and vendors report, for what
shows of exchanges and of experts what a first look at the runs suggested.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def fitted(value: float, expected: float, low: float, high: float, meaning: str) -> Any:
    metadata = {"expected": expected, "low": low, "high": high, "meaning": meaning}
    return field(default=value, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    gemm_ampere: float = fitted(0.79, 0.80, 0.5, 0.95, "share of the bf16 peak in products, A100")
    gemm_hopper: float = fitted(0.691, 0.72, 0.4, 0.9, "the same, H100 and H200")
    gemm_blackwell: float = fitted(0.613, 0.70, 0.4, 0.9, "the same, B200 and B300")
    gemm_hopper_fp8: float = fitted(0.697, 0.65, 0.3, 0.9, "share of the fp8 peak, Hopper")
    gemm_blackwell_fp8: float = fitted(0.658, 0.65, 0.3, 0.9, "share of the fp8 peak, Blackwell")
    gemm_traffic: float = fitted(
        1.9, 1.5, 0.0, 6.0, "times that a product's numbers pass memory unhidden"
    )
    attention_ampere: float = fitted(
        0.558, 0.55, 0.2, 0.8, "share of the bf16 peak, FlashAttention 2"
    )
    attention_hopper: float = fitted(0.333, 0.35, 0.15, 0.8, "the same on H100 and H200")
    attention_hopper_tuned: float = fitted(
        0.619, 0.60, 0.2, 0.8, "the same, kernels made for Hopper (2407.08608)"
    )
    attention_blackwell: float = fitted(0.537, 0.55, 0.2, 0.8, "the same, B200 and B300")
    power: float = fitted(0.808, 0.70, 0.0, 1.0, "how the peak that is held grows with W per peak")
    passes: float = fitted(1.34, 1.5, 0.5, 4.0, "element-wise traffic over the least possible")
    tp_exposed: float = fitted(
        0.252, 0.3, 0.0, 1.0, "share of overlapped tensor exchanges that shows"
    )
    ep_exposed: float = fitted(0.565, 0.6, 0.0, 1.0, "share of expert exchanges that shows")
    dp_exposed: float = fitted(
        0.271, 0.2, 0.0, 0.6, "share of overlapped data exchanges that shows"
    )
    ring_latency: float = fitted(3.14e-6, 2e-6, 0.0, 2e-5, "s per rank of a ring between islands")
    expert_passes: float = fitted(
        2.17, 2.0, 0.0, 12.0, "passes over rows sorted to and from experts"
    )
    expert_host: float = fitted(
        4.06e-3, 3e-3, 0.0, 8e-3, "s per layer with experts and micro-batch: launches, waits"
    )
    expert_host_rack: float = fitted(
        2.59e-3, 2e-3, 0.0, 8e-3, "the same in rack-scale NVLink domains"
    )
    jitter: float = fitted(0.00186, 0.005, 0.0, 0.03, "share longer per doubling of nodes")


# median and 90th percentile of the relative error of step time, for families of models that were
# left out of the fit (`benchmarks/plan_accuracy.py --cross`)
ERRORS = {"dense": (0.07, 0.16), "moe": (0.17, 0.34)}

FITTED = Constants()
assert len(fields(Constants)) <= 20
