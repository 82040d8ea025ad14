"""The placement as vLLM's own words; vLLM itself is a program of the test."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from parctl.errors import NotBuiltError, RunFailedError, UsageError
from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.runtime.serving.check import refuse_bad_inference
from parctl.runtime.serving.vllm import run_vllm, vllm_command, vllm_environment


def plan(overrides: Sequence[str] = (), cluster: str = "h100:1x8") -> Plan:
    given = [
        "inference.engine=vllm",
        "checkpoint.init_from=/models/llama",
        "inference.tokenizer=byte",
        *overrides,
    ]
    recipe = load_recipe("llama-70b-serve", given)
    return make_plan(recipe, cluster_for(recipe, cluster))


def test_the_command_says_what_the_plan_does() -> None:
    made = plan(["parallelism=TP4+PP2", "serve.port=9000", "inference.memory_fraction=0.8"])
    assert vllm_command(made) == (
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", "/models/llama",
        "--served-model-name", "llama-3-70b",
        "--host", "127.0.0.1",
        "--port", "9000",
        "--dtype", "bfloat16",
        "--tensor-parallel-size", "4",
        "--pipeline-parallel-size", "2",
        "--data-parallel-size", "1",
        "--max-model-len", "8192",
        "--max-num-seqs", "256",
        "--max-num-batched-tokens", "2048",
        "--block-size", "16",
        "--gpu-memory-utilization", "0.8",
        "--enable-prefix-caching",
    )  # fmt: skip
    assert "--no-enable-prefix-caching" in vllm_command(plan(["inference.prefix_cache=false"]))


def test_devices_are_shown_in_the_order_of_the_layout_and_the_key_is_passed_on() -> None:
    made = plan(
        [
            "parallelism={form: TP2+PP4, order: [tp, pp, dp, fsdp, cp, operator]}",
            "launch.secrets={KEY: {from_env: X}}",
            "serve.api_key_from=KEY",
        ]
    )
    given = vllm_environment(made, {"KEY": "sesame", "RANK": "0", "PATH": "/bin"})
    by_rank = {slot.rank: slot.gpu for slot in made.layout.slots}
    order = ",".join(str(by_rank[rank]) for rank in made.layout.ranks)
    assert given == {"PATH": "/bin", "KEY": "sesame", "VLLM_API_KEY": "sesame",
                     "CUDA_VISIBLE_DEVICES": order}  # fmt: skip
    assert sorted(order.split(",")) == [str(gpu) for gpu in range(8)]


def test_what_vllm_cannot_be_told_is_refused() -> None:
    bare = plan()
    assert bare.recipe.checkpoint is not None
    recipe = replace(bare.recipe, checkpoint=replace(bare.recipe.checkpoint, init_from=None))
    with pytest.raises(UsageError, match="reads a Hugging Face folder"):
        vllm_command(replace(bare, recipe=recipe))
    with pytest.raises(UsageError, match="fp64"):
        vllm_command(plan(["inference.precision=fp64", "parallelism=TP8+PP2"], "h100:2x8"))
    with pytest.raises(NotBuiltError, match="2 nodes"):
        vllm_command(plan(["parallelism=TP8+PP2"], "h100:2x8"))


def test_without_vllm_the_hint_says_how_to_get_it() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_bad_inference(plan().recipe)
    assert caught.value.message == "inference.engine: vllm, and vLLM is not installed here"
    assert caught.value.hint == "`pip install vllm`, or `inference.engine: parctl`"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `vllm` whose server writes how it was started, and ends when told."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (tmp_path / "vllm", tmp_path / "vllm" / "entrypoints", package):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    pathlib.Path('ended').write_text('by SIGTERM')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('started.new').write_text(' '.join(sys.argv[1:]))\n"
        "os.rename('started.new', 'started')\n"
        "time.sleep(0 if '--port 1 ' in ' '.join(sys.argv) else 60)\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_started_watched_and_told_to_end(installed: Path) -> None:
    run_vllm(plan(), stop=lambda: (installed / "started").exists())
    assert "--tensor-parallel-size 8" in (installed / "started").read_text()
    assert (installed / "ended").read_text() == "by SIGTERM"
    assert not any(name.startswith("VLLM") for name in os.environ)


def test_its_own_end_is_a_failure(installed: Path) -> None:
    with pytest.raises(RunFailedError, match="exit code 3"):
        run_vllm(plan(["serve.port=1"]), stop=lambda: False)
