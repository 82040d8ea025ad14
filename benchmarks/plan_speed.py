"""How long planning and searching take, and how much memory, from 8 to 131,072 GPUs.

Every row is a fresh process: CPU seconds and peak memory include Python, parctl's imports and the
layout. `plan` places given degrees, `search` ranks all of them (`parctl plan --search`).

    python benchmarks/plan_speed.py [--most 131072] [--json OUT]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# GPUs, model, batch: a larger cluster trains a larger model, and every data rank has work
ROWS = (
    (8, "llama-3-8b", 64),
    (64, "llama-3-8b", 512),
    (512, "llama-3-70b", 1024),
    (2048, "llama-3.1-405b", 2048),
    (16384, "llama-3.1-405b", 2048),
    (131072, "llama-3.1-405b", 16384),
)
MOST_SEARCH_S = 5.0  # goal, for the 405B on 16,384 GPUs
PLAN = """
from parctl.planner.make import make_plan
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster
form = {"llama-3-8b": "FSDP", "llama-3-70b": "TP8+SP+FSDP", "llama-3.1-405b": "TP8+SP+PP16+FSDP"}
recipe = load_recipe(f"{model}: {form[model]}", [f"train.global_batch={batch}"])
made = make_plan(recipe, parse_cluster(f"h100:{gpus // 8}x8"))
said = f"{made.time['step_time_s']:.3g} s"
"""
SEARCH = """
from parctl.planner.search.run import search
from parctl.recipes.loader import load_recipe
from parctl.topology.synthetic import parse_cluster
recipe = load_recipe(f"{model}: FSDP", [f"train.global_batch={batch}"])
found = search(recipe, parse_cluster(f"h100:{gpus // 8}x8"), keep={})
said = f"{found.looked_at} looked at: {found.best.text}, {found.best.seconds:.3g} s"
"""
MEASURE = """
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1000,
                  "said": said}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--most", type=int, default=131072, help="largest cluster")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    print(f"{'GPUs':>8}  {'model':15} {'':7} {'CPU s':>6} {'MB':>5}")
    for gpus, model, batch in ROWS:
        if gpus > given.most:
            break
        for kind, program in (("plan", PLAN), ("search", SEARCH)):
            row = {
                "gpus": gpus,
                "model": model,
                "kind": kind,
                **measure(program, gpus, model, batch),
            }
            rows.append(row)
            print(
                f"{gpus:>8,}  {model:15} {kind:7} {row['cpu_s']:6.2f} {row['peak_mb']:5.0f}  "
                f"{row['said']}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    slow = [row for row in rows if row["kind"] == "search" and row["gpus"] == 16384]
    for row in slow:
        met = "met" if float(row["cpu_s"]) <= MOST_SEARCH_S else "MISSED"
        print(f"search on 16,384 GPUs: {row['cpu_s']:.2f} CPU s, goal {MOST_SEARCH_S:g} s: {met}")


def measure(program: str, gpus: int, model: str, batch: int) -> dict[str, float | str]:
    """Run one program by itself; raises CalledProcessError when it fails."""
    head = f"gpus, model, batch = {gpus}, {model!r}, {batch}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + program + MEASURE],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
