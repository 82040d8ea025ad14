"""One rank's engine: samples, memory, seeds, stops, and what it refuses. Each test in a fork."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runtime.harness import run_ranks
from tests.runtime.inference.forms import Made, serve
from tests.runtime.plans import LLAMA
from tests.runtime.test_huggingface import MOE

from parctl.errors import UsageError
from parctl.recipes.spec import ModelSpec
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.place import Place
from parctl.runtime.inference.request import Request, Sampled, SampleRow, Sampling
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.inference.stage import build_stage
from parctl.runtime.inference.weights import draw
from parctl.runtime.model import initialize
from parctl.runtime.model.transformer import Transformer

MODEL = replace(LLAMA, max_seq_len=128)
PROMPT = tuple(range(1, 38))


def make(model: ModelSpec = MODEL, **settings: Any) -> Engine:
    config = EngineConfig(**{"num_blocks": 64, "block_size": 4, **settings})
    return assemble(model, config, BatchSampler(), source=7, dtype=torch.float64)


def ask(name: str = "a", **sampling: Any) -> Request:
    return Request(id=name, prompt_tokens=PROMPT, sampling=Sampling(**sampling))


def serve_once(requests: list[Request], settings: dict[str, Any]) -> Made:
    """For a fork."""
    return serve(make(**settings), requests)


def served(directory: Path, requests: list[Request], **settings: Any) -> Made:
    (made,) = run_ranks(serve_once, 1, directory, requests, settings)
    assert isinstance(made, Made)
    return made


def test_samples_of_one_prompt_are_those_of_requests_of_their_own(tmp_path: Path) -> None:
    """They fork the prompt's blocks; a sample alone computes its own."""
    hot: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12, "seed": 5}
    together = served(tmp_path, [replace(ask(**hot), n=4)])
    short = served(tmp_path, [replace(ask(**hot), n=4)], num_blocks=17, max_tokens_per_step=16)
    assert len({tuple(tokens) for tokens in together.tokens.values()}) == 4
    assert short.tokens == together.tokens
    assert short.stats.preemptions > 0
    # 36 tokens of the prompt in nine full blocks, held once; each sample has up to four of its own
    assert together.busiest.num_blocks - together.busiest.free_blocks <= 9 + 4 * 4


def test_a_seed_gives_the_same_tokens_in_any_company(tmp_path: Path) -> None:
    hot: dict[str, Any] = {"temperature": 1.0, "max_tokens": 10}
    alone = served(tmp_path, [ask(**hot, seed=3)])
    others = [
        Request(id=str(i), prompt_tokens=(i,) * (i + 1), sampling=Sampling(**hot, seed=i))
        for i in range(6)
    ]
    crowded = served(tmp_path, [*others, ask(**hot, seed=3)], max_tokens_per_step=16)
    assert crowded.tokens["a", 0] == alone.tokens["a", 0]
    assert served(tmp_path, [ask(**hot, seed=4)]).tokens != alone.tokens


def without_a_seed(directory: Path) -> set[tuple[int, ...]]:
    engine = make()
    made = serve(engine, [ask(str(i), temperature=1.0, max_tokens=10) for i in range(3)])
    return {tuple(tokens) for tokens in made.tokens.values()}


def test_without_a_seed_requests_differ(tmp_path: Path) -> None:
    (different,) = run_ranks(without_a_seed, 1, tmp_path, tmp_path)
    assert len(different) == 3


def test_a_stop_token_ends_the_output_and_is_told(tmp_path: Path) -> None:
    free = served(tmp_path, [ask(max_tokens=12)]).tokens["a", 0]
    stop = free[4]
    made = served(tmp_path, [ask(max_tokens=12, stop_tokens=(stop,))])
    assert made.tokens["a", 0] == free[: free.index(stop) + 1]
    assert [one.finish_reason for one in made.emitted][-1] == "stop"


def test_log_probabilities_come_with_the_tokens(tmp_path: Path) -> None:
    made = served(tmp_path, [ask(max_tokens=3, logprobs=2)])
    for one in made.emitted:
        assert one.logprob is not None and one.logprob < 0
        assert one.top_logprobs[0] == (one.token, one.logprob)
        assert one.top_logprobs[1][1] <= one.logprob


def test_a_common_beginning_is_computed_once(tmp_path: Path) -> None:
    requests = [
        Request(id=str(i), prompt_tokens=(*PROMPT, i), sampling=Sampling(max_tokens=8))
        for i in range(4)
    ]
    # one at a time: the first fills the cache for the others
    with_cache = served(tmp_path, requests, max_sequences=1)
    without = served(tmp_path, requests, max_sequences=1, prefix_cache=False)
    assert with_cache.tokens == without.tokens
    assert with_cache.stats.cached_tokens == 3 * 36
    assert without.stats.computed_tokens - with_cache.stats.computed_tokens == 3 * 36


