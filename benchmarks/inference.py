"""Inference on one CPU rank beside `transformers.generate`, same weights, same run.

Llama of 31.5 million parameters (dim 512, 8 layers, 8 heads, 4 of them for keys and values, ffn 1536,
vocabulary 8192), random weights, float32, greedy, one thread. Programs take turns; medians are
printed. Only tokens that a request asked for are counted.

    equal lengths   prompts of 64 tokens, 64 new ones
    mixed lengths   prompts of 16 to 192 tokens, exponentially distributed outputs (mean 48, at most
                    192), as chats have them

Goals: 5x sequential generate at batch 64, 1.3x static batching on mixed lengths, less than 4% of the
held key/value memory empty and at least 2x less than with room for the longest request reserved.

    python -m benchmarks.inference [--rounds 3] [--parts speed memory prefix]
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.models import complete_model
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine, EngineStats
from parctl.runtime.inference.request import Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler

VOCAB, MAX_CONTEXT, BLOCK = 8192, 1024, 16
GOAL_SEQUENTIAL, GOAL_STATIC, GOAL_WASTE, GOAL_RESERVED = 5.0, 1.3, 0.04, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A request: so many new tokens behind a prompt."""

    prompt: tuple[int, ...]
    num_new: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What became of wishes."""

    tokens: list[list[int]]
    seconds: float
    stats: list[EngineStats]  # after each step
    first_token_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.tokens)) / self.seconds


def equal(count: int) -> list[Wish]:
    draw = random.Random(0)
    return [Wish(prompt=tokens(draw, 64), num_new=64) for _ in range(count)]


def mixed(count: int) -> list[Wish]:
    draw = random.Random(1)
    return [
        Wish(
            prompt=tokens(draw, draw.randint(16, 192)),
            num_new=min(1 + int(draw.expovariate(1 / 48)), 192),
        )
        for _ in range(count)
    ]


def tokens(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCAB) for _ in range(count))


def save_model(folder: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=1536,
        max_position_embeddings=MAX_CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def open_ours(folder: Path, **settings: Any) -> Engine:
    values, _ = read_hf_config(folder)
    model, _ = complete_model(values, "benchmark")
    config = EngineConfig(
        **{"num_blocks": 64 * MAX_CONTEXT // BLOCK, "block_size": BLOCK, **settings}
    )
    return assemble(model, config, BatchSampler(), source=folder, dtype=torch.float32)


def open_theirs(folder: Path) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


def serve(engine: Engine, wishes: Sequence[Wish]) -> Served:
    """Give the engine all wishes at once, and step until they are done."""
    made: list[list[int]] = [[] for _ in wishes]
    stats = []
    begin = time.perf_counter()
    first = 0.0
    for index, wish in enumerate(wishes):
        sampling = Sampling(max_tokens=wish.num_new)
        engine.add(Request(id=str(index), prompt_tokens=wish.prompt, sampling=sampling))
    while engine.unfinished():
        for emitted in engine.step():
            first = first or time.perf_counter() - begin
            made[int(emitted.request_id)].append(emitted.token)
        stats.append(engine.stats())
    seconds = time.perf_counter() - begin
    return Served(tokens=made, seconds=seconds, stats=stats, first_token_s=first)


def generate(model: Any, wishes: Sequence[Wish], batch: int) -> Served:
    """Let `transformers` do `batch` wishes at a time, each batch until its longest is done."""
    made: list[list[int]] = []
    begin = time.perf_counter()
    for start in range(0, len(wishes), batch):
        own = wishes[start : start + batch]
        width = max(len(wish.prompt) for wish in own)
        padded = torch.tensor([[0] * (width - len(wish.prompt)) + [*wish.prompt] for wish in own])
        seen = torch.tensor(
            [[0] * (width - len(wish.prompt)) + [1] * len(wish.prompt) for wish in own]
        )
        with torch.inference_mode():
            out = model.generate(
                padded,
                attention_mask=seen,
                max_new_tokens=max(wish.num_new for wish in own),
                do_sample=False,
                pad_token_id=0,
            )[:, width:].tolist()
        made += [row[: wish.num_new] for row, wish in zip(out, own, strict=True)]
    seconds = time.perf_counter() - begin
    return Served(tokens=made, seconds=seconds, stats=[], first_token_s=0.0)


def in_turns(rounds: int, programs: dict[str, Callable[[], Served]]) -> dict[str, list[Served]]:
    found: dict[str, list[Served]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            found[name].append(program())
    return found


def speed(folder: Path, rounds: int) -> None:
    theirs = open_theirs(folder)
    ours = {
        size: open_ours(folder, max_sequences=size, max_tokens_per_step=1024, prefix_cache=False)
        for size in (1, 8, 64)
    }
    programs: dict[str, Callable[[], Served]] = {}
    for size in (1, 8, 64):
        wishes = equal(max(size, 4))
        programs[f"equal, batch {size}, parctl"] = lambda w=wishes, s=size: serve(ours[s], w)
        programs[f"equal, batch {size}, transformers"] = lambda w=wishes, s=size: generate(
            theirs, w, s
        )
    wishes = mixed(128)
    programs["mixed, parctl"] = lambda: serve(ours[64], wishes)
    programs["mixed, transformers, batches of 64"] = lambda: generate(theirs, wishes, 64)
    programs["mixed, transformers, one by one"] = lambda: generate(theirs, wishes[:12], 1)
    found = in_turns(rounds, programs)
    rates = {name: median(one.tokens_per_s for one in runs) for name, runs in found.items()}
    for name, rate in rates.items():
        print(f"{name:<40} {rate:8.0f} tokens/s")
    same = found["mixed, parctl"][0].tokens, found["mixed, transformers, batches of 64"][0].tokens
    print(f"mixed: {sum(a == b for a, b in zip(*same, strict=True))} of {len(wishes)} outputs equal")
    for what, ratio, goal in (
        (
            "batch 64 beside one by one",
            rates["equal, batch 64, parctl"] / rates["equal, batch 1, transformers"],
            GOAL_SEQUENTIAL,
        ),
        (
            "mixed lengths beside static batches",
            rates["mixed, parctl"] / rates["mixed, transformers, batches of 64"],
            GOAL_STATIC,
        ),
    ):
        print(f"{what}: {ratio:.2f}x (goal {goal}x, {'met' if ratio >= goal else 'missed'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="parctl-bench-") as directory:
        save_model(Path(directory))
        speed(Path(directory), options.rounds)


if __name__ == "__main__":
    main()
