"""The benchmarks for a GPU run, at a size that a CPU can do."""

from benchmarks.gpu.one_device import run
from benchmarks.gpu.train import beside, line


def test_one_device_is_measured() -> None:
    found = run("tiny", cluster="cpu", overrides=["train.precision=fp32", "train.recompute=none"])
    assert found.tokens == 64
    assert found.seconds > 0 and found.matmul_flops > 0
    # a layer: q, o 64 x 64, k, v 64 x 32, MLP 3 x 64 x 128; head 512 x 64
    assert found.matmul_parameters == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 512 * 64
    assert line("tiny", found).startswith("tiny on CPU: ")


def test_another_trainers_rate_is_the_median_of_its_later_lines() -> None:
    said = "step: 1 tps: 100 step: 2 tps: 900 step: 3 tps: 1,000 step: 4 tps: 1,100"
    assert beside(f"echo {said}") == 1050
