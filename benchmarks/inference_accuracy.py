"""How far the planner's predictions of tokens are from published measurements.

Every row of FILE (YAML: a list with `model`, `hardware`, `parallelism`, `load`, `measured`) is
predicted: the time to the first token, the time between tokens, tokens per second or the latency of
a whole request, whatever was measured. Printed is a line per number, and the median and the 90th
percentile of the relative errors, for all numbers and by source.

What a row leaves out is filled by rules, the same for all: keys and values are of the type of the
weights, chunks have 8,192 tokens, nine tenths of a device's memory are used, and a sequence holds
on average its prompt and half of its output.

    python benchmarks/inference_accuracy.py --runs published_inference.yaml
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, not with -m

from parctl.planner.degrees import Degrees
from parctl.planner.inference import kv_bytes_per_token
from parctl.planner.inference_time import Setting, decode_s, prefill_s, under_load
from parctl.planner.memory import GPU_BUFFER_BYTES
from parctl.planner.time.job import Fabric
from parctl.recipes.parameters import num_parameters
from parctl.recipes.presets import model_preset
from parctl.topology.products import Product, find_product

CHUNK = 8192
USED = 0.9  # of a device's memory
PRODUCTS = {"H100-80GB-SXM": "h100", "MI300X-192GB": "mi300x"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One thing that was measured, and what is predicted for it."""

    row: str
    source: str
    name: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def setting_of(row: Mapping[str, Any]) -> Setting:
    shape, parallelism = row["model"], row["parallelism"]
    model = replace(
        model_preset("llama-3-70b"),
        name=shape["name"],
        num_layers=shape["layers"],
        dim=shape["hidden"],
        num_heads=shape["heads"],
        num_kv_heads=shape["kv_heads"],
        head_dim=shape["hidden"] // shape["heads"],
        ffn_dim=shape["ffn"],
        vocab_size=shape["vocab"],
        max_seq_len=131072,
    )
    product = find_product(PRODUCTS[row["hardware"]["gpu"]])
    assert product is not None and product.nvlink_gb_s is not None
    width = 1.0 if "fp8" in parallelism["precision"] else 2.0
    return Setting(
        model=model,
        degrees=Degrees(tp=parallelism["tp"], pp=parallelism["pp"]),
        product=product,
        fabric=Fabric(
            fast=product.nvlink_gb_s * 1e9,
            slow=50e9,
            island=8,
            num_devices=row["hardware"]["num_gpus"],
        ),
        weight=width,
        kv=width,
        chunk=CHUNK,
    )


def most_running(setting: Setting, context: float) -> int:
    """Sequences of this average length that memory holds."""
    product: Product = setting.product
    assert product.memory_bytes is not None
    degrees = setting.degrees
    weights = num_parameters(setting.model) * setting.weight / (degrees.tp * degrees.pp)
    room = product.memory_bytes * USED - weights - GPU_BUFFER_BYTES
    token = kv_bytes_per_token(setting.model, degrees, 1) * setting.kv
    return max(1, int(room / (token * setting.model.num_layers / degrees.pp * context)))


def predict(row: Mapping[str, Any]) -> Iterator[Number]:
    """Yield a number for everything that the row measured."""
    setting, load, measured = setting_of(row), row["load"], row["measured"]
    prompt, output = load["input"], load["output"]
    most = most_running(setting, prompt + output / 2)

    def number(name: str, found: float, predicted: float) -> Number:
        return Number(
            row=row["id"],
            source=row["source"]["title"],
            name=name,
            measured=found,
            predicted=predicted,
        )

    if "latency_s" in measured:
        seconds = prefill_s(setting, prompt) * load["batch"]
        seconds += output * decode_s(setting, load["batch"], prompt + output / 2)
        yield number("latency, s", measured["latency_s"], seconds)
        return
    concurrency = load.get("concurrency", load.get("max_num_seqs"))
    found = under_load(
        setting, concurrency=concurrency, prompt=prompt, output=output, most_running=most
    )
    if "ttft_ms" in measured:
        yield number("first token, ms", measured["ttft_ms"], found.first_token_s * 1e3)
    if "itl_ms" in measured:
        yield number("between tokens, ms", measured["itl_ms"], found.per_token_s * 1e3)
    if "output_tokens_per_s_total" in measured:
        rate = measured["output_tokens_per_s_total"]
        yield number("output tokens/s", rate, found.tokens_per_s)
    if "tokens_per_s_total" in measured:
        both = found.tokens_per_s * (prompt + output) / output
        yield number("tokens/s", measured["tokens_per_s_total"], both)


def report(numbers: list[Number]) -> Iterator[str]:
    width = max(len(number.row) for number in numbers)
    for number in numbers:
        yield (
            f"{number.row:<{width}}  {number.name:<18}  measured {number.measured:>10,.4g}  "
            f"predicted {number.predicted:>10,.4g}  {number.error:+.0%}"
        )
    for source in (None, *dict.fromkeys(number.source for number in numbers)):
        own = [number for number in numbers if source in (None, number.source)]
        errors = sorted(abs(number.error) for number in own)
        tail = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
        yield f"{source or 'all'}: {len(own)} numbers, median {median(errors):.0%}, p90 {tail:.0%}"
    for name in dict.fromkeys(number.name for number in numbers):
        errors = [abs(number.error) for number in numbers if number.name == name]
        yield f"{name}: {len(errors)} numbers, median {median(errors):.0%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    rows = yaml.safe_load(arguments.runs.read_text(encoding="utf-8"))
    for line in report([number for row in rows for number in predict(row)]):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
