"""Greedy output of every parallel form beside `transformers`, token for token, in float64.

    python -m tests.runtime.inference.matrix [--prompts 200] [--only TEXT] [--sample N --seed TEXT]
        [--precision fp64|fp32]

A case is a model and a form. Its ranks serve the prompts four times: the first 40 one after the
other; all in batches with room for all; and short of memory, so that sequences are pre-empted, once
computed again and once swapped. The prefix cache is on in the second and third.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.runtime.harness import fork_ranks
from tests.runtime.inference import folders
from tests.runtime.inference.forms import EXPERT_FORMS, FORMS, Form, greedy, run_engines

from parctl.runtime.inference.config import EngineConfig

DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
CLOSE = 1e-4  # of two logits, where float32 may choose the other one
BLOCK = 4
NUM_ALONE = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    model: str
    form: str

    @property
    def name(self) -> str:
        return f"{self.model}, {self.form}"


def all_cases() -> Iterator[Case]:
    for model in folders.NAMES:
        forms = [*FORMS, *(EXPERT_FORMS if model in folders.WITH_EXPERTS else ())]
        yield from (Case(model=model, form=form) for form in forms)


def sample(count: int, seed: str) -> list[Case]:
    """Draw cases, each model at least once if there is room for it."""
    draw = random.Random(seed)
    cases = list(all_cases())
    draw.shuffle(cases)
    firsts = [next(case for case in cases if case.model == model) for model in folders.NAMES]
    return [*firsts, *(case for case in cases if case not in firsts)][:count]


def form_of(case: Case) -> Form:
    return (FORMS | EXPERT_FORMS)[case.form]


def configs(form: Form, num_prompts: int) -> dict[str, EngineConfig]:
    """What each run is called, and its configuration."""
    cp = form.axes.get("cp", 1)
    longest = -(-84 // (BLOCK * cp))  # blocks of 48 tokens and 36 new ones
    plenty, scarce = num_prompts * longest, max(num_prompts // 2, 20) * longest // 16
    common: dict[str, Any] = {"block_size": BLOCK, "max_sequences": num_prompts}
    return {
        "alone": EngineConfig(
            num_blocks=plenty, block_size=BLOCK, max_sequences=1, prefix_cache=False
        ),
        "batched": EngineConfig(num_blocks=plenty, max_tokens_per_step=256, **common),
        "computed again": EngineConfig(num_blocks=scarce, max_tokens_per_step=32, **common),
        "swapped": EngineConfig(
            num_blocks=scarce,
            num_host_blocks=plenty,
            max_tokens_per_step=32,
            preemption="swap",
            prefix_cache=False,
            **common,
        ),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What `transformers` says, in float64."""

    folder: Path
    tokens: list[list[int]]  # by prompt
    gaps: list[list[float]]  # of the two largest logits, by prompt and token


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    faults: list[str]
    num_close: int  # outputs that parted from the expected ones where float32 may choose otherwise


def prepare(folder: Path, model: str, num_prompts: int) -> Expected:
    """Make the model and ask `transformers`. In a fork."""
    folders.save(model, folder)
    made = folders.their_tokens(folder, *folders.wishes(num_prompts))
    return Expected(
        folder=folder, tokens=[tokens for tokens, _ in made], gaps=[gaps for _, gaps in made]
    )


def expect(directory: Path, model: str, num_prompts: int) -> Expected:
    """Do `prepare` in a fork."""
    (result,) = fork_ranks(
        prepare, 1, directory, directory / model, model, num_prompts, timeout_s=1200.0
    )
    assert result.code == 0, result.error or f"ended with {result.code}"
    assert isinstance(result.value, Expected)
    return result.value


def run_case(
    case: Case, expected: Expected, directory: Path, dtype: torch.dtype = torch.float64
) -> Verdict:
    """Serve the prompts in all four ways, and compare."""
    form, (prompts, counts) = form_of(case), folders.wishes(len(expected.tokens))
    chosen, requests = configs(form, len(prompts)), greedy(prompts, counts)
    wanted = {name: requests[:NUM_ALONE] if name == "alone" else requests for name in chosen}
    results = fork_ranks(
        run_engines,
        form.world_size,
        directory,
        expected.folder,
        form,
        chosen,
        wanted,
        dtype,
        timeout_s=1200.0,
    )
    failed = [result.error or f"ended with {result.code}" for result in results if result.code]
    if failed:
        return Verdict(faults=failed[:1], num_close=0)
    faults, num_close = [], 0
    for name in chosen:
        leaders = [result.value[name] for result in results if result.value]
        tokens = {int(key): found for made in leaders for (key, _), found in made.tokens.items()}
        parted = [prompt for prompt in tokens if tokens[prompt] != expected.tokens[prompt]]
        close = [prompt for prompt in parted if is_close(tokens[prompt], expected, prompt, dtype)]
        num_close += len(close)
        wrong = [str(prompt) for prompt in parted if prompt not in close]
        if wrong:
            faults.append(f"{name}: outputs of prompts {', '.join(wrong)} differ")
        if len(tokens) != len(wanted[name]):
            faults.append(f"{name}: outputs of {len(tokens)} prompts only")
        stats = [made.stats for made in leaders]
        if any(one.free_blocks != one.num_blocks for one in stats):
            faults.append(f"{name}: blocks are still held at the end")
        if name in ("computed again", "swapped") and not any(one.preemptions for one in stats):
            faults.append(f"{name}: nothing was pre-empted")
        if name == "computed again" and not any(one.cached_tokens for one in stats):
            faults.append(f"{name}: nothing was found in the prefix cache")
    return Verdict(faults=faults, num_close=num_close)


def is_close(tokens: list[int], expected: Expected, prompt: int, dtype: torch.dtype) -> bool:
    """Whether an output parts from the expected one where the two best tokens are almost equal.

    What comes after has another beginning, and is not compared.
    """
    theirs, gaps = expected.tokens[prompt], expected.gaps[prompt]
    first = next(i for i, pair in enumerate(zip(tokens, theirs, strict=True)) if pair[0] != pair[1])
    return dtype != torch.float64 and gaps[first] < CLOSE


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp64")
    options = parser.parse_args()
    cases = list(all_cases()) if options.sample is None else sample(options.sample, options.seed)
    cases = [case for case in cases if options.only in case.name]
    expected: dict[str, Expected] = {}
    num_wrong = num_close = 0
    with TemporaryDirectory(prefix="parctl-matrix-") as name:
        directory = Path(name)
        for case in cases:
            begin = time.monotonic()
            if case.model not in expected:
                made = expected[case.model] = expect(directory, case.model, options.prompts)
                closest = min(min(gaps) for gaps in made.gaps)
                print(
                    f"{case.model}: {len(made.tokens)} prompts, the closest choice by {closest:.1e}"
                )
            found = run_case(case, expected[case.model], directory, DTYPES[options.precision])
            num_wrong += bool(found.faults)
            num_close += found.num_close
            verdict = "WRONG" if found.faults else "equal"
            print(f"{case.name:<32} {verdict} {time.monotonic() - begin:.1f} s", flush=True)
            print(*(f"  {fault}\n" for fault in found.faults), sep="", end="")
    print(
        f"{len(cases) - num_wrong} of {len(cases)} cases equal in {options.precision}; "
        f"{num_close} outputs parted at a choice closer than {CLOSE:g}"
    )
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
