"""Metrics: the last attempt wins, and half a line is no line."""

from pathlib import Path

from parctl.launcher.metrics import last_step, read_metrics


def test_a_step_that_was_made_again_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"attempt": 1, "step": 1, "loss": 5.0}\n'
        '{"attempt": 1, "step": 2, "loss": 4.0}\n'
        '{"attempt": 1, "step": 3, "loss": 3.0}\n'
        "not json\n"
        '{"attempt": 2, "step": 2, "loss": 4.5}\n'
        '{"attempt": 2, "ste'
    )
    rows = [(row["step"], row["loss"]) for row in read_metrics(file)]
    assert rows == [(1, 5.0), (2, 4.5), (3, 3.0)]
    assert last_step(file) == 2


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none") == []
    assert last_step(tmp_path / "none") is None
