"""`parctl verify`, as a person runs it: in a process of its own, on real ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# parctl sums gradients and divides the loss by all tokens; this fault lets torch divide once more.
# Adam hides it from the loss for a step, the gradient norm shows it at once.
SCALED_TWICE = """
import sys
if "parctl.runtime.forkserver" in " ".join(sys.orig_argv):
    from torch.distributed.fsdp import FSDPModule
    FSDPModule.set_gradient_divide_factor = lambda module, factor: None
    FSDPModule.set_force_sum_reduction_for_comms = lambda module, enable: None
"""


def verify(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [sys.executable, "-m", "parctl", "verify", *words],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_a_right_shape_is_equal_step_by_step() -> None:
    done = verify("tiny-llama", "--ranks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["TP2+SP:", "2", "ranks", "beside", "one", "process"] in lines
    assert ["fsdp", "2", "->", "1", "(left", "out", "of", "this", "part)"] in lines
    steps = [line[0] for line in lines if line[1:2] == ["grad_norm"]]
    assert steps == ["1", "2", "3", "4", "1", "2", "3", "4"]  # tp without fsdp, and the reverse
    assert "equal to one process; the largest relative difference is" in done.stdout


def test_one_process_beside_itself_proves_nothing_and_is_refused() -> None:
    done = verify("tiny-llama", "--ranks", "1")
    assert done.returncode == 2
    assert "greater than or equal to 2" in done.stderr


def test_what_a_launch_refuses_is_refused_though_it_would_be_shrunk_away() -> None:
    done = verify("tiny-llama", "--set", "train.precision=fp16")
    assert done.returncode == 2
    assert "train.precision fp16 (it needs loss scaling" in done.stderr


def test_a_gradient_that_is_scaled_twice_is_found(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SCALED_TWICE)
    done = verify("tiny-llama: FSDP2", "-o", "json", path=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] is False
    numbers = {(n["step"], n["name"]): n for n in found["parts"][0]["numbers"]}
    assert numbers[1, "loss"]["equal"] is True
    norm = numbers[1, "grad_norm"]
    assert norm["parallel"] == pytest.approx(norm["one_process"] / 2, rel=1e-12)


def test_what_cannot_run_is_refused_by_name_before_anything_starts() -> None:
    done = verify("tiny-llama: DP2", "--set", "train.precision=fp32", "--precision", "fp12")
    assert done.returncode == 2
    assert "--precision fp12: no such one here" in done.stderr
    done = verify("tiny-llama: auto")
    assert done.returncode == 2
    assert "names no axis that could be folded" in done.stderr
    assert done.stdout == ""
