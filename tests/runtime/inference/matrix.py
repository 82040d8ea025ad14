"""Greedy output of every parallel form beside `transformers`, token for token.

    python -m tests.runtime.inference.matrix [--prompts 200] [--all] [--only TEXT]

A case is a model and a form. Its ranks serve the prompts in float64 four times: the first 10 one
after the other; all in batches with room for all; and short of memory, so that sequences are
pre-empted, once computed again and once swapped. The prefix cache is on in the second and third.
Then in float32, batched and pre-empted, where an output may part from the expected one at a choice
between two logits that lie closer than 1e-4; such outputs are counted.

Ranks are forked once per form and serve all models. Without `--all` products of forms are left out,
and two of the models.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tests.runtime.harness import fork_ranks
from tests.runtime.inference import folders
from tests.runtime.inference.forms import EXPERT_FORMS, FORMS, Form, Job, Made, greedy, run_jobs

from parctl.runtime.inference.config import EngineConfig

CLOSE = 1e-4  # of two logits, where float32 may choose the other one
BLOCK = 4
NUM_ALONE = 10
PRECISE = ("alone", "batched", "computed again", "swapped")
ROUGH = ("batched", "computed again")  # in float32
BASIC_MODELS = ("llama", "qwen3", "mixtral", "deepseek", "mistral")
BASIC_FORMS = (
    "one rank",
    "tp2",
    "tp4",
    "tp2+sp",
    "pp2",
    "tp2 x pp2",
    "ring2",
    "ring4",
    "ulysses2",
    "ulysses4",
    "ep2 in tp2",
    "dp2 x ep2",
)


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


def configs(model: str, form: Form, num_prompts: int) -> dict[str, EngineConfig]:
    """What each run is called, and its configuration."""
    cp = form.axes.get("cp", 1)
    longest = -(-84 // (BLOCK * cp))  # blocks of 48 tokens and 36 new ones
    plenty, scarce = num_prompts * longest, max(num_prompts, 20) * longest // 16
    chunk = 32 if num_prompts < 100 else 64
    if model == "mistral":  # a sequence holds a window and a chunk at most, later a window
        chunk //= 2
        scarce = -(-(folders.WINDOW - 1 + chunk) // (BLOCK * cp)) + 1 + num_prompts // (16 * cp)
    common: dict[str, Any] = {"block_size": BLOCK, "max_sequences": num_prompts}
    return {
        "alone": EngineConfig(
            num_blocks=plenty, block_size=BLOCK, max_sequences=1, prefix_cache=False
        ),
        "batched": EngineConfig(num_blocks=plenty, max_tokens_per_step=256, **common),
        "computed again": EngineConfig(num_blocks=scarce, max_tokens_per_step=chunk, **common),
        "swapped": EngineConfig(
            num_blocks=scarce,
            num_host_blocks=plenty,
            max_tokens_per_step=chunk,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A case in one precision."""

    case: Case
    expected: Expected
    dtype: torch.dtype = torch.float64

    @property
    def job(self) -> Job:
        prompts, counts = folders.wishes(len(self.expected.tokens))
        requests = greedy(prompts, counts)
        ways = PRECISE if self.dtype == torch.float64 else ROUGH
        every = configs(self.case.model, form_of(self.case), len(prompts))
        return Job(
            folder=self.expected.folder,
            configs={way: every[way] for way in ways},
            requests={way: requests[:NUM_ALONE] if way == "alone" else requests for way in ways},
            dtype=self.dtype,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    faults: list[str]
    num_outputs: int = 0  # that were compared
    num_close: int = 0  # outputs that parted from the expected ones where float32 may choose so
    seconds: float = 0.0


def run_form(form: Form, tasks: Sequence[Task], directory: Path) -> list[Verdict]:
    """Serve the prompts of all tasks on one set of ranks, and compare."""
    jobs = [task.job for task in tasks]
    results = fork_ranks(run_jobs, form.world_size, directory, form, jobs, timeout_s=1200.0)
    failed = [result.error or f"ended with {result.code}" for result in results if result.code]
    if failed:
        return [Verdict(faults=failed[:1]) for _ in tasks]
    verdicts = []
    for number, (task, job) in enumerate(zip(tasks, jobs, strict=True)):
        made = [result.value[number][0] for result in results if result.value[number][0]]
        seconds = results[0].value[number][1]
        verdicts.append(judge(task, job, made, seconds))
    return verdicts


def judge(task: Task, job: Job, leaders: Sequence[Mapping[str, Made]], seconds: float) -> Verdict:
    """Compare what the leaders of all replicas made with what is expected."""
    expected, faults, num_close, num_outputs = task.expected, list[str](), 0, 0
    for way in job.configs:
        each = [made[way] for made in leaders]
        tokens = {int(key): found for made in each for (key, _), found in made.tokens.items()}
        num_outputs += len(tokens)
        parted = [prompt for prompt in tokens if tokens[prompt] != expected.tokens[prompt]]
        close = [prompt for prompt in parted if is_close(tokens[prompt], task, prompt)]
        num_close += len(close)
        wrong = [str(prompt) for prompt in parted if prompt not in close]
        if wrong:
            faults.append(f"{way}: outputs of prompts {', '.join(wrong)} differ")
        if len(tokens) != len(job.requests[way]):
            faults.append(f"{way}: outputs of {len(tokens)} prompts only")
        stats = [made.stats for made in each]
        if any(one.free_blocks != one.num_blocks for one in stats):
            faults.append(f"{way}: blocks are still held at the end")
        # the few blocks that a chunk and a window need are enough for a handful of sequences
        must_be_short = task.case.model != "mistral" or len(expected.tokens) >= 100
        short = way in ("computed again", "swapped") and must_be_short
        if short and not any(one.preemptions for one in stats):
            faults.append(f"{way}: nothing was pre-empted")
        if way == "computed again" and not any(one.cached_tokens for one in stats):
            faults.append(f"{way}: nothing was found in the prefix cache")
    return Verdict(faults=faults, num_outputs=num_outputs, num_close=num_close, seconds=seconds)


def run_case(
    case: Case, expected: Expected, directory: Path, dtype: torch.dtype = torch.float64
) -> Verdict:
    (verdict,) = run_form(
        form_of(case), [Task(case=case, expected=expected, dtype=dtype)], directory
    )
    return verdict


def is_close(tokens: list[int], task: Task, prompt: int) -> bool:
    """Whether an output parts from the expected one where the two best tokens are almost equal.

    What comes after has another beginning, and is not compared.
    """
    theirs, gaps = task.expected.tokens[prompt], task.expected.gaps[prompt]
    first = next(i for i, pair in enumerate(zip(tokens, theirs, strict=True)) if pair[0] != pair[1])
    return task.dtype != torch.float64 and gaps[first] < CLOSE


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--all", action="store_true", help="products of forms and two models more")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = parser.parse_args()
    cases = [
        case
        for case in all_cases()
        if options.all or (case.form in BASIC_FORMS and case.model in BASIC_MODELS)
    ]
    cases = [case for case in cases if options.only in case.name]
    models = [name for name in folders.NAMES if any(case.model == name for case in cases)]
    begin, verdicts = time.monotonic(), list[Verdict]()
    with TemporaryDirectory(prefix="parctl-matrix-") as name:
        directory = Path(name)
        expected = {model: expect(directory, model, options.prompts) for model in models}
        for model, made in expected.items():
            closest = min(min(gaps) for gaps in made.gaps)
            print(f"{model}: {len(made.tokens)} prompts, the closest choice by {closest:.1e}")
        for form in dict.fromkeys(case.form for case in cases):
            verdicts += show_form(
                [case for case in cases if case.form == form], expected, directory
            )
    num_wrong = sum(bool(one.faults) for one in verdicts)
    print(
        f"{len(verdicts) - num_wrong} of {len(verdicts)} cases equal, "
        f"{sum(one.num_outputs for one in verdicts):,} outputs, of which "
        f"{sum(one.num_close for one in verdicts)} parted in fp32 at a choice closer than "
        f"{CLOSE:g}; {time.monotonic() - begin:.0f} s"
    )
    return 1 if num_wrong else 0


def show_form(
    cases: Sequence[Case], expected: Mapping[str, Expected], directory: Path
) -> list[Verdict]:
    """Run the cases of one form in both precisions, and print a line for each."""
    tasks = [
        Task(case=case, expected=expected[case.model], dtype=dtype)
        for case in cases
        for dtype in (torch.float64, torch.float32)
    ]
    verdicts = run_form(form_of(cases[0]), tasks, directory)
    for task, found in zip(tasks, verdicts, strict=True):
        precision = "fp64" if task.dtype == torch.float64 else "fp32"
        said = "WRONG" if found.faults else "equal"
        print(
            f"{task.case.form:<22} {task.case.model:<9} {precision} {said} "
            f"{found.num_outputs:4} outputs, {found.num_close} close {found.seconds:6.1f} s",
            flush=True,
        )
        print(*(f"  {fault}\n" for fault in found.faults), sep="", end="")
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
