"""The loader: files, names, lines, overrides, defaults and notes."""

import io
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.recipes.malformed import GOOD

from parctl.errors import RecipeError
from parctl.recipes.frozen import from_json, to_json
from parctl.recipes.loader import load_recipe
from parctl.recipes.shipped import shipped_recipes
from parctl.recipes.spec import Recipe, ScriptSpec, SecretSpec


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "r.yaml") -> str:
    Path(name).write_text(text)
    return name


def problems(source: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    return [f"{item.path}: {item.message}" for item in caught.value.problems]


def without_words(recipe: Recipe) -> Recipe:
    return replace(recipe, source="", notes=())


# --- lines and names


def test_the_line_of_the_readme_equals_the_shipped_recipe(folder: Path) -> None:
    shipped = load_recipe("llama-70b")
    line = load_recipe("LLaMA-70B: TP+SP+FSDP")
    file = load_recipe(write("LLaMA-70B: TP+SP+FSDP\n", "llama-70b.yaml"))
    assert without_words(line) == without_words(shipped) == without_words(file)
    assert line.model is not None and line.model.name == "llama-3-70b"
    assert line.notes[0] == "LLaMA-70B is read as llama-3-70b"
    assert (line.name, line.parallelism.text) == ("llama-70b", "TP+SP+FSDP")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llama-70b", "llama-3-70b"),
        ("LLAMA 70B", "llama-3-70b"),
        ("llama3_70b", "llama-3-70b"),
        ("Llama-2-70b", "llama-2-70b"),
        ("llama-7b", "llama-2-7b"),
        ("GPT2", "gpt-2"),
        ("gpt3", "gpt-3-175b"),
        ("Llama-3.1-405B", "llama-3.1-405b"),
        ("llama31-405b", "llama-3.1-405b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("DeepSeek-V3", "deepseek-v3"),
    ],
)
def test_model_names_are_read_without_case_and_dashes(name: str, model: str) -> None:
    recipe = load_recipe(f"{name}: DP")
    assert recipe.model is not None and recipe.model.name == model


def test_a_line_needs_no_blank_behind_the_colon() -> None:
    assert load_recipe("tiny-llama:TP2+FSDP2").parallelism.text == "TP2+FSDP2"


def test_a_model_without_a_form_is_told_that_the_form_is_missing() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("LLaMA-70B:")
    (problem,) = caught.value.problems
    assert (problem.column, problem.message) == (11, "found nothing, expected a term")


def test_columns_in_a_line_point_into_the_form() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama: TP2+XX")
    assert str(caught.value).startswith("<line>:1:17 parallelism: found `XX`")


def test_a_file_wins_over_a_shipped_name_and_a_folder_does_not(folder: Path) -> None:
    (folder / "tiny-llama").mkdir()
    assert load_recipe("tiny-llama").source == "tiny-llama"
    write(GOOD, "tiny-gpt")
    assert load_recipe("tiny-gpt").name == "mine"


