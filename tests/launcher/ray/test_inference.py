"""Tokens made over two nodes are those of the same recipe on this machine."""

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.launcher.ray.bare import bare_python
from tests.launcher.ray.cluster import RayCluster
from tests.launcher.ray.runs import SMALL_NODES, ended, launch, run_here, until

from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend

SERVER = ("starlette", "uvicorn", "prometheus_client", "pydantic")
PROMPTS = ["A pipeline has", "Tensor parallelism splits", "x", "The gradients of a replica are"]
FORM = "parallelism=TP2+PP2"


def texts(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["choices"][0]["text"] for row in rows]


def test_generate_over_two_nodes_gives_what_this_machine_gives(
    backend: RayBackend, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    changes = [FORM, f"generate.prompts={prompts}", "generate.sampling.max_tokens=12"]
    there, here = tmp_path / "there.jsonl", tmp_path / "here.jsonl"

    plan = launch(
        "tiny-llama-generate", *changes, f"generate.output={there}", SMALL_NODES, run_id="words-1"
    )
    assert plan.layout.num_nodes == 2
    status = ended(backend, "words-1")
    assert status.state is State.SUCCEEDED, status.verdict
    run_here("tiny-llama-generate", *changes, f"generate.output={here}")

    assert len(texts(there)) == len(PROMPTS)
    assert texts(there) == texts(here)


@pytest.fixture(scope="module")
def server_packages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `task: serve` needs beside torch, in a folder of its own."""
    folder = tmp_path_factory.mktemp("server")
    bare_python(folder, SERVER)
    (packages,) = folder.glob("lib/python*/site-packages")
    return str(packages)


def complete(url: str, prompt: str) -> str:
    body = {"model": "tiny-llama", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: dict[str, Any] = json.loads(answer.read())
    return str(content["choices"][0]["text"])


def address(backend: RayBackend, run_id: str) -> str | None:
    """Where the run says that it serves, once it does."""
    assert not backend.status(run_id).state.ended, backend.status(run_id).verdict
    lines = backend.logs(run_id, rank=None, since=None, tail=None, follow=False)
    said = [line.text for line in lines if "serving " in line.text]
    return said[0].split(" at ")[1].split()[0] if said else None


def served(backend: RayBackend, run_id: str, prompts: Sequence[str]) -> list[str]:
    url = until(lambda: address(backend, run_id))
    return [complete(url, prompt) for prompt in prompts]


def test_an_endpoint_over_two_nodes_says_what_generate_says(
    cluster: RayCluster, backend: RayBackend, tmp_path: Path, server_packages: str
) -> None:
    recipe = tmp_path / "endpoint.yaml"
    recipe.write_text(
        "version: 1\nname: endpoint\ntask: serve\nmodel: tiny-llama\n"
        "serve: {port: 0, drain_s: 1}\n"
        "inference: {precision: fp32, tokenizer: byte, kv_blocks: 64, max_context: 128}\n"
    )
    plan = launch(
        str(recipe),
        FORM,
        SMALL_NODES,
        "launch.stop_grace_s=5",
        f"launch.env={{PYTHONPATH: {server_packages}}}",
        run_id="endpoint-1",
    )
    assert plan.layout.num_nodes == 2
    answers = served(backend, "endpoint-1", PROMPTS)
    backend.cancel("endpoint-1", grace_s=5)
    assert backend.status("endpoint-1").state is State.CANCELLED

    prompts, here = tmp_path / "prompts.txt", tmp_path / "here.jsonl"
    prompts.write_text("\n".join(PROMPTS))
    run_here(
        "tiny-llama-generate",
        FORM,
        f"generate.prompts={prompts}",
        "generate.sampling.max_tokens=12",
        f"generate.output={here}",
    )
    assert answers == texts(here)
