"""One rank, from its environment to its exit code. `run_rank` is what every back end starts.

Exit codes: 0 finished, 143 saved on SIGTERM and left, 75 the fault was another rank's or the
network's and a retry may help, 1 otherwise. A failure also writes torchelastic's error file, from
which the launcher makes its verdict.
"""

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from parctl.errors import ParctlError
from parctl.planner.plan import Plan, plan_from_json
from parctl.runtime.checkpoint.checkpoints import take_directory
from parctl.runtime.execution import dynamo
from parctl.runtime.flight_record import FlightRecord, remember_collectives
from parctl.runtime.parallel.data_parallel import COMPUTE_TYPES
from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
from parctl.runtime.trainer import Outcome, train
from parctl.runtime.training import directory_of, prepare
from parctl.topology.layout import Layout

FINISHED, FAILED, RETRY, LEFT = 0, 1, 75, 143
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "NCCL")


class TermSignal:
    """Remembers SIGTERM.

    The loop asks after every step, so that all ranks leave at the same one.
    """

    def __init__(self) -> None:
        self._received = False
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def __call__(self) -> bool:
        return self._received


def run_rank(plan_path: Path, run_dir: Path) -> int:
    """Run the rank that the environment describes. Returns its exit code; never raises."""
    stop = TermSignal()
    dynamo.put_off()
    # A fork inherits torch's thread pool without its threads. The first call after it makes a new
    # one, and must not race with autograd's threads.
    torch.set_num_threads(torch.get_num_threads())
    record = None
    try:
        plan = plan_from_json(json.loads(plan_path.read_text()))
        record = start_record(plan.layout)
        outcome = run_plan(plan, run_dir, stop)
    except BaseException as error:
        if record is not None and is_foreign(error):
            with suppress(Exception):  # the failure itself must be told in any case
                record.write(error)
        for tell in (print_failure, write_failure):
            with suppress(Exception):  # without room on a disk, or file descriptors
                tell(error)
        return RETRY if is_foreign(error) else FAILED
    finally:
        if record is not None:
            record.close()
    return LEFT if outcome is Outcome.STOPPED else FINISHED


def start_record(layout: Layout) -> FlightRecord | None:
    """Keep a record of collectives beside the error file, where the launcher asked for one."""
    errors = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not errors:
        return None
    path = Path(errors).with_name(f"flight-{os.environ['RANK']}.json")
    remember_collectives(path)
    return FlightRecord(path, layout)


def run_plan(plan: Plan, run_dir: Path, stop: TermSignal) -> Outcome:
    """Join the other ranks, do the task, and leave in order."""
    if plan.recipe.inference is not None:
        from parctl.runtime.serving.task import run_inference  # training needs none of it

        finished = run_inference(plan, run_dir, stop)
        return Outcome.FINISHED if finished else Outcome.STOPPED
    assert plan.recipe.train and plan.recipe.checkpoint
    device = choose_device()
    join_world(plan.layout, device)
    mesh = build_mesh(plan.layout, device, wrap_alone=plan.recipe.train.precision in COMPUTE_TYPES)
    run = os.environ["PARCTL_RUN_ID"]
    directory = directory_of(plan.recipe.checkpoint, run_dir)
    held = take_directory(directory, plan.layout, run=run)
    training = prepare(
        plan,
        mesh,
        run_dir,
        run=run,
        attempt=int(os.environ["PARCTL_ATTEMPT"]),
        leader=os.environ["LOCAL_RANK"] == "0",
    )
    training.reporter.say(f"training {plan.recipe.name} on {mesh.describe()}, device {device.type}")
    outcome = train(training, stop=stop)
    training.reporter.close()
    dist.barrier()
    dist.destroy_process_group()
    if held is not None:
        held.close()
    return outcome


def is_foreign(error: BaseException) -> bool:
    """Whether the error only says that another rank or the network is gone."""
    if isinstance(error, ParctlError):
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in PEER_LOST)
    )


def print_failure(error: BaseException) -> None:
    if isinstance(error, ParctlError):
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stderr.flush()


def write_failure(error: BaseException) -> None:
    """Write it where torchelastic's programs write theirs."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    message = {
        "message": f"{type(error).__name__}: {error}",
        "extraInfo": {
            "py_callstack": "".join(traceback.format_exception(error)),
            "timestamp": str(int(time.time())),
        },
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"message": message}))