def test_little_of_the_held_memory_is_empty(tmp_path: Path) -> None:
    requests = [
        Request(id=str(i), prompt_tokens=PROMPT[: 8 + i], sampling=Sampling(max_tokens=60))
        for i in range(8)
    ]
    busiest = served(tmp_path, requests, num_blocks=200).busiest
    assert busiest.held_slots - busiest.held_tokens < 8 * 4  # less than a block each
    assert busiest.waste < 0.06


def cancel_in_between(directory: Path) -> list[tuple[str, int]]:
    engine = make()
    engine.add(replace(ask("a", max_tokens=50), n=2))
    engine.add(ask("b", max_tokens=5))
    left = []
    for step in range(12):
        if step == 3:
            engine.cancel("a", 0)
        if step == 6:
            engine.cancel("a")
        left += [(one.request_id, one.sample_index) for one in engine.step()]
    stats = engine.stats()
    assert engine.unfinished() == 0 and stats.free_blocks == stats.num_blocks
    return left


def test_nothing_comes_of_what_was_cancelled(tmp_path: Path) -> None:
    (emitted,) = run_ranks(cancel_in_between, 1, tmp_path, tmp_path)
    assert emitted.count(("a", 0)) == 3
    assert emitted.count(("a", 1)) == 6
    assert emitted.count(("b", 0)) == 5


BAD = {
    "no tokens": ({"prompt_tokens": ()}, "has no tokens"),
    "too long": (
        {"prompt_tokens": (1,) * 128},
        "128 tokens, and prompt and output together .* 128",
    ),
    "unknown token": ({"prompt_tokens": (1, 256)}, "token 256 is not one of 256"),
    "too many samples": ({"n": 65}, "n = 65, expected 1 to 64"),
    "nothing wanted": ({"sampling": Sampling(max_tokens=0)}, "max_tokens = 0"),
}


def refusals(directory: Path) -> dict[str, str]:
    engine, said = make(), {}
    for name, (fields, _) in BAD.items():
        try:
            engine.add(replace(ask(), **fields))  # type: ignore[arg-type]
        except UsageError as error:
            said[name] = error.message
    assert engine.unfinished() == 0
    return said


def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    (said,) = run_ranks(refusals, 1, tmp_path, tmp_path)
    for name, (_, expected) in BAD.items():
        with pytest.raises(UsageError, match=expected):
            raise UsageError(said[name], hint="")


class Recorder(BatchSampler):
    """Keeps what it samples from."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: dict[str, torch.Tensor] = {}

    def __call__(self, logits_RV: torch.Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
        self.logits |= {row.request_id: logits_RV[i] for i, row in enumerate(rows)}
        return super().__call__(logits_RV, rows)


def difference_from_training(directory: Path) -> float:
    """Of the logits behind beginnings of several lengths, in one batch."""
    plain = Transformer(MODEL).double()
    initialize.fill(dict(plain.named_parameters()), num_layers=MODEL.num_layers, seed=7)
    recorder = Recorder()
    config = EngineConfig(num_blocks=64, block_size=4)
    engine = assemble(MODEL, config, recorder, source=7, dtype=torch.float64)
    lengths = (1, 2, 7, 20, 37)
    serve(engine, [replace(ask(str(n), max_tokens=1), prompt_tokens=PROMPT[:n]) for n in lengths])
    with torch.no_grad():
        expected = plain.eval()(torch.tensor([PROMPT]))[0]
    return max(float((recorder.logits[str(n)] - expected[n - 1]).abs().max()) for n in lengths)


def test_logits_are_those_of_the_training_model(tmp_path: Path) -> None:
    (difference,) = run_ranks(difference_from_training, 1, tmp_path, tmp_path)
    assert difference < 1e-12


def types_in_bfloat16(directory: Path) -> set[tuple[str, torch.dtype]]:
    moe = replace(MOE, router="sigmoid", num_shared_experts=1)
    model = replace(MODEL, family="moe", moe=moe)
    config = EngineConfig(num_blocks=64, block_size=4)
    place = Place(device=torch.device("cpu"))
    stage = build_stage(model, None, config, place, None, range(2), torch.bfloat16)
    draw(stage, 7, None)
    made = serve(Engine(stage, config, place, BatchSampler()), [ask(max_tokens=4)])
    assert len(made.tokens["a", 0]) == 4
    named = {name.rpartition(".")[2]: one.dtype for name, one in stage.parameters().items()}
    return {*named.items(), ("keys", stage.cache.layers[0].keys.dtype)}


def test_in_bfloat16_only_the_balance_of_experts_stays_exact(tmp_path: Path) -> None:
    (types,) = run_ranks(types_in_bfloat16, 1, tmp_path, tmp_path)
    assert ("bias", torch.float32) in types
    assert {dtype for name, dtype in types if name != "bias"} == {torch.bfloat16}
