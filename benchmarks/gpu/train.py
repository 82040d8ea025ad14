"""Training speed on one GPU: share of the matmul rate that the same GPU reaches in the same run.

    python -m benchmarks.gpu.train [--shapes 1b 8b-layer] [--cluster h100:1x1] [--compile]
        [--beside 'torchrun --nproc-per-node 1 -m torchtitan.train ...']

The share counts the model's matrix products (6 operations per parameter and token; attention and
recomputation not) against those products alone. Goal: 65% in bf16. `--beside` runs another trainer
of the same shape, reads the `tps: N` of its log lines (torchtitan's), and goes by their median; the
goal is 1.05x. On a CPU: `--shapes tiny --cluster cpu`.
"""

import argparse
import re
import shlex
import subprocess
from statistics import median

from benchmarks.gpu.one_device import SHAPES, Measured, run

GOAL, GOAL_BESIDE = 0.65, 1.05
RATE = re.compile(r"tps:\s*([\d,]+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1b", "8b-layer"])
    parser.add_argument("--cluster", default="h100:1x1")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp8", "fp32"])
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "full"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--beside", help="a command whose output holds torchtitan's log lines")
    options = parser.parse_args()
    fields = [f"train.precision={options.precision}", f"train.recompute={options.recompute}"]
    fields.append(f"train.compile={str(options.compile).lower()}")
    for shape in options.shapes:
        ours = run(shape, cluster=options.cluster, overrides=fields)
        print(line(shape, ours), flush=True)
        if options.beside:
            theirs = beside(options.beside)
            ratio = ours.tokens / ours.seconds / theirs
            print(f"  beside it {theirs:,.0f} tokens/s: {ratio:.2f}x (goal {GOAL_BESIDE}x)")


def line(shape: str, found: Measured) -> str:
    """One row: speed, and its share of what the products alone reach."""
    flops = 6 * found.matmul_parameters * found.tokens / found.seconds
    share = flops / found.matmul_flops
    return (
        f"{shape} on {found.device}: {found.tokens / found.seconds:,.0f} tokens/s, "
        f"{found.seconds * 1e3:.1f} ms per step, {found.peak_bytes / 2**30:.1f} GiB, "
        f"{flops / 1e12:.3g} of {found.matmul_flops / 1e12:.3g} TFLOP/s of products alone: "
        f"{share:.0%} (goal {GOAL:.0%}, {'met' if share >= GOAL else 'missed'})"
    )


def beside(command: str) -> float:
    """Tokens per second of another trainer, the median of the second half of its lines."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    rates = [float(rate.replace(",", "")) for rate in RATE.findall(done.stdout + done.stderr)]
    if not rates:
        raise SystemExit(f"no `tps: N` in the output of {command}")
    return median(rates[len(rates) // 2 :])


if __name__ == "__main__":
    main()
