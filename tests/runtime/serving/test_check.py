"""What is refused before anything starts, and what recipes of inference settle by themselves."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.runtime.inference.bpe import save_bpe

from parctl.errors import NotBuiltError, RecipeError, UsageError
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan, plan_from_json
from parctl.recipes.loader import load_recipe
from parctl.recipes.spec import Recipe
from parctl.runtime.huggingface.check import refuse_bad_weights
from parctl.runtime.serving.check import refuse_bad_inference, refuse_missing_files
from parctl.runtime.supported import refuse_unbuilt


def recipe(tmp_path: Path, overrides: Sequence[str] = (), *, task: str = "serve") -> Recipe:
    file = tmp_path / "tiny.yaml"
    content = f"version: 1\ntask: {task}\nmodel: tiny-llama\nparallelism: TP2\n"
    file.write_text(content + ("generate: {prompts: p.txt}\n" if task == "generate" else ""))
    return load_recipe(str(file), overrides)


def plan(given: Recipe) -> Plan:
    return make_plan(given, cluster_for(given, None))


def test_defaults_come_from_the_model(tmp_path: Path) -> None:
    given = recipe(tmp_path)
    assert given.inference is not None and given.serve is not None
    assert (given.inference.precision, given.inference.max_context) == ("fp32", 128)
    assert (given.inference.tokenizer, given.inference.chunk) == ("byte", 512)
    assert (given.serve.host, given.serve.model_name) == ("127.0.0.1", "tiny-llama")
    assert "drawn at random" in given.notes[-1]


def test_the_tokenizer_beside_the_weights_is_taken(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    given = recipe(tmp_path, [f"checkpoint.init_from={tmp_path}"])
    assert given.inference is not None
    assert given.inference.tokenizer == str(tmp_path / "tokenizer.json")


HUB = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 256,
    "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def hub_recipe(tmp_path: Path, task: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe whose model is a folder with a config.json and no weights."""
    (tmp_path / "hub").mkdir(exist_ok=True)
    (tmp_path / "hub" / "config.json").write_text(json.dumps(HUB))
    (tmp_path / "p.txt").write_text("one\n")
    return recipe(tmp_path, ["model={hf: hub}", *overrides], task=task)


@pytest.mark.parametrize("task", ["generate", "serve"])
def test_a_folder_without_weights_is_no_reason_to_draw_some(tmp_path: Path, task: str) -> None:
    given = hub_recipe(tmp_path, task)
    assert given.checkpoint is not None and given.model is not None
    assert given.checkpoint.init_from == str(tmp_path / "hub")  # for ranks that lie elsewhere
    assert any("holds no safetensors files here" in note for note in given.notes)
    with pytest.raises(UsageError, match=r"hub holds neither model\.safetensors nor") as caught:
        refuse_missing_files(given)
    assert "`checkpoint.init_from: random` draws weights" in str(caught.value.hint)
    (tmp_path / "hub" / "pytorch_model.bin").touch()
    with pytest.raises(UsageError, match=r"; pytorch_model\.bin is not read"):
        refuse_bad_weights(tmp_path / "hub", given.model)
    assert plan(given).recipe == given  # a plan, and a dry run for nodes that have the folder


def test_random_weights_of_a_folders_model_are_asked_for(tmp_path: Path) -> None:
    given = hub_recipe(tmp_path, "generate", ["checkpoint.init_from=random"])
    assert given.checkpoint is not None and given.checkpoint.init_from is None
    refuse_missing_files(given)
    saved = hub_recipe(tmp_path, "generate", ["checkpoint.dir=run"])
    assert saved.checkpoint is not None and saved.checkpoint.init_from is None


