"""The inference benchmark for a GPU run, at a size that a CPU can do."""

from pathlib import Path

import torch
from benchmarks.gpu.inference import Measured, beside, line, run
from tests.runtime.harness import run_ranks


def measure() -> Measured:
    return run("tiny", 3, torch.float32, prompt=8, new=5)


def test_a_gpu_run_is_measured(tmp_path: Path) -> None:
    (found,) = run_ranks(measure, 1, tmp_path)
    assert found.output_tokens == 15
    assert found.generating_steps == 4  # the first token comes with the prompts
    # embedding and head 2 x 512 x 64; a layer: q, o 64 x 64, k, v 64 x 32, MLP 3 x 64 x 128, norms
    weights = 4 * (2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64)
    # 9, 10, 11 and 12 tokens of three requests: two layers, keys and values, 2 heads of 16 floats
    assert found.generating_bytes == 4 * weights + 3 * 42 * (2 * 2 * 2 * 16 * 4)
    assert line("tiny", found).startswith("tiny on CPU: ")


def test_another_engines_rate_is_the_last_that_it_says() -> None:
    said = "100 output tokens/s ... Throughput: 7.1 requests/s, 1,234.5 output tokens/s"
    assert beside(f"echo '{said}'") == 1234.5
