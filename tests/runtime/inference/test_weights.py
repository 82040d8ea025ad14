"""Weights of a checkpoint and of its export are the same, on any layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.runtime.harness import run_ranks, train_to_end
from tests.runtime.inference.forms import Form, greedy, serve
from tests.runtime.plans import LLAMA, plan
from tests.runtime.test_huggingface import MOE

from parctl.errors import UsageError
from parctl.planner.stages import split_layers
from parctl.recipes.spec import ModelSpec
from parctl.runtime.huggingface.export import export
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.parallel.mesh import RankMesh, build_mesh, join_world

MODELS = {
    "tied llama": replace(LLAMA, tied_embeddings=True),
    "experts": replace(LLAMA, family="moe", moe=MOE),
}
FORMS = {
    "one rank": Form(),
    "tp2": Form(axes={"tp": 2}),
    "pp2": Form(axes={"pp": 2}),
    "ep2": Form(axes={"tp": 2}, ep=2, spec={"expert_placement": "round-robin"}),
}
PROMPTS = [(1, 2, 3), (250, 7, 7, 7, 9), (40, 41, 42, 43, 44, 45, 46)]
Answers = list[tuple[int, ...]]


def answers(model: ModelSpec, source: Path | int, form: Form) -> Answers:
    """For a rank."""
    mesh: RankMesh | None = None
    if form.world_size > 1:
        join_world(form.layout, torch.device("cpu"))
        mesh = build_mesh(form.layout, torch.device("cpu"), wrap_alone=False)
    engine = assemble(
        model,
        EngineConfig(num_blocks=32, block_size=4),
        BatchSampler(),
        source=source,
        dtype=torch.float32,
        mesh=mesh,
        parallelism=form.parallelism,
        stages=split_layers(model, form.axes.get("pp", 1)),
    )
    found: Answers = []
    if engine.is_leader:
        made = serve(engine, greedy(PROMPTS, [12, 12, 12]))
        found = [tuple(made.tokens[str(index), 0]) for index in range(len(PROMPTS))]
        engine.close()
    else:
        engine.follow()
    if mesh is not None:
        dist.destroy_process_group()
    return found


def exported(checkpoints: Path, folder: Path) -> None:
    export(checkpoints, folder, dtype="fp32")


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_and_its_export_say_the_same_on_any_layout(
    name: str, text: Path, tmp_path: Path
) -> None:
    model = MODELS[name]
    options = {"steps": 3, "precision": "fp32"}
    train_to_end(
        plan(text, {"fsdp": 2}, model=model, train=options, checkpoint={"at_end": True}),
        tmp_path / "run",
    )
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    run_ranks(exported, 1, tmp_path, checkpoint.parent, tmp_path / "folder")
    found = {}
    for form in FORMS:
        if form != "ep2" or model.moe is not None:
            ranks = FORMS[form].world_size
            found[form] = run_ranks(answers, ranks, tmp_path, model, checkpoint, FORMS[form])[0]
    (folder,) = run_ranks(answers, 1, tmp_path, model, tmp_path / "folder", Form())
    assert found == dict.fromkeys(found, folder)
    (drawn,) = run_ranks(answers, 1, tmp_path, model, 7, Form())
    assert drawn != folder  # training has changed what is said


def refusal(checkpoint: Path) -> str:
    try:
        answers(replace(LLAMA, num_layers=3), checkpoint, Form())
    except UsageError as error:
        return error.message
    return ""


def test_a_checkpoint_of_another_model_is_refused(text: Path, tmp_path: Path) -> None:
    options = {"steps": 1, "precision": "fp32"}
    train_to_end(plan(text, {}, train=options, checkpoint={"at_end": True}), tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    (said,) = run_ranks(refusal, 1, tmp_path, checkpoint)
    assert "num_layers is 2 there and 3 in the recipe" in said
