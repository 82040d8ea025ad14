"""What the watchdog of NCCL leaves is read, and tells who did not arrive, as own records do."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runtime.harness import run_ranks
from tests.runtime.plans import layout, plan

from parctl.launcher.attempt import Outcome
from parctl.launcher.flight_records import Group, read_dump, read_records
from parctl.launcher.hang import hang_of
from parctl.launcher.verdict import Kind, RankEnd, classify
from parctl.planner.plan import Plan

WATCHDOG = (
    "[rank0]:[E ProcessGroupNCCL.cpp:688] [Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=3000) ran for 3001 milliseconds\n"
)
FRAMES = [
    {"filename": "/site-packages/torch/distributed/x.py", "line": 12, "name": "all_reduce"},
    {"filename": "/job/train.py", "line": 34, "name": "step"},
]


def entry(group: tuple[str, str], number: int, **changes: Any) -> dict[str, Any]:
    """One collective, as torch 2.13 records it."""
    return {
        "process_group": group,
        "collective_seq_id": number,
        "profiling_name": "nccl:all_reduce",
        "time_created_ns": number,
        "state": "completed",
        "retired": True,
        "is_p2p": False,
        "frames": FRAMES,
    } | changes


def nccl_dump(*entries: dict[str, Any]) -> bytes:
    config = {
        "0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"},
        "1": {"name": "1", "desc": "mesh_dp", "ranks": "[0, 1]"},
    }
    return pickle.dumps({"version": "2.10", "pg_config": config, "entries": list(entries)})


def test_groups_counts_and_the_place_of_the_wait_are_read(tmp_path: Path) -> None:
    """Position 0 of the layout is rank 1. A send between two ranks is no collective."""
    (tmp_path / "nccl-0").write_bytes(
        nccl_dump(
            entry(("1", "mesh_dp"), 6),
            entry(("0", "default_pg"), 2),
            entry(("1", "mesh_dp"), 7, state="started", retired=False),
            entry(("1", "mesh_dp"), 9, is_p2p=True),
        )
    )
    records = read_records(tmp_path, layout({"dp": 2}, ranks=(1, 0)))
    assert list(records) == [1]
    assert records[1].groups == (
        Group(axis="all ranks", ranks=(1, 0), count=2, last="all_reduce"),
        Group(axis="dp", ranks=(1, 0), count=7, last="all_reduce"),
    )
    assert records[1].place == "/job/train.py:34 in step"
    assert records[1].trains


def dump_of_gloo(made: Plan, path: Path) -> None:
    """Write torch's own bytes. Gloo's recorder has no table of groups."""
    os.environ["TORCH_FR_BUFFER_SIZE"] = "100"
    import torch
    import torch.distributed as dist
    from torch._C import _distributed_c10d

    from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world

    join_world(made.layout, choose_device())
    mesh = build_mesh(made.layout, choose_device(), wrap_alone=False)
    tp = mesh.axis("tp")
    assert tp is not None
    for _ in range(3):
        dist.all_reduce(torch.ones(2), group=tp.get_group())
    if dist.get_rank() == 2:
        dump = getattr(_distributed_c10d, "_dump_fr_trace")  # noqa: B009 - torch's stubs lack it
        path.write_bytes(dump(True, True, False))
    dist.barrier()


def test_bytes_that_torch_wrote_are_read_without_torch(tmp_path: Path) -> None:
    made = plan("text", {"dp": 2, "tp": 2})
    run_ranks(dump_of_gloo, 4, tmp_path / "ranks", made, tmp_path / "dump")
    found = read_dump(tmp_path / "dump", made.layout, 2)
    assert found is not None
    assert found.groups[-1] == Group(axis="tp", ranks=(2, 3), count=3, last="all_reduce")
    probe = "import parctl.launcher.flight_records, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


class Command:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch called",)


def test_nothing_in_a_dump_is_called_and_what_is_broken_is_left_out(tmp_path: Path) -> None:
    made = layout({"dp": 2})
    whole = nccl_dump(entry(("1", "mesh_dp"), 6))
    for content in (
        pickle.dumps({"entries": [Command()]}),
        whole[:40],
        b"",
        b"text",
        b"\x80\x04N.",
    ):
        (tmp_path / "nccl-0").write_bytes(content)
        assert read_records(tmp_path, made) == {}
    assert not Path("called").exists()


def test_the_rank_that_the_watchdogs_waited_for_is_named(tmp_path: Path) -> None:
    """Rank 0 was ended by NCCL's watchdog; rank 1 read data and answered when it was asked."""
    waiting = entry(("1", "mesh_dp"), 7, state="started", retired=False)
    (tmp_path / "nccl-0").write_bytes(nccl_dump(entry(("1", "mesh_dp"), 6), waiting))
    groups = [{"axis": "dp", "ranks": [0, 1], "count": 6, "last": "all_reduce"}]
    record = {"stack": ["/data/mount.py:5 in read"], "groups": groups}
    (tmp_path / "flight-1.json").write_text(json.dumps(record))
    log = tmp_path / "rank-0.log"
    log.write_text(WATCHDOG)
    end = RankEnd(
        rank=0,
        code=-signal.SIGABRT,
        stopped=False,
        time_unix=1.0,
        log=log,
        error_file=tmp_path / "none",
    )
    failure = classify(end)
    assert failure.kind is Kind.PEER_GONE
    outcome = Outcome(
        failures=(failure,),
        silent=(1,),
        halted=(),
        complaint=None,
        cancelled=False,
        started_unix=0.0,
        oom_kills=0,
    )
    found = hang_of(outcome, layout({"dp": 2}), tmp_path)
    assert found is not None
    assert (found.rank, found.axis, found.operation) == (1, "dp", "all_reduce")
    assert (found.waiting, found.doing) == ((0,), "it is in /data/mount.py:5 in read")
