"""A prompt past one rank's memory is computed in parts, and continued, over a cp group."""

from pathlib import Path

import pytest
import torch
from tests.runtime.harness import run_ranks
from tests.runtime.inference.conftest import Reference
from tests.runtime.inference.forms import FORMS, Form, Made, model_of, run_engines

from parctl.errors import UsageError
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.request import Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler

LONG = Request(
    id="long",
    prompt_tokens=tuple(index * index % 128 for index in range(180)),
    sampling=Sampling(max_tokens=20),
)
SHORT = Request(id="short", prompt_tokens=(5, 6, 7), sampling=Sampling(max_tokens=20))
# 26 blocks of 4 tokens on each rank: 104 tokens
CONFIG = EngineConfig(num_blocks=26, block_size=4, max_tokens_per_step=48)


def refused(folder: Path) -> str:
    engine = assemble(model_of(folder), CONFIG, BatchSampler(), source=folder, dtype=torch.float64)
    with pytest.raises(UsageError) as caught:
        engine.add(LONG)
    return caught.value.message


def served(reference: Reference, tmp_path: Path, form: Form, config: EngineConfig) -> Made:
    folder = reference("llama").folder
    configs, requests = {"": config}, {"": [LONG, SHORT]}
    results = run_ranks(
        run_engines, form.world_size, tmp_path, folder, form, configs, requests, torch.float64
    )
    made: Made = results[0][""]
    return made


@pytest.mark.parametrize("form", ["ring2", "ulysses2"])
def test_two_ranks_hold_what_one_cannot(form: str, reference: Reference, tmp_path: Path) -> None:
    (message,) = run_ranks(refused, 1, tmp_path, reference("llama").folder)
    assert "the prompt has 180 tokens, and prompt and output together have at most 104" in message
    alone = served(reference, tmp_path, Form(), EngineConfig(num_blocks=99, block_size=4))
    shared = served(reference, tmp_path, FORMS[form], CONFIG)
    assert shared.tokens == alone.tokens
    assert len(shared.tokens["long", 0]) == 20
    assert shared.busiest.held_tokens > 180
