"""Train on one device and time its steps: `python -m benchmarks.gpu.one_device DIRECTORY`.

`run` starts that as a process of its own, so that every measurement begins with empty memory. The
loop is the product's own; it asks `stop` once per step. The device is waited for only before the
first and after the last step that count, so steps may overlap as they do in a real run.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from parctl.launcher.port import hold_port
from parctl.launcher.verification import cpus
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.recipes.parameters import count_parameters
from parctl.topology.synthetic import parse_cluster

WARM_UP, STEPS = 3, 10
# Llama 3.2 1B, Llama 3 8B cut to four layers (one layer's rate decides), and one for a CPU
SHAPES: dict[str, tuple[str, ...]] = {
    "1b": (
        *("model.dim=2048", "model.num_layers=16", "model.ffn_dim=8192", "model.head_dim=64"),
        *("train.seq_len=4096", "train.micro_batch=4", "train.global_batch=4"),
    ),
    "8b-layer": (
        *("model.num_layers=4", "train.seq_len=8192", "train.micro_batch=1"),
        "train.global_batch=1",
    ),
    "tiny": (
        *("model.dim=64", "model.num_layers=2", "model.ffn_dim=128", "model.head_dim=16"),
        *("model.num_heads=4", "model.num_kv_heads=2", "model.vocab_size=512"),
        *("train.seq_len=32", "train.micro_batch=2", "train.global_batch=2"),
    ),
}


class Measured(NamedTuple):
    device: str
    seconds: float  # per step
    tokens: int  # per step
    matmul_parameters: int  # that a token is multiplied with, 2 operations each, 3 times a step
    peak_bytes: int
    matmul_flops: float  # per second, of the model's own products without anything else


def run(shape: str, *, cluster: str, overrides: Sequence[str] = ()) -> Measured:
    """Train `shape` with a recipe's fields changed, in a process of its own."""
    with TemporaryDirectory(prefix="parctl-bench-") as folder, hold_port("127.0.0.1") as held:
        directory = Path(folder)
        write_plan(directory, shape, cluster, overrides)
        environment = {
            **os.environ,
            **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(held.getsockname()[1]),
            "PARCTL_RUN_ID": "bench",
            "PARCTL_ATTEMPT": "1",
        }
        command = [sys.executable, "-m", "benchmarks.gpu.one_device", folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{shape} {' '.join(overrides)} failed:\n{done.stderr[-3000:]}")
        return Measured(**json.loads((directory / "measured.json").read_text()))


def write_plan(directory: Path, shape: str, cluster: str, overrides: Sequence[str]) -> None:
    recipe = load_recipe(
        "llama-3-8b: DP1",
        [
            *SHAPES[shape],
            *(f"train.steps={WARM_UP + STEPS + 1}", "train.validate_every=0"),
            *("train.log_every=1000", "checkpoint.at_end=false", "checkpoint.every=0"),
            f"data.train={directory / 'tokens.bin'}",
            *overrides,
        ],
    )
    assert recipe.model and recipe.train
    wide = np.uint32 if recipe.model.vocab_size > 1 << 16 else np.uint16
    length = 2 * (WARM_UP + STEPS + 2) * recipe.train.seq_len * recipe.train.global_batch
    tokens = np.random.default_rng(0).integers(recipe.model.vocab_size, size=length).astype(wide)
    (directory / "tokens.bin").write_bytes(tokens.tobytes())
    topology = cpus(1) if cluster == "cpu" else parse_cluster(cluster)
    (directory / "plan.json").write_text(json.dumps(make_plan(recipe, topology).to_json()))


def measure(directory: Path) -> Measured:
    import torch
    import torch.distributed as dist

    from parctl.planner.plan import plan_from_json
    from parctl.runtime.parallel.data_parallel import COMPUTE_TYPES
    from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
    from parctl.runtime.trainer import train
    from parctl.runtime.training import prepare

    plan = plan_from_json(json.loads((directory / "plan.json").read_text()))
    recipe = plan.recipe
    assert recipe.train and recipe.model
    device = choose_device()
    join_world(plan.layout, device)
    mesh = build_mesh(plan.layout, device, wrap_alone=recipe.train.precision in COMPUTE_TYPES)
    training = prepare(plan, mesh, directory, run="bench", attempt=1, leader=True)
    asked = 0
    times: list[float] = []

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked in (WARM_UP, WARM_UP + STEPS):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())
        return False

    train(training, stop=stop)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    dist.destroy_process_group()
    del training
    count = count_parameters(recipe.model)
    model = recipe.model
    parameters = sum(layer.attention + layer.mlp for layer in count.layers)
    tokens = recipe.train.global_batch * recipe.train.seq_len
    rows = recipe.train.micro_batch * recipe.train.seq_len
    dtype = COMPUTE_TYPES.get(recipe.train.precision, torch.float32)
    columns = model.num_heads * model.head_dim
    products = (model.dim, columns), (model.dim, model.ffn_dim), (model.ffn_dim, model.dim)
    return Measured(
        device=name,
        seconds=(times[1] - times[0]) / STEPS,
        tokens=tokens,
        matmul_parameters=parameters + model.vocab_size * model.dim,
        peak_bytes=peak,
        matmul_flops=matmul_rate(products, rows, dtype, device),
    )


def matmul_rate(products: Any, rows: int, dtype: Any, device: Any) -> float:
    """FLOP/s of these products, forward and both of backward, one after the other."""
    import torch

    flops, work = 0, []
    for inputs, outputs in products:
        x = torch.randn(rows, inputs, dtype=dtype, device=device)
        weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
        dy = torch.randn(rows, outputs, dtype=dtype, device=device)
        work += [(x, weight.t()), (dy, weight), (dy.t(), x)]
        flops += 3 * 2 * rows * inputs * outputs
    for _ in range(3):
        for left, right in work:
            left @ right
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    repeats, start = 10, time.perf_counter()
    for _ in range(repeats):
        for left, right in work:
            left @ right
    wait()
    return repeats * flops / (time.perf_counter() - start)


if __name__ == "__main__":
    found = measure(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "measured.json").write_text(json.dumps(found._asdict()))
