"""Matrix products of the shapes that a job multiplies, on all ranks at once."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from parctl.runtime.benchmark.stopwatch import Stopwatch


def measure_products(
    shapes: Sequence[Sequence[int]],
    device: torch.device,
    stopwatch: Stopwatch,
    *,
    most_flops: float,
) -> Iterator[dict[str, object]]:
    """Yield a line per shape: `[M, K] x [K, N]`. M is cut where 2 M K N would pass `most_flops`."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for rows, inner, columns in shapes:
        height = max(1, min(rows, int(most_flops / (2 * inner * columns))))
        left_MK = torch.randn(height, inner, device=device).to(dtype)
        right_KN = torch.randn(inner, columns, device=device).to(dtype)
        out_MN = torch.empty(height, columns, dtype=dtype, device=device)
        multiply = partial(torch.mm, left_MK, right_KN, out=out_MN)
        yield {
            "product": [height, inner, columns],
            "dtype": "bf16" if dtype == torch.bfloat16 else "fp32",
            "seconds": stopwatch.time(multiply),
        }