def test_training_begins_with_the_shape_alone(tmp_path: Path) -> None:
    hub_recipe(tmp_path, "serve")
    file = tmp_path / "train.yaml"
    file.write_text("version: 1\nmodel: {hf: hub}\nparallelism: DP2\n")
    given = load_recipe(str(file))
    assert given.checkpoint is not None and given.checkpoint.init_from is None


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["parallelism=TP2+FSDP2"], "FSDP shards the state of training"),
        (["parallelism=PP2@interleaved-1f1b:2"], "there is nothing to interleave"),
        (["inference.max_context=129"], "tiny-llama ends at 128"),
        (["inference.host_blocks=4"], "without swapping nothing goes there"),
        (["serve.api_key_from=KEY"], "`launch.secrets` has no KEY"),
        (["model.causal=false"], "does not write text token by token"),
        (["train.steps=4"], "has no meaning for task serve"),
        (["generate.prompts=x.txt"], "has no meaning for task serve"),
        (["serve.prot=80"], "port"),
        (["inference.memory_fraction=1.1"], "inference.memory_fraction"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(
    tmp_path: Path, overrides: list[str], problem: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, overrides)
    assert problem in str(caught.value)


def test_an_open_door_is_mentioned(tmp_path: Path) -> None:
    assert any(
        "open to everybody" in note for note in recipe(tmp_path, ["serve.host=0.0.0.0"]).notes
    )


def test_prompts_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"suffix `\.pdf`"):
        recipe(tmp_path, ["generate.prompts=x.pdf"], task="generate")
    with pytest.raises(UsageError, match="No such file"):
        refuse_bad_inference(recipe(tmp_path, task="generate"))
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(UsageError, match="holds no prompt"):
        refuse_bad_inference(recipe(tmp_path, task="generate"))
    lines = tmp_path / "p.jsonl"
    for line, problem in (("{", "no JSON"), ("[]", "an object"), ('{"a": 1}', "`prompt`")):
        lines.write_text('{"prompt": "ok"}\n' + line + "\n")
        with pytest.raises(UsageError, match=rf"p\.jsonl:2: .*{problem}"):
            refuse_bad_inference(recipe(tmp_path, ["generate.prompts=p.jsonl"], task="generate"))
    lines.write_text("{\n" + '{"prompt": "ok"}\n' + "[]\n" * 30)
    with pytest.raises(UsageError) as caught:
        refuse_missing_files(recipe(tmp_path, ["generate.prompts=p.jsonl"], task="generate"))
    assert [line.split(": ")[0] for line in caught.value.message.splitlines()] == [
        *(f"{lines}:{number}" for number in (1, *range(3, 22))),
        "and 11 more lines",
    ]


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    save_bpe(tmp_path)
    given = recipe(tmp_path, ["inference.tokenizer=tokenizer.json"])
    with pytest.raises(UsageError, match=r"makes ids up to \d+, but model.vocab_size is 256"):
        refuse_bad_inference(given)


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no complete checkpoint"):
        refuse_bad_inference(recipe(tmp_path, [f"checkpoint.dir={tmp_path}"]))


def test_a_bad_chat_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{% for %}")
    with pytest.raises(UsageError, match=r"chat\.jinja: not a template"):
        refuse_bad_inference(recipe(tmp_path, ["inference.chat_template=chat.jinja"]))


def test_what_the_engine_does_not_do_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotBuiltError, match="LAYER"):
        refuse_unbuilt(recipe(tmp_path, ["parallelism=LAYER2"]), {"pp": 2})
    with pytest.raises(NotBuiltError, match="vllm for task generate"):
        given = recipe(tmp_path, ["inference.engine=vllm"], task="generate")
        refuse_unbuilt(given, {"tp": 2})
    with pytest.raises(NotBuiltError, match="s3://bucket"):
        refuse_unbuilt(recipe(tmp_path, ["checkpoint.dir=s3://bucket/x"]), {"tp": 2})


def test_sizes_that_do_not_divide_are_told_with_the_arithmetic(tmp_path: Path) -> None:
    given = recipe(tmp_path, ["parallelism=CP3@ulysses"])
    with pytest.raises(UsageError, match="heads of a tp rank = 8 is no multiple of 3"):
        refuse_unbuilt(given, {"cp": 3})


def test_a_plan_of_inference_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = plan(recipe(tmp_path, ["launch.secrets={K: {from_env: X}}", "serve.api_key_from=K"]))
    again = plan_from_json(json.loads(json.dumps(made.to_json())))
    assert again.recipe == made.recipe
    assert again.hash == made.hash
