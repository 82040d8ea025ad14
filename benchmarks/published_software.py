"""What the software of a published run could do, read off the words that a row has for it.

A row names a container or a release, or nothing but its source. From that come a year, and from the
year what stacks did then: FlashAttention, exchanges beside products, steps as one CUDA graph.
"""

import re
from collections.abc import Mapping
from typing import Any

from parctl.planner.time.job import Attention

# stacks whose attention has kernels made for Hopper
TUNED = ("nemo", "megatron", "mlperf", "maxtext", "paxml", "transformer engine", "deepseek")


def stack_of(row: Mapping[str, Any]) -> str:
    """All that a row says of its software, in small letters."""
    source = row.get("source") or {}
    return f"{row.get('software') or ''} {source.get('title', '')}".lower()


def release(row: Mapping[str, Any]) -> tuple[int, int]:
    """Year and month of an NVIDIA container, (0, 0) of anything else."""
    number = re.search(r"nemo[- ](\d\d)\.(\d\d)", stack_of(row))
    return (int(number[1]), int(number[2])) if number else (0, 0)


def year_of(row: Mapping[str, Any]) -> int:
    """Of the software. A row that does not say counts as of 2024."""
    text = stack_of(row)
    year = re.search(r"\b(20[12]\d)\b", text)
    if year:
        return int(year[1])
    short = re.search(r"\b(?:nemo[- ]|paxml[- ]|arxiv )(\d\d)(?:\.|\d\d\.)", text)
    if short:
        return 2000 + int(short[1])
    known = {"bigscience": 2022, "llm-foundry": 2023}
    return next((year for mark, year in known.items() if mark in text), 2024)


def attention_of(row: Mapping[str, Any], year: int) -> Attention:
    """FlashAttention is of 2022; NVIDIA's own stack came to kernels made for Hopper in 2023."""
    if year < 2023:
        return "plain"
    early = (0, 0) < release(row) < (24, 5)
    if any(mark in stack_of(row) for mark in TUNED) and not early:
        return "tuned"
    return "fused" if year > 2023 else "first"


def tensor_overlap(row: Mapping[str, Any], year: int) -> bool:
    """Megatron's stack overlaps since 2023; PyTorch's own only where it says asynchronous."""
    text = stack_of(row) + str(row["id"]).lower() + str(row.get("notes") or "").lower()
    if "titan" in text:
        return "async" in text.replace("asynctp benchmarks", "")
    return year >= 2023
