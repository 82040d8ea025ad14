"""Tasks generate and serve on one rank, from the joined world to its end.

leaders    the first rank of every replica: `generate`, or `serve` behind the front
others     follow their leader
torch's rank 0 also starts the front, and tells the other leaders where it is
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parctl.planner.plan import Plan
from parctl.recipes.inference_spec import InferenceSpec
from parctl.runtime.generate import NothingAnsweredError, generate, join_parts
from parctl.runtime.inference.engine import Engine
from parctl.runtime.parallel.mesh import (
    RankMesh,
    build_mesh,
    choose_device,
    join_world,
    set_timeout,
)
from parctl.runtime.serving.front_process import FrontProcess
from parctl.runtime.serving.leader import lead
from parctl.runtime.serving.leaders import Leaders
from parctl.runtime.serving.link import Link
from parctl.runtime.serving.replica import build_engine
from parctl.runtime.serving.vllm import run_vllm
from parctl.runtime.serving.wire import Hello

VERY_LONG = timedelta(days=30)  # replicas end at different times
LOOPBACK = "127.0.0.1"


def run_inference(plan: Plan, run_dir: Path, stop: Callable[[], bool]) -> bool:
    """Run this rank. Returns False when it was told to stop before it was through."""
    recipe = plan.recipe
    assert recipe.inference is not None
    device = choose_device()
    join_world(plan.layout, device)
    ends = dist.new_group(backend="gloo", timeout=VERY_LONG, group_desc="end")
    if recipe.inference.engine == "vllm":
        if dist.get_rank() == 0:
            run_vllm(plan, stop=stop)
        dist.barrier(group=ends)
        dist.destroy_process_group()
        return False
    mesh = build_mesh(plan.layout, device, wrap_alone=False)
    run = serve if recipe.serve is not None else complete
    finished, nothing = False, None
    try:
        finished = run(plan, mesh, run_dir, stop, ends)
    except NothingAnsweredError as error:
        nothing = error  # the others are through as well, and must not lose their first rank
    dist.barrier(group=ends)
    dist.destroy_process_group()
    if nothing is not None:
        raise nothing
    return finished


def complete(
    plan: Plan,
    mesh: RankMesh,
    run_dir: Path,
    stop: Callable[[], bool],
    ends: dist.ProcessGroup,
) -> bool:
    """`task: generate` on this rank. The first one raises NothingAnsweredError."""
    recipe = plan.recipe
    assert recipe.generate is not None and recipe.inference is not None
    engine = build_engine(plan, mesh)
    leaders = Leaders(mesh)
    shorten_timeout(mesh, recipe.inference)
    first = dist.get_rank() == 0
    if first:
        print(f"generating with {mesh.describe()}, device {mesh.device.type}", flush=True)
    finished = True
    if engine.is_leader:
        finished = generate(
            engine,
            recipe,
            run_dir,
            leaders,
            replica=mesh.data_rank,
            num_replicas=mesh.data_size,
            stop=stop,
            say=lambda text: print(text, flush=True),
        )
    else:
        engine.follow()
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, finished, group=ends)
    if not all(told):
        return False
    if first:
        outcome = join_parts(recipe.generate, run_dir, mesh.data_size)
        print(f"{outcome}; see {outcome.path}", flush=True)
        if outcome.num_answered == 0:
            raise NothingAnsweredError(
                f"no prompt was answered, {outcome.num_failed} failed: {outcome.first_reason}",
                hint=f"{outcome.path} says why, line by line",
            )
    return True


def serve(
    plan: Plan,
    mesh: RankMesh,
    run_dir: Path,
    stop: Callable[[], bool],
    ends: dist.ProcessGroup,
) -> bool:
    """`task: serve` on this rank. It ends by being told to, so it never finishes by itself."""
    recipe = plan.recipe
    assert recipe.inference is not None and recipe.model is not None
    front = address = link = None
    if dist.get_rank() == 0:
        address = LOOPBACK if plan.layout.num_nodes == 1 else own_address()
        front = FrontProcess(recipe, listen=address, num_replicas=mesh.data_size)
    try:
        if front is not None:
            front.refuse_taken_port()
        engine = build_engine(plan, mesh)
        leaders = Leaders(mesh)
        where: list[Any] = [None]
        if front is not None:
            port, url = front.where()
            where = [(address, port, front.token, url)]
        dist.broadcast_object_list(where, src=0, group=ends)
        shorten_timeout(mesh, recipe.inference)
        if not engine.is_leader:
            engine.follow()
            return False
        address, port, token, url = where[0]
        link = Link((address, port), hello_of(engine, plan, mesh, token))
        if front is not None:
            front.wait_ready()
            print(f"serving {recipe.name} at {url} with {mesh.describe()}", flush=True)
        lead(engine, link, leaders, stop=stop)
        return False
    finally:
        if link is not None:  # the front tells whoever waits for us, and ends
            link.close()
        if front is not None:
            front.close()


def hello_of(engine: Engine, plan: Plan, mesh: RankMesh, token: str) -> Hello:
    model, inference = plan.recipe.model, plan.recipe.inference
    assert model is not None and inference is not None
    return Hello(
        token=token,
        replica=mesh.data_rank,
        vocab_size=model.vocab_size,
        max_context=engine.max_context,
        max_sequences=inference.max_sequences,
    )


def own_address() -> str:
    """Return the address of this machine that other nodes reach: that of the route to the store."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing
        return str(probe.getsockname()[0])


def shorten_timeout(mesh: RankMesh, spec: InferenceSpec) -> None:
    """From now on ranks hear from each other every second."""
    set_timeout(mesh, timedelta(seconds=spec.comm_timeout_s))
