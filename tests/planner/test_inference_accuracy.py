"""The benchmark that holds predictions of tokens against published ones takes their format."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import inference_accuracy
from benchmarks.inference_accuracy import most_running, predict, report, setting_of

ROW: dict[str, Any] = {
    "id": "one",
    "model": {
        "name": "llama3-70b", "layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8,
        "ffn": 28672, "vocab": 128256,
    },
    "hardware": {"gpu": "H100-80GB-SXM", "num_gpus": 2},
    "parallelism": {"tp": 2, "pp": 1, "precision": "fp8"},
    "load": {"input": 5000, "output": 500, "concurrency": 200},
    "measured": {"ttft_ms": 60000.0, "itl_ms": 100.0, "output_tokens_per_s_total": 900.0},
    "source": {"title": "somebody"},
}  # fmt: skip


def test_a_row_gives_a_number_for_everything_measured() -> None:
    numbers = list(predict(ROW))
    assert [number.name for number in numbers] == [
        "first token, ms", "between tokens, ms", "output tokens/s",
    ]  # fmt: skip
    # 200 under way, of which memory holds so many; each makes a token per step
    running = most_running(setting_of(ROW), 5250)
    between, rate = numbers[1].predicted, numbers[2].predicted
    assert rate == pytest.approx(running / between * 1e3)
    assert numbers[1].error == pytest.approx(between / 100 - 1)


def test_memory_bounds_what_runs_at_once() -> None:
    """85.5 GB x 0.9 - 35.3 - 2 = 39.7 GB, and 80 x 1,024 bytes a token of 5,250 each: 92."""
    assert most_running(setting_of(ROW), 5250) == 92


def test_the_latency_of_a_request_is_its_prompt_and_all_its_tokens() -> None:
    row = ROW | {
        "load": {"input": 128, "output": 2048, "batch": 1},
        "measured": {"latency_s": 40.0},
    }
    (number,) = predict(row)
    assert 2048 * 0.015 < number.predicted < 2048 * 0.022


def test_the_report_names_the_median_and_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text(yaml.safe_dump([ROW]))
    monkeypatch.setattr("sys.argv", ["inference_accuracy.py", "--runs", str(file)])
    assert inference_accuracy.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == list(report(list(predict(ROW))))
    assert lines[3].startswith("all: 3 numbers, median ")
