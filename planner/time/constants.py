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
    gemm_ampere: float = fitted(0.80, 0.5, 0.95, "share of the bf16 peak, large products, A100")
    gemm_hopper: float = fitted(0.72, 0.4, 0.9, "the same, H100 and H200")
    gemm_blackwell: float = fitted(0.75, 0.4, 0.9, "the same, B200 and B300")
    gemm_hopper_fp8: float = fitted(0.62, 0.3, 0.9, "share of the fp8 peak, Hopper")
    gemm_blackwell_fp8: float = fitted(0.65, 0.3, 0.9, "share of the fp8 peak, Blackwell")
    gemm_half: float = fitted(300.0, 10.0, 3000.0, "size of a product at half of its best rate")
    attention_ampere: float = fitted(0.45, 0.2, 0.9, "share of the bf16 peak, fused attention, A100")
    attention_hopper: float = fitted(0.4, 0.2, 0.9, "the same, H100 and H200")
    attention_blackwell: float = fitted(0.4, 0.2, 0.9, "the same, B200 and B300")
    power: float = fitted(0.3, 0.0, 1.0, "how the peak that is held grows with W per peak FLOP/s")
    memory: float = fitted(0.8, 0.3, 1.0, "share of memory bandwidth in element-wise work")
    passes: float = fitted(1.0, 0.3, 4.0, "element-wise traffic over the least that is needed")
    fast: float = fitted(0.75, 0.3, 1.0, "share of NVLink bandwidth in collectives")
    slow: float = fitted(0.8, 0.2, 1.0, "share of network bandwidth in collectives")
    tp_exposed: float = fitted(0.7, 0.0, 1.0, "share of sequence-parallel exchanges not hidden")
    ep_exposed: float = fitted(0.8, 0.0, 1.5, "share of expert exchanges not hidden")
    dp_exposed: float = fitted(0.3, 0.0, 1.0, "share of data-parallel exchanges not hidden")
    expert_work: float = fitted(1.5, 1.0, 6.0, "routed work over even loads and no permutation")


FITTED = Constants()
assert len(fields(Constants)) <= 20
