"""Greedy output of every parallel form beside `transformers`, token for token, in float64.

    python -m tests.runtime.inference.matrix [--prompts 200] [--only TEXT] [--sample N --seed TEXT]

A case is a model and a form. Its ranks serve the prompts four times: the first 40 one after the
other; all in batches with room for all; and short of memory, so that sequences are pre-empted, once
computed again and once swapped. The prefix cache is on in the second and third.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.runtime.harness import fork_ranks
from tests.runtime.inference import folders
from tests.runtime.inference.forms import EXPERT_FORMS, FORMS, Form, greedy, run_engines

from parctl.runtime.inference.config import EngineConfig

Tokens = list[list[int]]
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


def prepare(folder: Path, model: str, num_prompts: int) -> tuple[Tokens, float]:
    """Make the model, and return what `transformers` says and how close a choice was. In a fork."""
    folders.save(model, folder)
    made = folders.their_tokens(folder, *folders.wishes(num_prompts))
    return [tokens for tokens, _ in made], min(min(gaps) for _, gaps in made)


def expect(directory: Path, model: str, num_prompts: int) -> tuple[Path, Tokens, float]:
    """Do `prepare` in a fork; return the folder too."""
    folder = directory / model
    (result,) = fork_ranks(prepare, 1, directory, folder, model, num_prompts, timeout_s=1200.0)
    assert result.code == 0, result.error or f"ended with {result.code}"
    tokens, gap = result.value
    return folder, tokens, gap


def run_case(
    case: Case, folder: Path, directory: Path, expected: Tokens, names: Sequence[str] = ()
) -> list[str]:
    """Return what is wrong with a case: runs and the prompts whose outputs differ."""
    form, (prompts, counts) = form_of(case), folders.wishes(len(expected))
    chosen = {
        name: config
        for name, config in configs(form, len(prompts)).items()
        if not names or name in names
    }
    requests = greedy(prompts, counts)
    results = fork_ranks(
        run_engines,
        form.world_size,
        directory,
        folder,
        form,
        chosen,
        {name: requests[:NUM_ALONE] if name == "alone" else requests for name in chosen},
        timeout_s=1200.0,
    )
    failed = [result.error or f"ended with {result.code}" for result in results if result.code]
    if failed:
        return failed[:1]
    faults = []
    for name in chosen:
        leaders = [result.value[name] for result in results if result.value]
        tokens = {key: found for made in leaders for key, found in made.tokens.items()}
        wrong = [key for key, _ in tokens if tokens[key, 0] != expected[int(key)]]
        if wrong:
            faults.append(f"{name}: outputs of prompts {', '.join(wrong)} differ")
        if len(tokens) != (min(NUM_ALONE, len(prompts)) if name == "alone" else len(prompts)):
            faults.append(f"{name}: outputs of {len(tokens)} prompts only")
        stats = [made.stats for made in leaders]
        if any(one.free_blocks != one.num_blocks for one in stats):
            faults.append(f"{name}: blocks are still held at the end")
        if name in ("computed again", "swapped") and not any(one.preemptions for one in stats):
            faults.append(f"{name}: nothing was pre-empted")
        if name == "computed again" and not any(one.cached_tokens for one in stats):
            faults.append(f"{name}: nothing was found in the prefix cache")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    cases = list(all_cases()) if options.sample is None else sample(options.sample, options.seed)
    cases = [case for case in cases if options.only in case.name]
    expected: dict[str, tuple[Path, Tokens, float]] = {}
    num_wrong = 0
    with TemporaryDirectory(prefix="parctl-matrix-") as name:
        directory = Path(name)
        for case in cases:
            begin = time.monotonic()
            if case.model not in expected:
                made = expected[case.model] = expect(directory, case.model, options.prompts)
                print(f"{case.model}: {len(made[1])} prompts, the closest choice by {made[2]:.1e}")
            folder, tokens, _ = expected[case.model]
            faults = run_case(case, folder, directory, tokens)
            num_wrong += bool(faults)
            verdict = "WRONG" if faults else "equal"
            print(f"{case.name:<32} {verdict} {time.monotonic() - begin:.1f} s", flush=True)
            print(*(f"  {fault}\n" for fault in faults), sep="", end="")
    print(f"{len(cases) - num_wrong} of {len(cases)} cases equal")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
