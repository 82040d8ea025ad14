"""Training speed of small Llama on two CPU ranks beside other programs, in one run.

Llama of 22.55 million parameters (dim 512, 6 layers, 8 heads, ffn 1536, vocabulary 2048), context
256, 8 sequences per rank, AdamW, clipping, no recomputation, one thread per rank. Programs
take turns, so that other work on the machine hits all of them; medians are printed. Tokens per CPU
second hardly depend on what else runs; tokens per second do.

A row compares programs of one form and precision. Goal: 1.15x the best peer of the row, or 90% of
the rate at which two processes do the row's linear layers alone, measured in the same run. What
counts as done is model FLOPs as everywhere in parctl (`planner.flops`), so with attention's own
products, causal: 3.7% of the total. The share without them is printed beside it.

    python benchmarks/train_cpu.py [--rounds 3] [--picotron FOLDER] [--rows fsdp/fp32 ...]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from benchmarks.train_cpu_rank import (
    DIM,
    FFN,
    HEADS,
    LAYERS,
    ROWS,
    SEQ_LEN,
    STEPS,
    VOCAB,
    WARM_UP,
)

from parctl.launcher.port import hold_port
from parctl.launcher.verification import cpus
from parctl.planner.flops import matmul_parameters, model_flops_per_token
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers/bin/python"
RANKS = 2
GOAL, MATMUL_GOAL = 1.15, 0.9
FORMS = {
    "fsdp": ("FSDP2", ("fully_shard", "accelerate")),
    "ddp": ("DP2", ("ddp", "picotron-dp")),
    "tp": ("TP2", ("parallelize_module", "picotron-tp")),
}
FLOAT32_ONLY = ("picotron-dp", "picotron-tp")  # on a CPU
MODEL = (
    *(f"model.num_layers={LAYERS}", f"model.dim={DIM}", f"model.num_heads={HEADS}"),
    *(f"model.num_kv_heads={HEADS}", f"model.ffn_dim={FFN}", f"model.vocab_size={VOCAB}"),
    *(f"model.max_seq_len={SEQ_LEN}", f"train.seq_len={SEQ_LEN}"),
)
TOKENS = RANKS * ROWS * SEQ_LEN  # of one step


class Speed(NamedTuple):
    tokens_per_s: float
    tokens_per_cpu_s: float


def run(program: str, form: str, precision: str, picotron: str | None) -> Speed:
    """Run a program once on two ranks."""
    with TemporaryDirectory(prefix="parctl-bench-") as folder, hold_port("127.0.0.1") as held:
        directory = Path(folder)
        if program == "parctl":
            write_plan(directory, form, precision)
        python = sys.executable if program in ("parctl", "matmuls") else str(PEERS)
        ranks = []
        for rank in range(RANKS):
            environment = {
                **os.environ,
                "PYTHONPATH": str(HERE.parent),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "CUDA_VISIBLE_DEVICES": "",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "ACCELERATE_USE_CPU": "true",
                "PICOTRON": picotron or "",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "LOCAL_WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(held.getsockname()[1]),
                "PARCTL_RUN_ID": "bench",
                "PARCTL_ATTEMPT": "1",
            }
            command = [python, str(HERE / "train_cpu_rank.py"), program, precision, folder]
            with (directory / f"log-{rank}").open("w") as log:
                ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        codes = [rank.wait(timeout=600) for rank in ranks]
        if any(codes):
            raise SystemExit(f"{program} failed:\n{(directory / 'log-0').read_text()[-3000:]}")
        times = [
            json.loads((directory / f"times-{rank}.json").read_text()) for rank in range(RANKS)
        ]
    wall = max(own[-1][0] - own[0][0] for own in times)
    cpu = sum(own[-1][1] - own[0][1] for own in times)
    return Speed(TOKENS * STEPS / wall, TOKENS * STEPS / cpu)


def write_plan(directory: Path, form: str, precision: str) -> None:
    tokens = np.random.default_rng(0).integers(VOCAB, size=400_000, dtype=np.uint16)
    (directory / "tokens.bin").write_bytes(tokens.tobytes())
    rows = ROWS * RANKS if form == "TP2" else ROWS
    recipe = load_recipe(
        f"tiny-llama: {form}",
        [
            *MODEL,
            *(f"train.global_batch={ROWS * RANKS}", f"train.micro_batch={rows}"),
            *(f"train.steps={WARM_UP + STEPS + 1}", f"train.precision={precision}"),
            *("train.recompute=none", "train.validate_every=0", "train.log_every=1000"),
            *(f"data.train={directory / 'tokens.bin'}", "checkpoint.at_end=false"),
        ],
    )
    plan = make_plan(recipe, cpus(RANKS))
    (directory / "plan.json").write_text(json.dumps(plan.to_json()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picotron", help="a folder with picotron's source")
    names = [f"{form}/{precision}" for precision in ("fp32", "bf16") for form in FORMS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    met = [compare(row, options.rounds, options.picotron) for row in options.rows]
    print(f"\n{sum(met)} of {len(met)} rows meet the goal")


def compare(row: str, rounds: int, picotron: str | None) -> bool:
    """Measure one row, print it, and say whether it meets the goal."""
    name, precision = row.split("/")
    form, peers = FORMS[name]
    programs = ["parctl", *(peer for peer in peers if runs(peer, precision, picotron)), "matmuls"]
    speeds: dict[str, list[Speed]] = {program: [] for program in programs}
    for _ in range(rounds):
        for program in programs:
            speeds[program].append(run(program, form, precision, picotron))
    middle = {program: typical(found) for program, found in speeds.items()}
    ours = middle["parctl"]
    linear_share = ours.tokens_per_cpu_s / middle["matmuls"].tokens_per_cpu_s
    model = load_recipe("tiny-llama", MODEL).model
    assert model
    linear_flops = 6 * matmul_parameters(model)  # of a token
    matmul_share = linear_share * model_flops_per_token(model, SEQ_LEN) / linear_flops
    print(f"\n{row}: {form}, median of {rounds}")
    print(f"{'program':<22}{'tokens/s':>10}{'tokens/CPU s':>14}{'against':>10}{'by CPU':>10}")
    for program, speed in middle.items():
        against = ours.tokens_per_s / speed.tokens_per_s
        by_cpu = ours.tokens_per_cpu_s / speed.tokens_per_cpu_s
        print(
            f"{program:<22}{speed.tokens_per_s:>10,.0f}{speed.tokens_per_cpu_s:>14,.0f}"
            f"{against:>9.2f}x{by_cpu:>9.2f}x"
        )
    ratio = min(ours.tokens_per_cpu_s / middle[peer].tokens_per_cpu_s for peer in programs[1:-1])
    rate = linear_flops * middle["matmuls"].tokens_per_s / 1e9
    good = ratio >= GOAL or matmul_share >= MATMUL_GOAL
    print(
        f"{ratio:.2f}x the best peer by CPU time (goal {GOAL}x), {matmul_share:.1%} of the matmul "
        f"rate of {rate:,.0f} GFLOP/s (goal {MATMUL_GOAL:.0%}; {linear_share:.1%} without "
        f"attention's products): {'met' if good else 'missed'}",
        flush=True,
    )
    return good


def runs(peer: str, precision: str, picotron: str | None) -> bool:
    if not peer.startswith("picotron"):
        return True
    return picotron is not None and (precision == "fp32" or peer not in FLOAT32_ONLY)


def typical(found: Sequence[Speed]) -> Speed:
    return Speed(
        median(speed.tokens_per_s for speed in found),
        median(speed.tokens_per_cpu_s for speed in found),
    )


if __name__ == "__main__":
    main()
