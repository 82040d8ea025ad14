"""Ranks find the store as soon as RANK 0 serves it, whoever comes first."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from threading import Timer

import pytest
import torch.distributed as dist
from tests.runtime.harness import run_ranks

from parctl.launcher.port import hold_port
from parctl.runtime import rendezvous
from parctl.runtime.rendezvous import open_store, wait_for_listener

PATIENCE = timedelta(seconds=30)


def meet(late: int) -> str:
    """Each rank's word, passed on by the store. `late` comes after all others."""
    rank = int(os.environ["RANK"])
    if rank == late:
        time.sleep(0.3)
    store = open_store(rank, 3, PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    words: list[str | None] = [None] * 3
    dist.all_gather_object(words, f"from {rank}")
    dist.destroy_process_group()
    return " ".join(word or "?" for word in words)


@pytest.mark.parametrize("late", [0, 1])
def test_all_ranks_meet_whoever_comes_last(late: int, tmp_path: Path) -> None:
    assert run_ranks(meet, 3, tmp_path, late) == ["from 0 from 1 from 2"] * 3


def test_a_rank_waits_until_the_port_listens() -> None:
    with hold_port("127.0.0.1") as held, socket.socket() as server:
        port = held.getsockname()[1]
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        began = time.monotonic()
        listening = Timer(0.2, server.listen)
        listening.start()
        wait_for_listener("127.0.0.1", port, PATIENCE)
        assert time.monotonic() - began >= 0.2
        listening.join()


def test_a_rank_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    with hold_port("127.0.0.1") as held:
        wait_for_listener("127.0.0.1", held.getsockname()[1], timedelta(seconds=0.2))
    assert rests and max(rests) <= rendezvous.LONGEST_REST_S
    assert rests[5] > rests[0]


def test_what_is_wrong_beside_a_refusal_is_for_torch_to_say() -> None:
    began = time.monotonic()
    wait_for_listener("no-such-host.invalid", 1, PATIENCE)
    assert time.monotonic() - began < PATIENCE.total_seconds() / 2
