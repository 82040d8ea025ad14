"""The benchmark that holds predictions against published runs takes any file of their format."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.plan_accuracy import baselines, memory_report, predict, report, write
from benchmarks.published_runs import CannotPredict, read_run
from benchmarks.published_software import year_of
from benchmarks.time_fit import LOW, fit, to_vector

ROW: dict[str, Any] = {
    "id": "one",
    "family": "llama3",
    "task": "pretrain",
    "fit": True,
    "model": {
        "name": "llama3-8b", "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "ffn": 14336, "vocab": 128256, "gated_mlp": True,
        "tied_embeddings": False, "attention": "gqa", "seq": 8192,
    },
    "hardware": {
        "gpu": "H100-80GB-SXM", "gpus_per_node": 8, "intra_link": "NVLink4 900GB/s",
        "inter_link": "8x NDR400 IB (400Gb/s per GPU)", "num_gpus": 16,
    },
    "parallelism": {
        "tp": 1, "pp": 1, "dp": 16, "zero": 3, "recompute": "full", "micro_batch": 2,
        "global_batch": 64, "precision": "bf16",
    },
    "measured": {"tokens_per_s_per_gpu": 7000.0, "peak_mem_gb": 40.0},
    "source": {"title": "Somebody 2024"},
    "software": None,
}  # fmt: skip


def changed(**parts: Any) -> dict[str, Any]:
    """The row, with entries of its parts changed; None takes an entry away."""
    row = copy.deepcopy(ROW)
    for part, values in parts.items():
        if not isinstance(values, dict):
            row[part] = values
            continue
        for name, value in values.items():
            if value is None:
                row[part].pop(name, None)
            else:
                row[part][name] = value
    return row


def test_a_row_becomes_the_job_that_it_describes() -> None:
    run = read_run(ROW)
    assert run.job.tokens_per_step == 64 * 8192
    assert run.job.num_micro_batches == 2
    assert (run.job.degrees.fsdp, run.job.zero_stage, run.job.gathers_each) == (16, 3, True)
    assert (run.job.fabric.fast, run.job.fabric.slow) == (450e9, 50e9)
    assert run.step_time_s == pytest.approx(64 * 8192 / 16 / 7000)


def test_every_row_is_predicted_or_says_why_not(tmp_path: Path) -> None:
    rows = [ROW, changed(id="unknown", hardware={"gpu": "Abacus-1"})]
    predictions, refused = predict(rows)
    assert [item.run.id for item in predictions] == ["one"]
    assert refused == {"unknown": "unknown GPU Abacus-1"}
    write(tmp_path / "out.jsonl", predictions, refused)
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["id"] == "one" and first["fits"] is True
    assert first["tokens_per_s_per_gpu"] == pytest.approx(64 * 8192 / 16 / first["step_time_s"])
    assert first["peak_mem_gb"] > 16 * 8.03 / 16
    assert second["step_time_s"] is None and second["reason"] == "unknown GPU Abacus-1"


@pytest.mark.parametrize("part", ["model", "hardware", "parallelism", "measured"])
def test_no_missing_entry_is_a_traceback(part: str) -> None:
    for name in ROW[part]:
        predictions, refused = predict([changed(**{part: {name: None}})])
        assert len(predictions) + len(refused) == 1
    assert len(predict([{"id": "bare"}])[1]) == 1


def test_what_the_time_model_never_saw_is_still_a_row() -> None:
    sparse = {
        "experts": 64, "topk": 6, "moe_ffn": 1408, "shared_experts": 2, "dense_layers": 1,
        "capacity_factor": 1.25,
    }  # fmt: skip
    rows = [
        changed(id="moe", model={"moe": sparse}, parallelism={"ep": 8, "novel": 3}),
        changed(id="amd", hardware={"gpu": "MI300X-192GB"}),
        changed(id="odd stages", parallelism={"pp": 3, "dp": 5, "zero": 1}),
        changed(id="too many stages", parallelism={"pp": 64, "dp": 1}),
        changed(id="unpublished batch", parallelism={"global_batch": None, "micro_batch": None}),
    ]
    predictions, refused = predict(rows)
    assert [item.run.id for item in predictions] == [
        "moe", "amd", "odd stages", "unpublished batch",
    ]  # fmt: skip
    assert list(refused) == ["too many stages"]


def test_a_run_that_was_out_of_memory_and_does_not_fit_is_no_false_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = changed(id="oom", fit=False, parallelism={"recompute": "none", "micro_batch": 16})
    predictions, _ = predict([ROW, small])
    assert [item.fits for item in predictions] == [True, False]
    memory_report(predictions)
    assert "out of memory: 1 runs, called a fit: none" in capsys.readouterr().out


def test_recomputation_that_a_row_leaves_open_is_what_makes_it_fit() -> None:
    open_row = changed(parallelism={"recompute": None, "micro_batch": 4})
    stated = changed(parallelism={"recompute": "none", "micro_batch": 4})
    predictions, _ = predict([open_row, stated])
    assert [item.fits for item in predictions] == [True, False]


def test_the_report_names_classes_and_worst_rows(capsys: pytest.CaptureFixture[str]) -> None:
    predictions, _ = predict([ROW, changed(id="two", measured={"tokens_per_s_per_gpu": 100.0})])
    report("Title", predictions)
    baselines(predictions)
    out = capsys.readouterr().out
    assert "dense " in out and "family llama3" in out and "two: compute" in out
    assert "one efficiency, dense" in out


@pytest.mark.parametrize(
    ("software", "title", "year"),
    [
        ("nemo-25.09", "", 2025),
        ("Megatron-DeepSpeed 2022-02", "", 2022),
        (None, "Somebody et al. (arXiv 2104.04473)", 2021),
        (None, "A blog", 2024),
    ],
)
def test_the_year_of_the_software_is_read_off_a_row(
    software: str | None, title: str, year: int
) -> None:
    assert year_of(changed(software=software, source={"title": title})) == year


def test_a_fit_moves_constants_towards_what_was_measured() -> None:
    """Rows that are twice as slow as predicted lower the efficiency of products."""
    predicted, _ = predict([ROW])
    slow = changed(measured={"tokens_per_s_per_gpu": predicted[0].tokens_per_s_per_gpu / 1.3})
    run = read_run(slow)
    before = predicted[0].step_time_s / (run.step_time_s or 0.0)
    found = fit([run] * 8, steps=4)
    assert before == pytest.approx(1 / 1.3)
    assert found.gemm_hopper < 0.715
    assert (to_vector(found) >= LOW).all()


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(CannotPredict, match="Abacus-1"):
        read_run(changed(hardware={"gpu": "Abacus-1"}))
