"""The parity matrix: every parallel form and product of forms beside one process.

    python -m tests.runtime.matrix [--only TEXT] [--sample N --seed TEXT] [--precision fp64,fp32]

Each case is a recipe line with overrides and goes through what `parctl verify` does: shrunk,
planned, run on forked ranks, compared step by step. First weights and data follow from the recipe's
own seed, so a case gives the same numbers every time. `--sample` draws cases by a seed of its own.

Half of the cases, by name, keep to gloo as ranks of several nodes do; the others share memory.
PARCTL_SHARED_MEMORY says so for all.

A case ends as `equal`, `WRONG`, `refused` (a pair that cannot work, with the reason) or `unbuilt`.
"""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args
from unittest import mock
from zlib import crc32

from parctl.errors import NotBuiltError, ParctlError, RunCancelledError
from parctl.launcher.trials import Trials
from parctl.launcher.verification import Trying, Verifier, write_text
from parctl.recipes.loader import load_recipe
from parctl.recipes.shipped import shipped_recipes
from parctl.recipes.spec import Precision
from parctl.runtime.parallel.shared_memory import SWITCH

MAX_RANKS = 8
DATA = {"ddp": "DP2", "zero1": "ZERO12", "zero2": "ZERO22", "fsdp": "FSDP2", "hsdp": "HSDP2x2"}
TENSOR = {"tp1": "", "tp2": "TP2", "tp2+sp": "TP2+SP"}
PIPELINE = {
    "pp1": "",
    "layer": "LAYER2",
    "gpipe": "PP2@gpipe",
    "1f1b": "PP2",
    "interleaved": "PP2@interleaved-1f1b",
    "zero-bubble": "PP2@zero-bubble",
    "zbv": "PP2@zbv",
    "dualpipev": "PP2@dualpipev",
}
CONTEXT = {"cp1": "", "ring2": "CP2@ring", "ulysses2": "CP2@ulysses"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    line: str  # a recipe, as `parctl verify` takes it
    overrides: tuple[str, ...] = ()


def products() -> Iterator[Case]:
    """{data} x {tensor} x {pipeline} x {context}, where that is at most 8 ranks."""
    for data, tensor, pipeline, context in product(DATA, TENSOR, PIPELINE, CONTEXT):
        terms = [DATA[data], TENSOR[tensor], PIPELINE[pipeline], CONTEXT[context]]
        twos = sum(bool(term) for term in terms) + (data == "hsdp")
        if 2**twos <= MAX_RANKS:
            form = "+".join(term for term in terms if term)
            yield Case(
                name=f"{data} x {tensor} x {pipeline} x {context}", line=f"tiny-llama: {form}"
            )


EXPERTS = {
    "ep2": "DP2+EP2",
    "ep4": "DP4+EP4",
    "ep2 x edp2": "DP4+EP2",
    "ep2 x fsdp2": "FSDP2+EP2",
    "ep2 x fsdp4": "FSDP4+EP2",
    "ep2 x hsdp2x2": "HSDP2x2+EP2",
    "ep2 in tp2": "TP2+EP2",
    "ep2 in tp2+sp": "TP2+SP+EP2",
    "dp2 x tp2 x ep2": "DP2+TP2+EP2",
    "dp2 x tp2+sp x ep2": "DP2+TP2+SP+EP2",
    "fsdp2 x tp2+sp x ep2": "FSDP2+TP2+SP+EP2",
    "ep2 x etp2": "DP2+TP2+EP2+ETP2",
    "ep2 x etp2 with sp": "DP2+TP2+SP+EP2+ETP2",
    "ep2 x cp2": "CP2+EP2",
    "ep2 x ulysses2": "CP2@ulysses+EP2",
    "ep2 x cp2 x fsdp2": "CP2+FSDP2+EP2",
    "ep2 x pp2": "DP2+EP2+PP2",
    "ep2 x zbv": "DP2+EP2+PP2@zbv",
    "no ep: dp2": "DP2",
    "no ep: fsdp2 x tp2+sp": "FSDP2+TP2+SP",
    "no ep: zero1": "ZERO12",
    "5D: dp2 x tp2+sp x pp2, ep2": "DP2+TP2+SP+PP2+EP2",
    "5D, interleaved": "DP2+TP2+SP+PP2@interleaved-1f1b+EP2",
    "5D of fsdp": "FSDP2+TP2+SP+PP2+EP2",
}
OPERATOR = {"op2": "OP2", "op2 x dp2": "OP2+DP2", "op2 x fsdp2": "OP2+FSDP2"}
SAVINGS = {
    "partitioned x tp2": ("TP2", ("train.recompute=partitioned",)),
    "partitioned x tp2 x fsdp2": ("TP2+FSDP2", ("train.recompute=partitioned",)),
    "full x tp2+sp x fsdp2": ("TP2+SP+FSDP2", ("train.recompute=full",)),
    "full x ring2": ("CP2+FSDP2", ("train.recompute=full",)),
    "full x 1f1b": ("PP2+FSDP2", ("train.recompute=full",)),
    "full x zbv": ("PP2@zbv", ("train.recompute=full",)),
    "selective x tp2+sp x fsdp2": ("TP2+SP+FSDP2", ("train.recompute=selective",)),
    "selective x ring2 x tp2+sp": ("CP2+TP2+SP", ("train.recompute=selective",)),
    "selective x interleaved": ("PP2@interleaved-1f1b+DP2", ("train.recompute=selective",)),
}
MODELS = {
    "gpt": ("tiny-gpt", "DP2+TP2+PP2", ()),
    "gpt with sp and a ring": ("tiny-gpt", "TP2+SP+CP2", ()),
    "tied x pp2 x tp2": ("tiny-llama", "PP2+TP2+DP2", ("model.tied_embeddings=true",)),
    "tied x zbv x fsdp2": ("tiny-llama", "PP2@zbv+FSDP2", ("model.tied_embeddings=true",)),
    "tied x dualpipev": ("tiny-llama", "PP2@dualpipev", ("model.tied_embeddings=true",)),
    "tp4": ("tiny-llama", "TP4+SP", ("model.num_kv_heads=2",)),
    "pp4": ("tiny-llama", "PP4", ()),
    "pp4 x interleaved": ("tiny-llama", "PP4@interleaved-1f1b", ("model.num_layers=8",)),
    "uneven stages": ("tiny-llama", "PP2+TP2", ("model.num_layers=5",)),
    "ring4": ("tiny-llama", "CP4", ()),
    "ulysses4": ("tiny-llama", "CP4@ulysses", ()),
    "fsdp8": ("tiny-llama", "FSDP8", ()),
    "nemotron": ("nemotron-340b", "TP2+SP+PP2+DP2", ()),
    "qwen3": ("qwen3-30b-a3b", "FSDP2+TP2+SP+EP2", ()),
    "deepseek": ("deepseek-v3", "DP2+TP2+SP+PP2+EP2", ()),
    "deepseek x ring": ("deepseek-v3", "CP2+TP2+SP", ()),
    "deepseek x ulysses": ("deepseek-v3", "CP2@ulysses+FSDP2+EP2", ()),
    "deepseek x mtp": ("deepseek-v3", "PP2+FSDP2+EP2", ("model.num_mtp_layers=1",)),
    "vit": ("tiny-vit", "FSDP2+TP2", ()),
    "switch": ("switch-base-8", "DP2+TP2+EP2", ()),
    "switch with sp": ("switch-base-8", "FSDP2+TP2+SP+EP2", ()),
    "switch x zero2": ("switch-base-8", "ZERO22", ("model.tied_embeddings=false",)),
    "switch x partitioned": ("switch-base-8", "TP2+FSDP2", ("train.recompute=partitioned",)),
    "switch x selective": ("switch-base-8", "HSDP2x2+TP2", ("train.recompute=selective",)),
    "t5": ("switch-base-8", "FSDP2+TP2+SP", ("model.moe=null",)),
}


def all_cases() -> list[Case]:
    cases = list(products())
    cases += [Case(name=f"moe {name}", line=f"tiny-moe: {form}") for name, form in EXPERTS.items()]
    blocks = ("model.parallel_blocks=true",)
    cases += [
        Case(name=name, line=f"tiny-llama: {form}", overrides=blocks)
        for name, form in OPERATOR.items()
    ]
    cases += [
        Case(name=name, line=f"tiny-llama: {form}", overrides=overrides)
        for name, (form, overrides) in SAVINGS.items()
    ]
    cases += [
        Case(name=name, line=f"{model}: {form}", overrides=overrides)
        for name, (model, form, overrides) in MODELS.items()
    ]
    return cases


def shipped_cases() -> list[Case]:
    """Those that train."""
    return [
        Case(name=f"shipped {one.name}", line=one.name)
        for one in shipped_recipes()
        if load_recipe(one.name).task == "train"
    ]


def keeps_to_gloo(case: Case) -> bool:
    return crc32(case.name.encode()) % 2 == 1


def run_case(verifier: Verifier, case: Case, precision: Precision) -> str:
    """Return the outcome, and print its line."""
    shared = os.environ.get(SWITCH, "0" if keeps_to_gloo(case) else "1")
    with mock.patch.dict(os.environ, {SWITCH: shared}):
        return run_as_told(verifier, case, precision)


def run_as_told(verifier: Verifier, case: Case, precision: Precision) -> str:
    began = time.monotonic()
    details: list[str] = []
    try:
        recipe = load_recipe(case.line, case.overrides)
        found = verifier.verify(
            recipe, precision=precision, max_ranks=MAX_RANKS, say=lambda text: None
        )
    except RunCancelledError:  # ^C ends the matrix, not a case of it
        raise
    except NotBuiltError as error:
        outcome, shown = "unbuilt", error.message
    except ParctlError as error:
        outcome, shown = "refused", error.message
    else:
        outcome = "equal" if found.equal else "WRONG"
        shown = f"{max(part.num_ranks for part in found.parts)} ranks, "
        shown += f"difference {max(part.worst for part in found.parts):.1e}"
        for part in found.parts:
            if part.failure is not None:
                first_line, *log = part.failure.splitlines()
                details += [f"{part.form}: {first_line}", *(f"    {line}" for line in log[-40:])]
            elif not part.equal:
                first = next(number for number in part.numbers if not number.equal)
                details.append(
                    f"{part.form}: step {first.step} {first.name} {first.parallel!r}, "
                    f"one process {first.one_process!r}"
                )
    seconds = time.monotonic() - began
    print(f"{outcome:<8} {precision} {seconds:5.1f} s  {case.name}: {shown}", flush=True)
    for line in details:
        print(f"    {line}", flush=True)
    if details:
        overrides = "".join(f" --set {override}" for override in case.overrides)
        command = f"parctl verify '{case.line}' --precision {precision}{overrides}"
        print(f"    again: {SWITCH}={os.environ[SWITCH]} {command}")
    return outcome


Chosen = Sequence[tuple[Case, Precision]]


def run_cases(trials: Trying, directory: Path, chosen: Chosen) -> Counter[str]:
    """Run cases one after the other, and print how they ended."""
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    text = directory / "text.txt"
    write_text(text)
    verifier = Verifier(trials, text)
    for case, precision in chosen:
        outcomes[run_case(verifier, case, precision)] += 1
    print(
        f"{len(chosen)} cases in {time.monotonic() - began:.0f} s: {outcomes['equal']} equal, "
        f"{outcomes['refused']} refused with reason, {outcomes['WRONG']} wrong, "
        f"{outcomes['unbuilt']} unbuilt"
    )
    return outcomes


def sample(chosen: Chosen, count: int, seed: str) -> Chosen:
    return random.Random(seed).sample(chosen, min(count, len(chosen)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--precision", default="fp64", help="of them all, separated by commas")
    parser.add_argument("--shipped", action="store_true", help="the shipped recipes instead")
    parser.add_argument("--sample", type=int, help="so many cases, drawn at random")
    parser.add_argument("--seed", default="0", help="of the draw")
    options = parser.parse_args()
    cases = shipped_cases() if options.shipped else all_cases()
    cases = [case for case in cases if options.only in case.name]
    precisions = [name for name in get_args(Precision) if name in options.precision.split(",")]
    chosen: Chosen = [(case, precision) for precision in precisions for case in cases]
    if options.sample is not None:
        chosen = sample(chosen, options.sample, options.seed)
    try:
        with (
            TemporaryDirectory(prefix="parctl-matrix-") as directory,
            Trials(Path(directory) / "trials") as trials,
        ):
            outcomes = run_cases(trials, Path(directory), chosen)
    except RunCancelledError:
        return 130
    return 1 if outcomes["WRONG"] or outcomes["unbuilt"] else 0


if __name__ == "__main__":
    sys.exit(main())
