"""Generation speed on one GPU, and beside vLLM: random weights, greedy, all requests at once.

    python -m benchmarks.gpu.inference [--shapes 1b 8b] [--requests 256] [--dtype bf16]
        [--beside 'vllm bench throughput --input-len 512 --output-len 128 ...']

Prompts have 512 tokens and 128 new ones are made of each. Steps that only generate are also told
apart: their rate is set by how fast weights and keys and values are read, so it is printed as a
share of the memory's rate that a copy reaches in the same run. `--beside` runs another engine and
reads the `N output tokens/s` of its last lines (vLLM's); the goal is 0.5x, since nothing here is
captured into CUDA graphs and blocks are gathered before they are read. On a CPU: `--shapes tiny
--requests 4 --dtype fp32`.
"""

import argparse
import random
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import ModelSpec
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.request import Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler

GOAL_BESIDE = 0.5
RATE = re.compile(r"([\d,.]+) output tokens/s")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHAPES: dict[str, tuple[str, ...]] = {
    "1b": ("model.dim=2048", "model.num_layers=16", "model.ffn_dim=8192", "model.head_dim=64"),
    "8b": (),
    "tiny": (
        *("model.dim=64", "model.num_layers=2", "model.ffn_dim=128", "model.head_dim=16"),
        *("model.num_heads=4", "model.num_kv_heads=2", "model.vocab_size=512"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of the whole run, and of its steps that only generate."""

    device: str
    output_tokens: int
    seconds: float
    generating_steps: int
    generating_s: float
    generating_bytes: float  # weights, and keys and values, that these steps read
    copy_bytes_per_s: float


def run(shape: str, num_requests: int, dtype: torch.dtype, *, prompt: int, new: int) -> Measured:
    recipe = load_recipe("llama-3-8b: DP1", list(SHAPES[shape]))
    assert recipe.model is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = open_engine(recipe.model, num_requests, dtype, device, length=prompt + new)
    warm_up = requests(recipe.model, 2, prompt, 4)
    finish(engine, warm_up)
    weight_bytes = engine.weight_bytes
    wanted = requests(recipe.model, num_requests, prompt, new)
    for request in wanted:
        engine.add(request)
    count, steps, seconds, read = 0, 0, 0.0, 0.0
    begin = now(device)
    while engine.unfinished():
        before, stats = now(device), engine.stats()
        emitted = engine.step()
        count += len(emitted)
        if engine.stats().computed_tokens - stats.computed_tokens == len(emitted):  # no prompts
            steps += 1
            seconds += now(device) - before
            held = stats.held_tokens + len(emitted)
            read += weight_bytes + held * stats.token_bytes
    return Measured(
        device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        output_tokens=count,
        seconds=now(device) - begin,
        generating_steps=steps,
        generating_s=seconds,
        generating_bytes=read,
        copy_bytes_per_s=copy_rate(device),
    )


def open_engine(
    model: ModelSpec, num_requests: int, dtype: torch.dtype, device: torch.device, *, length: int
) -> Engine:
    config = EngineConfig(
        num_blocks=num_requests * -(-length // 16) + 1,
        max_sequences=num_requests,
        max_tokens_per_step=8192,
        prefix_cache=False,
    )
    return assemble(model, config, BatchSampler(), source=0, dtype=dtype, device=device)


def requests(model: ModelSpec, count: int, prompt: int, new: int) -> list[Request]:
    draw = random.Random(count)
    return [
        Request(
            id=str(index),
            prompt_tokens=tuple(draw.randrange(model.vocab_size) for _ in range(prompt)),
            sampling=Sampling(max_tokens=new),
        )
        for index in range(count)
    ]


def finish(engine: Engine, wanted: Sequence[Request]) -> None:
    for request in wanted:
        engine.add(request)
    while engine.unfinished():
        engine.step()


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def copy_rate(device: torch.device) -> float:
    """Bytes per second that a copy within the device's memory reads and writes."""
    source = torch.zeros(
        1 << (30 if device.type == "cuda" else 24), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    target.copy_(source)
    begin = now(device)
    for _ in range(5):
        target.copy_(source)
    return 2 * 5 * source.numel() / (now(device) - begin)


def line(shape: str, found: Measured) -> str:
    """One row: the rate of the run, and of its generating steps beside the memory's."""
    share = found.generating_bytes / found.generating_s / found.copy_bytes_per_s
    return (
        f"{shape} on {found.device}: {found.output_tokens / found.seconds:,.0f} output tokens/s, "
        f"{found.generating_s / found.generating_steps * 1e3:.1f} ms per generating step, "
        f"{share:.0%} of the memory's rate"
    )


def beside(command: str) -> float:
    """Output tokens per second of another engine, as it says last."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    rates = RATE.findall(done.stdout + done.stderr)
    if not rates:
        raise SystemExit(f"`{command}` printed no `N output tokens/s`")
    return float(rates[-1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1b", "8b"])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--beside", help="a command whose output holds vLLM's line")
    options = parser.parse_args()
    for shape in options.shapes:
        found = run(shape, options.requests, DTYPES[options.dtype], prompt=512, new=128)
        print(line(shape, found), flush=True)
        if options.beside:
            theirs = beside(options.beside)
            ratio = found.output_tokens / found.seconds / theirs
            print(f"  beside it {theirs:,.0f} tokens/s: {ratio:.2f}x (goal {GOAL_BESIDE}x)")


if __name__ == "__main__":
    main()
