"""Predicted peak memory against what the runtime holds, counted tensor by tensor.

Every configuration runs micro-batches forward and backward on a CPU, as rank 0 of its ranks, with
collectives that answer at once; each storage is followed from the operator that makes it until it
is freed (`tests/planner/live_bytes.py`). So peaks are of tensors, not of the process. The
optimizer's moments, which live between micro-batches, are added on both sides.

    python -m benchmarks.plan_memory
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from tests.planner.live_bytes import measure

from parctl.planner.degrees import Degrees, with_degrees
from parctl.planner.memory import estimate_memory
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import Precision, Recipe, Recompute

GOAL = 0.05  # of the median relative error
GPT = {
    "family": "gpt",
    "activation": "gelu",
    "norm": "layernorm",
    "positions": "learned",
    "bias": True,
    "num_kv_heads": 8,
}
WIDE = {"dim": 256, "ffn_dim": 1024, "head_dim": 32}
DEEP = {"num_layers": 12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    axes: Mapping[str, int]
    recompute: Recompute = "none"
    precision: Precision = "fp32"
    sp: bool = False
    model: Mapping[str, Any] | None = None
    train: Mapping[str, Any] | None = None

    @property
    def text(self) -> str:
        degrees = "+".join(f"{axis}{size}" for axis, size in self.axes.items())
        changes = {**(self.model or {}), **(self.train or {})}
        named = [f"{name}={value}" for name, value in changes.items()]
        parts = [degrees + "+sp" * self.sp, self.recompute, self.precision, *named[:3]]
        return " ".join(parts)


CASES = (
    Case(axes={"dp": 1}),
    Case(axes={"dp": 2}, recompute="selective"),
    Case(axes={"dp": 4}, precision="bf16"),
    Case(axes={"fsdp": 2}),
    Case(axes={"fsdp": 4}, recompute="full"),
    Case(axes={"fsdp": 8}, precision="bf16", recompute="selective"),
    Case(axes={"dp": 2, "fsdp": 2}, recompute="selective"),
    Case(axes={"tp": 2}),
    Case(axes={"tp": 2}, sp=True, recompute="selective"),
    Case(axes={"tp": 4}, sp=True, precision="bf16"),
    Case(axes={"fsdp": 2, "tp": 2}, sp=True, recompute="full"),
    Case(axes={"dp": 2, "fsdp": 2, "tp": 2}, sp=True),
    Case(axes={"cp": 2}),
    Case(axes={"fsdp": 2, "cp": 2}, recompute="selective"),
    Case(axes={"fsdp": 4}, model=WIDE),
    Case(axes={"tp": 2}, sp=True, model=WIDE, recompute="full"),
    Case(axes={"fsdp": 2}, model=DEEP),
    Case(axes={"fsdp": 8}, model=DEEP, recompute="selective"),
    Case(axes={"fsdp": 2}, model=GPT),
    Case(axes={"tp": 2}, sp=True, model=GPT, recompute="selective"),
    Case(axes={"dp": 2}, train={"seq_len": 256}),
    Case(axes={"fsdp": 4, "tp": 2}, sp=True, train={"seq_len": 256}, recompute="full"),
)


def main() -> None:
    errors = []
    print(f"{'measured':>9} {'predicted':>9} {'error':>7}  configuration (MB)")
    for case in CASES:
        measured, predicted = both(case)
        errors.append(predicted / measured - 1)
        print(f"{measured / 1e6:9.2f} {predicted / 1e6:9.2f} {errors[-1]:+7.1%}  {case.text}")
    sizes = sorted(map(abs, errors))
    middle = median(sizes)
    print(
        f"{len(CASES)} configurations: median {middle:.1%}, worst {sizes[-1]:.1%}; "
        f"goal {GOAL:.0%} in the median: {'met' if middle <= GOAL else 'MISSED'}"
    )


def both(case: Case) -> tuple[int, int]:
    """Peak bytes on rank 0, measured and predicted."""
    recipe = recipe_of(case)
    estimate = estimate_memory(recipe, Degrees(**case.axes), device_bytes=None, kind="cpu").worst
    found = measure(recipe, case.axes)
    return found.peak + found.weights + found.optimizer, estimate.total


def recipe_of(case: Case) -> Recipe:
    base, degrees = load_recipe("tiny-llama"), Degrees(**case.axes)
    assert base.model is not None and base.train is not None
    # a vocabulary that the small tables which are left out do not outweigh
    model = replace(base.model, vocab_size=320, max_seq_len=512, **(case.model or {}))
    train = replace(
        base.train,
        micro_batch=4,
        global_batch=8 * degrees.num_data_ranks,
        recompute=case.recompute,
        precision=case.precision,
        **(case.train or {}),
    )
    spec = replace(
        with_degrees(base.parallelism, degrees),
        sp=case.sp,
        zero_stage=3 if degrees.fsdp > 1 else 0,
    )
    return replace(base, model=model, train=train, parallelism=spec)


if __name__ == "__main__":
    main()
