"""Endpoints that tests talk to: real runs of the local back end, with tiny models."""

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launcher.runs import BACKEND, directory, launch, log

from parctl.planner.cluster import cluster_for
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe

START_S = 240.0  # importing torch on a busy machine takes long
MODEL = "tiny-llama"

RECIPE = """
version: 1
name: tiny-serve
task: serve
model: tiny-llama
parallelism: DP1
serve: {port: 0, sampling: {max_tokens: 8}}
inference: {precision: fp32}
launch: {env: {OMP_NUM_THREADS: "1"}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    run_id: str
    run_dir: Path
    url: str  # up to and with /v1
    key: str | None

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.root + path, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def serving(
    folder: Path, overrides: Sequence[str] = (), *, run_id: str, key: str | None = None
) -> Iterator[Endpoint]:
    """Serve until the `with` is left; nothing is running then."""
    file = folder / f"{run_id}.yaml"
    file.write_text(RECIPE)
    recipe = load_recipe(str(file), overrides)
    plan = make_plan(recipe, cluster_for(recipe, None))
    launch(plan, run_id)
    try:
        path = directory(run_id).path
        yield Endpoint(run_id=run_id, run_dir=path, url=url_of(run_id), key=key)
    finally:
        BACKEND.cancel(run_id, grace_s=10.0)


def url_of(run_id: str, *, attempt: int = 1) -> str:
    """Wait for an attempt to serve, and return where."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        told = [line for line in log(0, run_id) if line.startswith("serving ")]
        if len(told) >= attempt:
            return told[attempt - 1].split(" at ")[1].split()[0]
        assert not BACKEND.status(run_id).state.ended, "\n".join(log(None, run_id))
        time.sleep(0.1)
    raise AssertionError("\n".join(log(None, run_id)))
