"""Exchanges in shared memory: every rank gets what gloo gives it, in any order of arrival."""

import os
import random
import resource
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests.runtime.harness import run_ranks
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parctl.runtime.parallel import collectives, shared_memory

SHAPES = [(1, 4, 3), (2, 8, 5), (1, 4, 1), (3, 40, 700), (2, 4, 2)]


def join(num_ranks: int) -> DeviceMesh:
    dist.init_process_group("gloo")
    return init_device_mesh("cpu", (num_ranks,))


def term(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def exchange_all(num_ranks: int, dtype: torch.dtype, piece_bytes: int) -> None:
    """Compare on this rank, which at times comes late, and at times early."""
    mock.patch.object(shared_memory, "PIECE_BYTES", piece_bytes).start()
    mesh = join(num_ranks)
    group, rank = mesh.get_group(), mesh.get_local_rank()
    shared_memory.connect(mesh)
    assert shared_memory.of(group) is not None
    for turn, shape in enumerate(4 * SHAPES):
        time.sleep(random.random() / 200)
        terms = [term(100 * turn + other, shape, dtype) for other in range(num_ranks)]
        total = torch.stack(terms).to(torch.promote_types(dtype, torch.float32)).sum(0).to(dtype)
        reduced = collectives.all_reduce(terms[rank], group)
        gathered = collectives.all_gather_tokens(terms[rank], group)
        scattered = collectives.reduce_scatter_tokens(terms[rank].mT.contiguous().mT, group)
        torch.testing.assert_close(reduced, total)
        torch.testing.assert_close(scattered, total.chunk(num_ranks, dim=1)[rank])
        assert torch.equal(gathered, torch.cat(terms, dim=1))
        everybodys = [torch.empty_like(reduced) for _ in range(num_ranks)]
        dist.all_gather(everybodys, reduced, group=group)
        assert all(torch.equal(other, reduced) for other in everybodys)
    held = own_memories()
    assert len(held) == 2 * num_ranks and set(held.values()) == {piece_bytes}
    dist.destroy_process_group()


def own_memories() -> dict[int, int]:
    """Inode and bytes of those that this process has open, of all ranks."""
    with os.scandir("/proc/self/fd") as files:
        paths = [file.path for file in files if shared_memory.NAME in os.readlink(file.path)]
    return {os.stat(path).st_ino: os.stat(path).st_size for path in paths}


@pytest.mark.parametrize("piece_bytes", [32 << 20, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_rank_gets_what_gloo_would_give_it(
    num_ranks: int, dtype: torch.dtype, piece_bytes: int, tmp_path: Path
) -> None:
    run_ranks(exchange_all, num_ranks, tmp_path, num_ranks, dtype, piece_bytes)


def sum_all(num_ranks: int, dtype: torch.dtype, piece_bytes: int) -> None:
    """Compare sums in place: of one element, of more than a piece, and with any strides."""
    mock.patch.object(shared_memory, "PIECE_BYTES", piece_bytes).start()
    mesh = join(num_ranks)
    group, rank = mesh.get_group(), mesh.get_local_rank()
    shared_memory.connect(mesh)
    shared = shared_memory.of(group)
    assert shared is not None
    shapes = [(), (1,), (7, 3), (300, 41), (5,), (2, 3, 2)]
    for turn in range(3):
        time.sleep(random.random() / 200)
        given = [
            [term(100 * turn + other, shape, dtype) for shape in shapes]
            for other in range(num_ranks)
        ]
        tensors = [x.clone() for x in given[rank]]
        tensors[2] = tensors[2].T.contiguous().T
        shared.sum_in_place(tensors)
        for index, x in enumerate(tensors):
            terms = torch.stack([own[index] for own in given])
            torch.testing.assert_close(x, terms.sum(0))
            everybodys = [torch.empty(x.shape, dtype=dtype) for _ in range(num_ranks)]
            dist.all_gather(everybodys, x.contiguous(), group=group)
            assert all(torch.equal(other, x) for other in everybodys)
    shared.sum_in_place([])
    dist.destroy_process_group()


@pytest.mark.parametrize("piece_bytes", [32 << 20, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_many_tensors_are_added_up_in_place(
    num_ranks: int, dtype: torch.dtype, piece_bytes: int, tmp_path: Path
) -> None:
    run_ranks(sum_all, num_ranks, tmp_path, num_ranks, dtype, piece_bytes)


def sum_of_integers() -> int:
    mesh = join(3)
    shared_memory.connect(mesh)
    total = collectives.all_reduce(torch.tensor([2**24 + 1]), mesh.get_group())
    dist.destroy_process_group()
    return int(total)


def test_integers_are_added_up_as_they_are(tmp_path: Path) -> None:
    assert run_ranks(sum_of_integers, 3, tmp_path) == 3 * [3 * (2**24 + 1)]


def connect_where(broken: str) -> tuple[bool, list[float], int]:
    """Whether ranks share memory, their sum, and how many files they leave open.

    The last rank can't open the others' memories, or they can't open its own.
    """
    mesh = join(3)
    last = mesh.get_local_rank() == 2
    if broken == "hidden" and last:
        mock.patch.object(os, "readlink", side_effect=PermissionError).start()
    elif broken == "turned off" and last:
        os.environ[shared_memory.SWITCH] = "0"
    elif broken == "none to give" and last:
        mock.patch.object(os, "memfd_create", side_effect=OSError).start()
    elif broken == "a limit on files" and last:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    elif broken == "no room to map" and last:
        mock.patch.object(shared_memory, "mmap", side_effect=OSError).start()
    elif broken == "another node" and last:  # where the pid is that of another process
        mock.patch.object(os, "getpid", return_value=os.getppid()).start()
    elif broken == "another rank's" and last:
        mock.patch.object(os, "pread", return_value=b"?").start()
    shared_memory.connect(mesh)
    shared = shared_memory.of(mesh.get_group()) is not None
    total = collectives.all_reduce(torch.arange(3.0), mesh.get_group())
    mock.patch.stopall()
    dist.destroy_process_group()
    del mesh
    return shared, total.tolist(), len(own_memories())


BROKEN = [
    "",
    "hidden",
    "turned off",
    "none to give",
    "a limit on files",
    "no room to map",
    "another node",
    "another rank's",
]


@pytest.mark.parametrize("broken", BROKEN)
def test_all_ranks_stay_with_gloo_if_one_cannot_open_the_others(
    broken: str, tmp_path: Path
) -> None:
    results: list[Any] = run_ranks(connect_where, 3, tmp_path, broken)
    for result in results:
        assert result == (not broken, [0.0, 3.0, 6.0], 0)