def test_standard_input_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(GOOD.encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    assert load_recipe("-").source == "<stdin>"


@pytest.mark.parametrize(
    ("file", "name"),
    [("My Recipe_2.yaml", "my-recipe-2"), ("x" * 50 + ".yaml", "x" * 33), ("__.yaml", "recipe")],
)
def test_a_recipe_without_name_is_named_after_its_file(file: str, name: str, folder: Path) -> None:
    assert load_recipe(write(GOOD.replace("name: mine\n", ""), file)).name == name


def test_bom_and_windows_line_ends_are_read(folder: Path) -> None:
    Path("r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe("r.yaml").name == "mine"


# --- shipped recipes


@pytest.mark.parametrize("name", [shipped.name for shipped in shipped_recipes()])
def test_every_shipped_recipe_loads_and_survives_json(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert from_json(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe


def test_the_shipped_recipes_are_those_promised() -> None:
    assert {shipped.name: load_recipe(shipped.name).parallelism.text for shipped in
            shipped_recipes()} == {
        "deepseek-v3": "DP64+TP2+SP+PP8@interleaved-1f1b:4+EP64",
        "gpt3-175b": "DP16+TP8+PP8",
        "llama-3-8b-1m": "TP8+SP+CP8+FSDP2",
        "llama-405b": "TP8+SP+PP16+CP16+FSDP8",
        "llama-405b-serve": "TP8+PP2",
        "llama-70b": "TP+SP+FSDP",
        "llama-70b-serve": "TP8",
        "long-context-prefill": "TP8+SP+CP16",
        "mixtral-8x7b": "DP16+TP4+SP+EP8+ETP4",
        "tiny-gpt": "DP2+TP2+PP2",
        "tiny-llama": "TP2+SP+FSDP2",
        "tiny-llama-generate": "TP2",
        "tiny-moe": "DP2+TP2+EP2",
    }  # fmt: skip


# --- parallelism in mapping form


@pytest.mark.parametrize(
    "mapping",
    [
        "{tp: 8, sp: true, fsdp: 16}",
        "{form: TP8+SP+FSDP16}",
        "{form: TP8+SP, fsdp: 16}",
        "{form: 'tp8+fsdp16', sp: true, zero_stage: 3}",
    ],
)
def test_the_mapping_form_means_the_same(mapping: str, folder: Path) -> None:
    text = f"version: 1\nname: a\nmodel: llama-3-8b\nparallelism: {mapping}\n"
    shorthand = "version: 1\nname: a\nmodel: llama-3-8b\nparallelism: TP8+SP+FSDP16\n"
    assert without_words(load_recipe(write(text))) == without_words(load_recipe(write(shorthand)))


def test_a_form_and_a_key_that_say_the_same_thing_are_refused(folder: Path) -> None:
    text = GOOD.replace("TP2+SP+FSDP2", "{form: TP2+FSDP2, tp: 2}")
    assert problems(write(text)) == ["parallelism.tp: found `tp` beside a form that gives it too"]


def test_order_and_flags_are_taken(folder: Path) -> None:
    mapping = "{form: DP4+TP4+PP4, order: [dp, pp, tp], allow_pcie_tp: true, strict_node: true}"
    spec = load_recipe(write(GOOD.replace("TP2+SP+FSDP2", mapping))).parallelism
    assert spec.order == ("fsdp", "cp", "operator", "dp", "pp", "tp")
    assert (spec.allow_pcie_tp, spec.strict_node, spec.allow_cross_node_tp) == (True, True, False)


# --- overrides


def test_overrides_reach_into_shorthands() -> None:
    recipe = load_recipe(
        "tiny-llama",
        ["parallelism.fsdp=4", "model.num_layers=2", "train.steps=5", "train.optimizer.lr=1e-3"],
    )
    assert recipe.parallelism.text == "TP2+SP+FSDP4"
    assert recipe.model is not None and recipe.model.num_layers == 2
    assert recipe.train is not None
    assert (recipe.train.steps, recipe.train.optimizer.lr) == (5, 0.001)
    assert recipe.notes == ("tiny-llama is changed in num_layers",)


def test_a_whole_form_can_be_replaced_also_on_a_line() -> None:
    assert load_recipe("llama-70b", ["parallelism=TP16+FSDP8"]).parallelism.text == "TP16+FSDP8"
    recipe = load_recipe("llama-70b: TP+SP+FSDP", ["parallelism.allow_pcie_tp=true"])
    assert recipe.parallelism.allow_pcie_tp and recipe.parallelism.text == "TP+SP+FSDP"


def test_an_override_of_a_missing_section_makes_it() -> None:
    assert load_recipe("tiny-llama", ["launch.retries=2"]).launch.retries == 2


def test_the_last_override_of_a_path_wins_and_empty_means_default() -> None:
    recipe = load_recipe("tiny-llama", ["train.steps=5", "train.steps=6", "checkpoint.dir="])
    assert recipe.train is not None and recipe.train.steps == 6
    assert recipe.checkpoint is not None and recipe.checkpoint.dir is None


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("train.steps=ten", '--set train.steps=ten:1:13 train.steps: found "ten"'),
        ("train.stepz=1", "--set train.stepz=1:1:7 train.stepz: unknown key"),
        ("parallelism=TP2+XX", "--set parallelism=TP2+XX:1:17 parallelism: found `XX`"),
        ("steps", "--set steps:1:1: found 'steps', expected PATH=VALUE"),
        ("a b=1", "--set a b=1:1:1: found 'a b=1', expected PATH=VALUE"),
        ("train.steps.x=1", "--set train.steps.x=1:1:7 train.steps.x: `train.steps` is a single"),
        (
            "parallelism.reshard=0",
            "--set parallelism.reshard=0:1:21 parallelism.reshard: found 0, expected one of auto, "
            "always, never, or a whole number from 2 on",
        ),
        ("train.steps=[1", "--set train.steps=[1:1:15: not YAML"),
        ("train.steps=&a 1", "--set train.steps=&a 1:1:13: found the anchor `&a`"),
    ],
)
def test_problems_of_an_override_point_at_it(override: str, shown: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama", [override])
    assert str(caught.value).startswith(shown)
    assert all(problem.hint for problem in caught.value.problems)


def test_an_override_of_one_value_of_a_part_keeps_the_rest_of_the_preset() -> None:
    model = load_recipe("tiny-moe: DP2", ["model.moe.top_k=1"]).model
    assert model is not None and model.moe is not None
    assert (model.moe.top_k, model.moe.num_experts, model.moe.expert_ffn_dim) == (1, 4, 192)


def test_a_default_that_does_not_divide_is_not_blamed_on_an_override_beside_it() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama: DP3", ["train.steps=2"])
    assert str(caught.value).startswith("<line>:1:1 train.global_batch: global_batch (32)")


def test_the_example_for_an_item_names_its_list() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny-llama: DP2", ["train.recompute_layers=[full, foo]"])
    assert "`recompute_layers: [full, none]`" in str(caught.value.problems[0].hint)


def test_an_end_token_beyond_the_vocabulary_is_refused() -> None:
    assert problems("tiny-llama: DP2", "data.end_token=256") == [
        "data.end_token: found 256, but the ids of the model end at 255"
    ]
    assert load_recipe("tiny-llama: DP2", ["data.end_token=255"]).data is not None


# --- defaults and both names of recompute


@pytest.mark.parametrize("key", ["recompute", "activation_checkpointing"])
def test_recompute_has_two_names(key: str, folder: Path) -> None:
    train = load_recipe(write(GOOD + f"  {key}: full\n")).train
    assert train is not None and train.recompute == "full"


def test_defaults_come_from_the_recipe_then_the_preset_then_the_reference(folder: Path) -> None:
    train = load_recipe("gpt-3-175b: DP").train
    assert train is not None
    assert (train.global_batch, train.seq_len, train.optimizer.lr) == (1536, 2048, 6e-5)
    assert (train.optimizer.min_lr, train.optimizer.warmup_steps) == (6e-6, 100)
    own = "{family: llama, num_layers: 2, dim: 64, num_heads: 4, ffn_dim: 128, vocab_size: 300,"
    text = f"version: 1\nmodel: {own} max_seq_len: 65536}}\nparallelism: DP\n"
    train = load_recipe(write(text)).train
    assert train is not None
    assert (train.global_batch, train.seq_len, train.optimizer.lr) == (512, 8192, 3e-4)
    assert (train.precision, train.recompute, train.steps) == ("bf16", "selective", 1000)


def test_relative_paths_start_at_the_recipe(folder: Path) -> None:
    (folder / "sub").mkdir()
    text = GOOD + "data: {train: [a/*.txt, /b.txt, s3://c/d], tokenizer: tok.json}\n"
    recipe = load_recipe(write(text + "checkpoint: {dir: out}\n", "sub/r.yaml"))
    base = folder.resolve() / "sub"
    assert recipe.data is not None and recipe.checkpoint is not None
    assert recipe.data.train == (f"{base}/a/*.txt", "/b.txt", "s3://c/d")
    assert recipe.data.tokenizer == f"{base}/tok.json"
    assert recipe.checkpoint.dir == f"{base}/out"


def test_an_unknown_shipped_text_is_refused() -> None:
    assert problems("tiny-llama", "data.train=corpus://guid") == [
        "data.train.0: no text is called `guid`"
    ]


# --- script, env, secrets


def test_a_script_names_its_own_mesh(folder: Path) -> None:
    text = """\
version: 1
task: script
script:
  command: [python, train.py, --lr, "1e-3"]
  env: {A: 007, B: true, C: 1e3, D: "x y", E: }
  axes: {pp: 2, dp: 2, tp: 4}
"""
    recipe = load_recipe(write(text))
    assert recipe.script == ScriptSpec(
        command=("python", "train.py", "--lr", "1e-3"),
        env={"A": "007", "B": "true", "C": "1e3", "D": "x y", "E": ""},
        workdir=None,
    )
    assert recipe.parallelism.text == "DP2+TP4+PP2"
    assert recipe.parallelism.order == ("fsdp", "cp", "operator", "pp", "dp", "tp")
    assert (recipe.model, recipe.train, recipe.data, recipe.checkpoint) == (None,) * 4


def test_a_script_without_axes_is_data_parallel_over_all_devices(folder: Path) -> None:
    recipe = load_recipe(write("version: 1\ntask: script\nscript: {command: [ls]}\n"))
    assert recipe.parallelism.text == "DP"
    assert recipe.parallelism.dp is None


def test_a_script_takes_no_model(folder: Path) -> None:
    text = "version: 1\ntask: script\nmodel: tiny-llama\nscript: {command: [ls]}\n"
    assert problems(write(text)) == ["model: has no meaning for task script"]


def test_secrets_name_their_source_and_never_hold_a_value(folder: Path) -> None:
    text = GOOD + "launch:\n  secrets: {A: {from_env: B}, C: {secret: s, key: k}}\n"
    assert load_recipe(write(text)).launch.secrets == {
        "A": SecretSpec(from_env="B", secret=None, key=None),
        "C": SecretSpec(from_env=None, secret="s", key="k"),
    }
    text = GOOD + "launch: {env: {A: x}, secrets: {A: {from_env: B}}}\n"
    assert problems(write(text)) == ["launch.secrets.A: A is also in `launch.env`"]


def test_a_variable_that_looks_like_a_secret_is_pointed_out() -> None:
    recipe = load_recipe("tiny-llama", ["launch.env.HF_TOKEN=x"])
    assert recipe.notes == ("launch.env.HF_TOKEN is printed: a secret goes in launch.secrets",)


# --- a Hugging Face folder


def test_a_hugging_face_folder_is_a_model(folder: Path) -> None:
    (folder / "my-model").mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 320,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "max_position_embeddings": 256, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }  # fmt: skip
    Path("my-model/config.json").write_text(json.dumps(config))
    recipe = load_recipe(write(GOOD.replace("model: tiny-llama", "model: {hf: my-model}")))
    model = recipe.model
    assert model is not None
    assert (model.name, model.family, model.num_kv_heads, model.head_dim) == (
        "my-model", "llama", 2, 16,
    )  # fmt: skip
    assert (model.tied_embeddings, model.rope_theta) == (True, 500000.0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ('{"model_type": "bert"}', "has model_type 'bert'"),
        ('{"model_type": "llama"}', "leaves out 'num_hidden_layers'"),
    ],
)
def test_a_folder_that_is_no_model_says_why(config: str | None, says: str, folder: Path) -> None:
    if config is not None:
        Path("config.json").write_text(config)
    (found,) = problems(write(GOOD.replace("model: tiny-llama", "model: {hf: .}")))
    assert found.startswith("model.hf: ") and says in found


# --- fuzz: nothing but RecipeError


def load_or_problems(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    try:
        load_recipe(str(path))
    except RecipeError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.hint and problem.message
            assert problem.line is not None and problem.line >= 1
            assert problem.column is not None and problem.column >= 1


fuzz = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEYS = [field.name for field in fields(Recipe)]
KEYS += ["version", "steps", "tp", "form", "preset", "moe", "optimizer", "env", "secrets", "axes"]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["TP2+SP", "tiny-llama", "auto", "8", "bf16", "*a", "&a x", "1e3"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=6)), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode())))
@fuzz
def test_any_bytes_give_a_recipe_or_problems(data: bytes, tmp_path: Path) -> None:
    load_or_problems(data, tmp_path / "r.yaml")


@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 20), noise=st.text(max_size=12))
@fuzz
def test_a_damaged_recipe_gives_a_recipe_or_problems(
    start: int, length: int, noise: str, tmp_path: Path
) -> None:
    text = GOOD[:start] + noise + GOOD[start + length :]
    load_or_problems(text.encode(errors="replace"), tmp_path / "r.yaml")


@given(value=values, key=st.sampled_from(KEYS))
@fuzz
def test_any_value_in_any_section_gives_a_recipe_or_problems(
    value: object, key: str, tmp_path: Path
) -> None:
    recipe = {"version": 1, "model": "tiny-llama", "parallelism": "DP", key: value}
    load_or_problems(json.dumps(recipe).encode(), tmp_path / "r.yaml")


@given(path=st.sampled_from(["train.steps", "parallelism", "model", "parallelism.tp", "a.b"]),
       value=st.text(max_size=20))  # fmt: skip
@fuzz
def test_any_override_gives_a_recipe_or_problems(path: str, value: str) -> None:
    try:
        load_recipe("tiny-llama: TP2", [f"{path}={value}"])
    except RecipeError as error:
        assert all(problem.hint for problem in error.problems)
