"""Calculon beside parctl, on the published runs that Calculon has words for.

Calculon (SC 2023, github.com/calculon-ai/calculon) models dense GPT blocks with tensor, pipeline
and data parallelism on an A100 or H100 system of its own. A row is accepted when that describes it:
dense, plain heads, no context parallelism, ZeRO 0 or 1, stages that divide. Both sides' errors are
printed for the accepted rows. parctl's constants were fitted to published runs, these among them;
Calculon's were not.

    python benchmarks/plan_peers.py --runs published_runs.yaml --calculon CHECKOUT
"""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, not with -m

from benchmarks.plan_accuracy import predict, quantile

from parctl.planner.time.job import Job

SYSTEMS = {"A100-80GB-SXM": "a100_80g", "H100-80GB-SXM": "h100_80g_nvl8"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--calculon", type=Path, required=True, help="a checkout of its repository")
    given = parser.parse_args()
    sys.path.insert(0, str(given.calculon))
    rows = yaml.load(given.runs.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    ours, theirs, refused = [], [], 0
    for item in predict(rows)[0]:
        measured = item.run.step_time_s
        system = SYSTEMS.get(item.run.gpu)
        if measured is None or system is None or not describable(item.run.job):
            continue
        try:
            seconds = calculon_seconds(item.run.job, given.calculon / "systems" / f"{system}.json")
        except Exception as error:  # its own checks are assertions and errors of several kinds
            refused += 1
            print(f"  refused: {item.run.id}: {type(error).__name__}: {error}")
            continue
        ours.append(item.step_time_s / measured - 1)
        theirs.append(seconds / measured - 1)
        print(f"  {item.run.id:44} parctl {ours[-1]:+6.1%}  calculon {theirs[-1]:+6.1%}")
    print(f"{len(ours)} rows accepted, {refused} refused by Calculon")
    for name, errors in (("parctl", ours), ("calculon", theirs)):
        print(f"  {name:9} {spread(errors)}")


def spread(errors: Sequence[float]) -> str:
    sizes = sorted(map(abs, errors))
    return (
        f"bias {median(errors):+.1%}, median {median(sizes):.1%}, 90th percentile "
        f"{quantile(sizes, 0.9):.1%}, worst {sizes[-1]:.1%}"
    )


def describable(job: Job) -> bool:
    """Whether Calculon has words for a job."""
    model, degrees = job.model, job.degrees
    return (
        model.moe is None
        and model.mla is None
        and model.activation == "gelu"
        and model.num_kv_heads == model.num_heads
        and degrees.cp == 1
        and job.zero_stage <= 1
        and job.trained_share == 1.0
        and model.num_layers % (degrees.pp * job.virtual_stages) == 0
        and job.windows == (None,)
    )


def calculon_seconds(job: Job, system_file: Path) -> float:
    """Its prediction of a step."""
    llm: Any = importlib.import_module("calculon.llm.llm").Llm
    system: Any = importlib.import_module("calculon.system").System
    model, degrees = job.model, job.degrees
    data = degrees.num_data_ranks
    application = {
        "hidden": model.dim,
        "feedforward": model.ffn_dim,
        "seq_size": job.seq_len,
        "attn_heads": model.num_heads,
        "attn_size": model.head_dim,
        "num_blocks": model.num_layers,
    }
    recompute = "none"
    if job.repeated.products:
        recompute = "full"
    elif job.repeated.attention or job.attention != "plain":  # fused attention never keeps scores
        recompute = "attn_only"
    execution = {
        "num_procs": degrees.tp * degrees.pp * data,
        "tensor_par": degrees.tp,
        "pipeline_par": degrees.pp,
        "data_par": data,
        "tensor_par_net": 0,
        "pipeline_par_net": 1,
        "data_par_net": 1,
        "batch_size": job.micro_batch * job.num_micro_batches * data,
        "microbatch_size": job.micro_batch,
        "datatype": "float8" if job.arithmetic == "fp8" else "float16",
        "fused_activation": True,
        "attention_type": "multihead",
        "activation_recompute": recompute,
        "pipeline_interleaving": job.virtual_stages if degrees.pp > 1 else 1,
        "optimizer_sharding": job.zero_stage > 0 and data > 1,
        "tensor_par_comm_type": "rs_ag" if job.sp and degrees.tp > 1 else "ar",
        "tensor_par_overlap": "ring" if job.tensor_overlap and degrees.tp > 1 else "none",
        "seq_par_ag_redo": False,
        "data_par_overlap": job.data_overlap and data > 1,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }
    simulated = llm(llm.Application(application), logging.getLogger("calculon"))
    machine = system(json.loads(system_file.read_text()))
    simulated.compile(machine, llm.Execution.from_json(execution))
    simulated.run(machine)
    return float(simulated.get_total_time())


if __name__ == "__main__":
    main()
