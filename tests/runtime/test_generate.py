"""`task: generate` through the launcher, beside transformers with the same folder."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.launcher.runs import BACKEND, directory, launch, log
from tests.runtime.inference.bpe import save_bpe

from parctl.launcher.backend import State
from parctl.launcher.waiting import wait_for
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.runtime.generate import join_parts, part_path, read_part

WAIT_S = 240.0
PROMPTS = ["the cat", "\u4f60\u597d the", "a", "the dog \u00e9t\u00e9 the dog", "0123456789"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads in float64, and a tokenizer beside it."""
    import transformers

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).double().save_pretrained(path)
    save_bpe(path)
    return path


def plan_for(folder: Path, tmp_path: Path, prompts: Path, overrides: Sequence[str] = ()) -> Plan:
    file = tmp_path / "complete.yaml"
    file.write_text(
        json.dumps(
            {
                "version": 1,
                "task": "generate",
                "model": {"hf": str(folder)},
                "parallelism": "TP2",
                "generate": {"prompts": str(prompts), "sampling": {"max_tokens": 12}},
                "inference": {"precision": "fp64", "block_size": 4},
                "launch": {"env": {"OMP_NUM_THREADS": "1"}},
            }
        )
    )
    recipe = load_recipe(str(file), overrides)
    return make_plan(recipe, cluster_for(recipe, None))


def rows_of(run_id: str) -> list[dict[str, Any]]:
    status = wait_for(BACKEND, run_id, timeout_s=WAIT_S)
    assert status.state is State.SUCCEEDED, "\n".join(log(None, run_id))
    path = directory(run_id).path / "completions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_completions_of_a_file_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Greedy, in float64, over tensor-parallel ranks and replicas, in the order of the file."""
    import transformers

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([PROMPTS[0], "", *PROMPTS[1:]]) + "\n")
    launch(plan_for(folder, tmp_path, prompts, ["parallelism=DP2+TP2"]), "complete-1")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>"
    )
    wanted = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        made = model.generate(
            given.input_ids,
            attention_mask=given.attention_mask,
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )[0, given.input_ids.shape[1] :]
        wanted.append(tokenizer.decode(made, skip_special_tokens=True))
    rows = rows_of("complete-1")
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["choices"][0]["text"] for row in rows] == wanted


def test_replicas_with_common_experts_answer_unequal_shares(tmp_path: Path) -> None:
    """The one that has nothing left steps on until the other is through."""
    for forms in ("DP2+EP2", "DP1"):
        (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
        file = tmp_path / "complete.yaml"
        file.write_text(
            f"version: 1\ntask: generate\nmodel: tiny-moe\nparallelism: {forms}\n"
            "generate: {prompts: prompts.txt, sampling: {max_tokens: 6}}\n"
            "inference: {precision: fp64}\nlaunch: {env: {OMP_NUM_THREADS: '1'}}\n"
        )
        recipe = load_recipe(str(file))
        launch(make_plan(recipe, cluster_for(recipe, None)), f"complete-{forms[:3].lower()}")
    split, alone = rows_of("complete-dp2"), rows_of("complete-dp1")
    assert [row["choices"] for row in split] == [row["choices"] for row in alone]


def test_a_line_of_jsonl_is_a_request_and_a_bad_one_costs_only_itself(
    folder: Path, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "the cat", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "the dog"}], "n": 2, "max_tokens": 2},
        {"prompt": "a" * 400},
        {"prompt": "the", "temperature": 9},
        {"prompt": "the cat", "guided_choice": ["yes", "no"], "temperature": 1.0, "seed": 1},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    launch(plan_for(folder, tmp_path, prompts, ["parallelism=DP1"]), "complete-2")
    rows = rows_of("complete-2")
    assert rows[0]["usage"]["completion_tokens"] == 3
    assert rows[1]["messages"] == lines[1]["messages"]
    assert [choice["index"] for choice in rows[1]["choices"]] == [0, 1]
    assert "prompt and output together at most 128" in rows[2]["error"]
    assert (rows[2]["index"], rows[2]["prompt"]) == (2, "a" * 400)
    assert rows[3]["error"].startswith("temperature: ")
    assert rows[4]["choices"][0]["text"] in ("yes", "no")
    said = "\n".join(log(0, "complete-2"))
    assert "3 of 5 prompts answered, 2 failed: the prompt has " in said


def test_a_run_without_an_answer_has_failed(folder: Path, tmp_path: Path) -> None:
    """Both replicas fail at all of theirs; the file says why all the same."""
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a", "temperature": 9}, {"messages": []}, {"prompt": "b", "what": 1}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    launch(plan_for(folder, tmp_path, prompts, ["parallelism=DP2"]), "complete-4")
    status = wait_for(BACKEND, "complete-4", timeout_s=WAIT_S)
    assert status.state is State.FAILED
    assert status.verdict is not None and status.verdict.rank == 0
    assert "no prompt was answered, 3 failed: temperature: " in status.verdict.cause
    path = directory("complete-4").path / "completions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(row) for row in rows] == [
        {"index", "prompt", "error"},
        {"index", "messages", "error"},
        {"index", "prompt", "error"},
    ]


def test_what_was_answered_before_a_kill_is_not_asked_again(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"the cat {number}\n" for number in range(24)))
    overrides = ["launch.retries=1", "generate.sampling.max_tokens=40", "inference.max_sequences=1"]
    launch(plan_for(folder, tmp_path, prompts, [*overrides, "parallelism=DP1"]), "complete-3")
    part = part_path(directory("complete-3").path, 0)
    deadline = time.monotonic() + WAIT_S
    while not (part.exists() and part.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline, "\n".join(log(None, "complete-3"))
        time.sleep(0.01)
    process = directory("complete-3").read().processes[0]
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    rows = rows_of("complete-3")
    assert [row["index"] for row in rows] == list(range(24))
    answered = [line for line in log(0, "complete-3") if "under way" in line]
    assert int(answered[-1].split()[0]) <= 21  # by the second attempt
    assert BACKEND.status("complete-3").restarts == 1


def test_a_torn_row_is_cut_off_and_parts_are_joined_in_order(tmp_path: Path) -> None:
    for replica, indices in enumerate(([0, 2], [3, 1])):
        part = part_path(tmp_path, replica)
        part.parent.mkdir(exist_ok=True)
        part.write_text("".join(json.dumps({"index": index}) + "\n" for index in indices))
    with part_path(tmp_path, 0).open("a") as bad:
        bad.write('{"index": 4, "error": "no"}\n')
    with part_path(tmp_path, 1).open("a") as torn:
        torn.write('{"index": 5, "cho')
    assert [row["index"] for row in read_part(part_path(tmp_path, 1))] == [3, 1]
    assert part_path(tmp_path, 1).read_bytes().endswith(b"\n")
    file = tmp_path / "complete.yaml"
    output = tmp_path / "deep" / "out.jsonl"
    file.write_text(
        "version: 1\ntask: generate\nmodel: tiny-llama\nparallelism: DP1\n"
        f"generate: {{prompts: p.txt, output: {output}}}\n"
    )
    spec = load_recipe(str(file)).generate
    assert spec is not None
    outcome = join_parts(spec, tmp_path, 2)
    assert (outcome.path, outcome.num_answered, outcome.num_failed) == (output, 4, 1)
    assert str(outcome) == "4 of 5 prompts answered, 1 failed: no"
    lines = [f'{{"index": {index}}}\n' for index in range(4)]
    assert output.read_text() == "".join([*lines, '{"index": 4, "error": "no"}\n'])
