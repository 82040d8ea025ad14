"""Parallel forms of the engine, and what they make of requests, on forked ranks."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.runtime.plans import layout, parallelism

from parctl.planner.stages import split_layers
from parctl.recipes.hf_config import read_hf_config
from parctl.recipes.models import complete_model
from parctl.recipes.spec import ModelSpec, ParallelismSpec
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.engine import Engine, EngineStats
from parctl.runtime.inference.request import Emitted, Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.parallel.mesh import RankMesh, build_mesh, join_world
from parctl.topology.layout import Layout
from parctl.topology.placement.experts import expert_axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    axes: Mapping[str, int] = field(default_factory=dict)  # outermost first
    sp: bool = False
    ep: int = 1
    spec: Mapping[str, Any] = field(default_factory=dict)  # other fields of the parallelism
    ranks: tuple[int, ...] | None = None  # a permutation

    @property
    def world_size(self) -> int:
        return prod(self.axes.values())

    @property
    def parallelism(self) -> ParallelismSpec:
        return replace(parallelism(self.axes, sp=self.sp), ep=self.ep, **self.spec)

    @property
    def layout(self) -> Layout:
        experts = expert_axes(self.axes, self.ep, 1)
        return replace(layout(self.axes or {"dp": 1}, self.ranks), expert_axes=experts)


ULYSSES = {"cp_kind": "ulysses"}
FORMS = {
    "one rank": Form(),
    "tp2": Form(axes={"tp": 2}),
    "tp4": Form(axes={"tp": 4}),
    "tp2+sp": Form(axes={"tp": 2}, sp=True),
    "pp2": Form(axes={"pp": 2}),
    "tp2 x pp2": Form(axes={"pp": 2, "tp": 2}),
    "tp2+sp x pp2": Form(axes={"pp": 2, "tp": 2}, sp=True),
    "ring2": Form(axes={"cp": 2}),
    "ring4": Form(axes={"cp": 4}),
    "ulysses2": Form(axes={"cp": 2}, spec=ULYSSES),
    "ulysses4": Form(axes={"cp": 4}, spec=ULYSSES),
    "ring2 x tp2+sp": Form(axes={"cp": 2, "tp": 2}, sp=True),
    "ring2 x pp2": Form(axes={"pp": 2, "cp": 2}),
    "dp2": Form(axes={"dp": 2}),
    "dp2 x tp2": Form(axes={"dp": 2, "tp": 2}),
}
EXPERT_FORMS = {
    "ep2 in tp2": Form(axes={"tp": 2}, ep=2),
    "ep2 in tp2+sp": Form(axes={"tp": 2}, sp=True, ep=2),
    "ep2 in ring2": Form(axes={"cp": 2}, ep=2),
    "dp2 x ep2": Form(axes={"dp": 2}, ep=2),
    "fsdp2 x tp2 x ep4": Form(axes={"fsdp": 2, "tp": 2}, ep=4),
    "dp2 x pp2 x ep2": Form(axes={"pp": 2, "dp": 2}, ep=2),
    "ep2 dealt out in turn": Form(axes={"tp": 2}, ep=2, spec={"expert_placement": "round-robin"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an engine made of requests."""

    tokens: Mapping[tuple[str, int], list[int]]  # by request and sample
    emitted: Sequence[Emitted]
    stats: EngineStats
    busiest: EngineStats  # of all steps, that with the most tokens in memory


def model_of(folder: Path) -> ModelSpec:
    values, faults = read_hf_config(folder)
    assert not faults, faults
    model, faults = complete_model(values, folder.name)
    assert model is not None, faults
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Requests to serve once with each configuration."""

    folder: Path  # of the model
    configs: Mapping[str, EngineConfig]
    requests: Mapping[str, Sequence[Request]]  # by the name of the configuration
    dtype: torch.dtype


def run_engines(
    folder: Path,
    form: Form,
    configs: Mapping[str, EngineConfig],
    requests: Mapping[str, Sequence[Request]],
    dtype: torch.dtype,
) -> dict[str, Made]:
    """Do one job. Returns nothing on ranks that follow."""
    job = Job(folder=folder, configs=configs, requests=requests, dtype=dtype)
    ((made, _),) = run_jobs(form, [job])
    return made


def run_jobs(form: Form, jobs: Sequence[Job]) -> list[tuple[dict[str, Made], float]]:
    """Do jobs one after the other. Returns what was made, and in how many seconds."""
    mesh: RankMesh | None = None
    if form.world_size > 1:
        device = torch.device("cpu")
        join_world(form.layout, device)
        mesh = build_mesh(form.layout, device, wrap_alone=False)
    done = []
    for job in jobs:
        begin = time.monotonic()
        made = do_job(form, job, mesh)
        done.append((made, time.monotonic() - begin))
    if mesh is not None:
        dist.barrier()
        dist.destroy_process_group()
    return done


def do_job(form: Form, job: Job, mesh: RankMesh | None) -> dict[str, Made]:
    model = model_of(job.folder)
    made: dict[str, Made] = {}
    for name, config in job.configs.items():
        engine = assemble(
            model,
            config,
            BatchSampler(),
            source=job.folder,
            dtype=job.dtype,
            mesh=mesh,
            parallelism=form.parallelism,
            stages=split_layers(model, form.axes.get("pp", 1)),
        )
        if engine.is_leader:
            made[name] = serve(engine, own_requests(job.requests[name], mesh))
            engine.close()
        else:
            engine.follow()
    return made


def own_requests(requests: Sequence[Request], mesh: RankMesh | None) -> Sequence[Request]:
    """Deal requests out to replicas, three at a time, so that common beginnings stay together."""
    if mesh is None:
        return requests
    size, rank = mesh.data_size, mesh.data_rank
    return [one for index, one in enumerate(requests) if index // 3 % size == rank]


def serve(engine: Engine, requests: Iterable[Request]) -> Made:
    """Serve requests that come all at once."""
    tokens: dict[tuple[str, int], list[int]] = {}
    everything: list[Emitted] = []
    busiest = engine.stats()
    for request in requests:
        engine.add(request)
    while engine.unfinished():
        for emitted in engine.step():
            everything.append(emitted)
            tokens.setdefault((emitted.request_id, emitted.sample_index), []).append(emitted.token)
        stats = engine.stats()
        assert stats.steps < 20_000, stats
        busiest = max(busiest, stats, key=lambda stats: stats.held_tokens)
    return Made(tokens=tokens, emitted=everything, stats=engine.stats(), busiest=busiest)


def greedy(prompts: Sequence[tuple[int, ...]], counts: Sequence[int]) -> list[Request]:
    return [
        Request(id=str(index), prompt_tokens=prompt, sampling=Sampling(max_tokens=count))
        for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    ]
