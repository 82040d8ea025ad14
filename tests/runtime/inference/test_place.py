"""Messages of the leader, and of the rank that samples, arrive whole; and there is one per step."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.runtime.exchanges import ExchangeCounter
from tests.runtime.harness import run_ranks
from tests.runtime.inference.forms import FORMS, Form
from tests.runtime.plans import LLAMA

from parctl.planner.stages import split_layers
from parctl.runtime.inference.assemble import assemble
from parctl.runtime.inference.config import EngineConfig
from parctl.runtime.inference.place import Place, find_place, hand_to_leader, tell
from parctl.runtime.inference.request import Request, Sampling
from parctl.runtime.inference.sampling import BatchSampler
from parctl.runtime.parallel.mesh import RankMesh, build_mesh, join_world

SMALL, LARGE = {"a": (1, 2)}, {"b": "x" * 100_000}


def join(form: Form) -> RankMesh:
    join_world(form.layout, torch.device("cpu"))
    return build_mesh(form.layout, torch.device("cpu"), wrap_alone=False)


def exchange(form: Form) -> tuple[list[Any], Any, bool, bool]:
    place = find_place(join(form))
    heard = [tell(place.replica, one if place.is_leader else None) for one in (SMALL, LARGE, SMALL)]
    handed = None
    if place.is_leader != place.is_sampler and (place.is_leader or place.is_sampler):
        handed = hand_to_leader(place, LARGE if place.is_sampler else None)
    dist.barrier()
    return heard, handed, place.is_leader, place.is_sampler


def test_messages_of_any_size_reach_every_rank_of_the_replica(tmp_path: Path) -> None:
    results = run_ranks(exchange, 4, tmp_path, Form(axes={"pp": 2, "tp": 2}))
    assert [heard for heard, *_ in results] == [[SMALL, LARGE, SMALL]] * 4
    assert [handed for _, handed, *_ in results] == [LARGE, None, None, None]
    # torch's ranks 2 and 3 hold the last stage
    assert [leads for *_, leads, _ in results] == [True, False, False, False]
    assert [samples for *_, samples in results] == [False, False, True, False]


def replicas(form: Form) -> tuple[int, bool, int]:
    mesh = join(form)
    place = find_place(mesh)
    assert place.replica is not None
    said = tell(place.replica, mesh.data_rank if place.is_leader else None)
    dist.barrier()
    return said, place.is_leader, mesh.data_rank


def test_each_replica_has_its_own_leader(tmp_path: Path) -> None:
    results = run_ranks(replicas, 4, tmp_path, Form(axes={"dp": 2, "tp": 2}))
    assert results == [(0, True, 0), (0, False, 0), (1, True, 1), (1, False, 1)]


def test_a_rank_alone_leads_and_samples() -> None:
    place = Place(device=torch.device("cpu"))
    assert place.is_leader and place.is_sampler
    assert tell(place.replica, SMALL) == SMALL


def count_of_one_step(form: Form) -> Counter[str]:
    """What a step of three generating sequences sends from the first rank."""
    mesh = join(form)
    engine = assemble(
        LLAMA,
        EngineConfig(num_blocks=64, block_size=4),
        BatchSampler(),
        source=7,
        dtype=torch.float64,
        mesh=mesh,
        parallelism=form.parallelism,
        stages=split_layers(LLAMA, form.axes.get("pp", 1)),
    )
    if not engine.is_leader:
        engine.follow()
        return Counter()
    for index in range(3):
        prompt = (1, 2, 3, index)
        engine.add(Request(id=str(index), prompt_tokens=prompt, sampling=Sampling(max_tokens=9)))
    for _ in range(4):
        engine.step()
    counter = ExchangeCounter()
    with counter:
        engine.step()
    engine.close()
    return counter.counts


def calls_of(form: str, directory: Path) -> Counter[str]:
    results = run_ranks(count_of_one_step, FORMS[form].world_size, directory, FORMS[form])
    calls: Counter[str] = results[0]
    return calls


def test_a_step_under_tp_is_one_message_and_two_sums_per_layer(tmp_path: Path) -> None:
    # sums: the embedding, and two in each of two layers; the gather is that of the logits
    assert calls_of("tp2", tmp_path) == {"broadcast_": 1, "AR": 5, "allgather_": 1}


def test_a_step_of_a_pipeline_is_one_message_one_stream_and_the_tokens(tmp_path: Path) -> None:
    # received: the length of the tokens' message and the message
    assert calls_of("pp2", tmp_path) == {"broadcast_": 1, "send": 1, "recv_": 2}


def test_a_step_over_cp_is_one_message_and_one_merge_per_layer(tmp_path: Path) -> None:
    assert calls_of("ring2", tmp_path) == {"broadcast_": 1, "AG": 2}
