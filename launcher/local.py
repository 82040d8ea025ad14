"""The local back end: runs on this machine, kept in run directories, with no service.

Every call works from the files and from /proc, so any shell sees the same runs, whoever launched
them.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from parctl.errors import BackendError, UnknownRunError, UsageError
from parctl.launcher import early
from parctl.launcher.backend import (
    Diagnosis,
    LogLine,
    Manifests,
    RunRef,
    RunStatus,
    State,
)
from parctl.launcher.guard import GRACE_S, bury, declared_dead, owner_alive
from parctl.launcher.handover import hand_over, tell_it_is_alone
from parctl.launcher.interrupts import interrupt_put_off, uninterrupted
from parctl.launcher.local_manifest import local_document
from parctl.launcher.log_files import follow_logs, read_logs
from parctl.launcher.metrics import last_step, read_metrics
from parctl.launcher.places import runs_root
from parctl.launcher.processes import (
    Process,
    descendants,
    kill_run,
    this_machine,
    this_process,
)
from parctl.launcher.run_directory import (
    Record,
    RunDirectory,
    run_directories,
    write_whole,
)
from parctl.launcher.run_id import check_run_id
from parctl.planner.plan import Plan
from parctl.recipes.spec import Recipe
from parctl.topology.model import Topology

CANCEL_S = 5.0  # from the call of `cancel` until nothing is left, unless it says otherwise
FORCE_S = 1.2  # of that time, what is kept for doing it without the supervisor
POLL_S = 0.05


class LocalBackend:
    cluster: str | None = None  # this machine

    def __init__(self) -> None:
        self._supervisor: early.WaitingSupervisor | None = None  # one that awaits its run

    @contextmanager
    def standby(self) -> Iterator[None]:
        """Have a supervisor before the recipe is read, for whichever run is then submitted.

        It has torch imported meanwhile. Nothing stays of it when none is submitted inside the
        `with`.
        """
        with suppress(OSError):  # `submit` tries again
            self._supervisor = early.take()
        try:
            yield
        finally:
            if self._supervisor is not None:
                self._supervisor.leave_alone()
                self._supervisor = None

    @contextmanager
    def head_start(self, recipe: Recipe, run_id: str) -> Iterator[None]:
        """Go on with what `standby` began, unless the recipe has ranks of another kind."""
        self._drop_fork_server(recipe)
        yield

    def _drop_fork_server(self, recipe: Recipe) -> None:
        """Torch is imported in the environment of the ranks, or for nothing."""
        launch = recipe.launch
        if self._supervisor and (recipe.script is not None or launch.env or launch.secrets):
            tell_it_is_alone(self._supervisor)

    def render(self, plan: Plan, run_id: str, topology: Topology | None = None) -> Manifests:
        document = local_document(plan, check_run_id(run_id))
        return Manifests(run_id=run_id, backend="local", plan=plan, documents=(document,))

    def submit(self, manifests: Manifests) -> RunRef:
        from parctl.launcher.secrets import check_secrets
        from parctl.runtime.data.check import refuse_bad_data
        from parctl.runtime.huggingface.check import refuse_bad_weights

        recipe = manifests.plan.recipe
        check_secrets(recipe.launch.secrets)
        if recipe.data is not None and recipe.model is not None:
            refuse_bad_data(recipe.data, recipe.model)
        if recipe.model is not None and recipe.checkpoint and recipe.checkpoint.init_from:
            refuse_bad_weights(Path(recipe.checkpoint.init_from), recipe.model)
        if recipe.inference is not None:
            from parctl.runtime.serving.check import refuse_bad_inference

            refuse_bad_inference(recipe)
        if recipe.script is None and find_spec("torch") is None:
            raise UsageError("torch is not installed", hint="`pip install 'parctl[torch]'`")
        run = RunDirectory(runs_root() / manifests.run_id)
        created = False
        try:
            with interrupt_put_off():  # so that `created` is true of every run that we made
                created = _create(run, manifests)
            if created:
                self._drop_fork_server(recipe)
                supervisor, self._supervisor = self._supervisor or early.WaitingSupervisor(), None
                hand_over(run, supervisor)
        except KeyboardInterrupt:
            if created:  # nobody has been told that there is such a run
                with uninterrupted():
                    self.cancel(run.run_id)
            raise
        return RunRef(run_id=run.run_id, backend="local", created=created)

    def status(self, run_id: str) -> RunStatus:
        return _status(_find(run_id))

    def logs(
        self, run_id: str, *, rank: int | None, since: float | None, tail: int | None, follow: bool
    ) -> Iterator[LogLine]:
        run = _find(run_id)
        num_ranks = len(json.loads(run.plan.read_text(encoding="utf-8"))["layout"]["ranks"])
        if rank is not None and not 0 <= rank < num_ranks:
            raise UsageError(
                f"run `{run_id}` has no rank {rank}", hint=f"its ranks are 0 to {num_ranks - 1}"
            )
        if not follow:
            return read_logs(run, rank=rank, since=since, tail=tail)
        return follow_logs(
            run, rank=rank, since=since, tail=tail, ended=lambda: _record(run).state.ended
        )

    def cancel(self, run_id: str, *, grace_s: float | None = None) -> None:
        """Stop a run; after `grace_s` (5 s) no process of it is left. An ended one stays as it is.

        Without `grace_s` ranks may save for `launch.stop_grace_s`, within the 5 s.
        """
        run = _find(run_id)
        total_s = CANCEL_S if grace_s is None else grace_s
        deadline = time.monotonic() + total_s - min(FORCE_S, 0.25 * total_s)
        if not _record(run).state.ended:
            _leave_word(run, grace_s)
        asked = False
        leaving: list[Process] = []
        while not (record := _record(run)).state.ended and time.monotonic() < deadline:
            # a launcher is no supervisor: wait until the run has been taken over
            if record.role == "supervisor" and not asked:
                leaving = [record.owner, *descendants(record.owner.pid)]
                asked = record.owner.signal(signal.SIGTERM)
            time.sleep(POLL_S)
        if not record.state.ended:
            _cancel_by_force(run)
        kill_run(run.run_id, run.path, grace_s=0.0)
        _see_off(leaving, deadline)

    def delete(self, run_id: str) -> None:
        """Remove an ended run with its logs and the checkpoints inside its directory."""
        run = _find(run_id)
        record = _record(run)
        if not record.state.ended:
            raise UsageError(
                f"run `{run_id}` is {record.state}", hint=f"`parctl cancel {run_id}` first"
            )
        kill_run(run.run_id, run.path, grace_s=0.0)
        # out of sight at once, then file by file
        hidden = run.path.with_name(f".deleted-{run.run_id}-{os.getpid()}")
        os.rename(run.path, hidden)
        shutil.rmtree(hidden)

    def list(self) -> Sequence[RunStatus]:
        """Every run, newest first. One whose state cannot be read is Unknown and hides no other."""
        runs = []
        for run in run_directories():
            try:
                runs.append(_status(run))
            except FileNotFoundError:  # deleted meanwhile
                continue
            except BackendError:  # `status` says why
                runs.append(_unknown(run))
        return sorted(runs, key=lambda status: (-status.created_unix, status.run_id))

    def why(self, run_id: str) -> Diagnosis:
        from parctl.launcher.diagnosis import diagnose

        run = _find(run_id)
        return diagnose(run, _status(run))

    def metrics(self, run_id: str) -> Sequence[Mapping[str, Any]]:
        return read_metrics(_find(run_id).metrics)


def _find(run_id: str) -> RunDirectory:
    run = RunDirectory(runs_root() / run_id)
    if "/" in run_id or not run.state.exists():
        raise UnknownRunError(f"there is no run `{run_id}`", hint="`parctl list` shows the runs")
    return run


def _record(run: RunDirectory) -> Record:
    """Return the state as it truly is: a run whose owner has died is ended here and now."""
    record = run.read()
    if record.state.ended or owner_alive(record):
        return record
    try:
        return bury(run, grace_s=GRACE_S, wait=False)
    except FileNotFoundError:  # it was deleted
        raise
    except OSError:  # somebody else is at it, it is another user's, or the disk is full
        return declared_dead(record)


def _status(run: RunDirectory) -> RunStatus:
    record = _record(run)
    return RunStatus(
        run_id=record.run_id,
        name=record.name,
        backend="local",
        state=record.state,
        plan_hash=record.plan_hash,
        created_unix=record.created_unix,
        ended_unix=record.ended_unix,
        restarts=record.restarts,
        step=last_step(run.metrics),
        steps=record.steps,
        verdict=record.verdict,
        ranks=record.ranks,
        where=str(run.path),
    )


def _unknown(run: RunDirectory) -> RunStatus:
    return RunStatus(
        run_id=run.run_id,
        name="",
        backend="local",
        state=State.UNKNOWN,
        plan_hash="",
        created_unix=run.path.stat().st_mtime,
        ended_unix=None,
        restarts=0,
        step=None,
        steps=None,
        verdict=None,
        ranks=(),
        where=str(run.path),
    )


def _create(run: RunDirectory, manifests: Manifests) -> bool:
    """Make the run directory, whole or not at all. False: the same run is already there."""
    try:
        return _make(run, manifests)
    except OSError as error:
        raise BackendError(
            f"cannot write the run directory `{run.path}`: {error.strerror or error}",
            hint="XDG_STATE_HOME says where runs are kept",
        ) from error


def _make(run: RunDirectory, manifests: Manifests) -> bool:
    plan = manifests.plan
    run.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = RunDirectory(Path(mkdtemp(prefix=f".new-{run.run_id}-", dir=run.path.parent)))
    try:
        (beside.path / "logs").mkdir()
        beside.plan.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
        beside.manifest.write_text(manifest_yaml(manifests), encoding="utf-8")
        beside.write(_first_record(run.run_id, plan))
        os.rename(beside.path, run.path)
    except OSError:
        shutil.rmtree(beside.path, ignore_errors=True)
        if not run.state.exists():
            raise
        known = run.read().plan_hash
        if known != plan.hash:
            raise UsageError(
                f"run `{run.run_id}` exists already with another plan",
                hint="choose another `--run-id`, or delete that run",
            ) from None
        return False
    return True


def manifest_yaml(manifests: Manifests) -> str:
    import yaml

    (document,) = manifests.documents
    text: str = yaml.safe_dump(document, sort_keys=False, width=100)
    return text


def _first_record(run_id: str, plan: Plan) -> Record:
    recipe = plan.recipe
    return Record(
        run_id=run_id,
        name=recipe.name,
        state=State.PENDING,
        plan_hash=plan.hash,
        created_unix=time.time(),
        ended_unix=None,
        attempt=0,
        restarts=0,
        steps=recipe.train.steps if recipe.train else None,
        role="launcher",
        owner=this_process(),
        machine=this_machine(),
        verdict=None,
        ranks=(),
        processes=(),
    )


def _leave_word(run: RunDirectory, grace_s: float | None) -> None:
    """Tell the supervisor how long ranks may save, in place of what an earlier call told it."""
    if grace_s is None:
        run.cancel.unlink(missing_ok=True)
        return
    try:
        write_whole(run.cancel, json.dumps({"grace_s": grace_s}))
    except OSError as error:
        raise BackendError(
            f"cannot write `{run.cancel}`: {error.strerror}",
            hint="without `--grace` nothing has to be written",
        ) from error


def _see_off(leaving: Sequence[Process], deadline: float) -> None:
    """Wait until these, who have nothing left to do, are gone; kill who is not in time."""
    while left := [member for member in leaving if member.alive]:
        if time.monotonic() >= deadline:
            for member in left:
                member.signal(signal.SIGKILL)
            return
        time.sleep(0.01)


def _cancel_by_force(run: RunDirectory) -> None:
    """End a run whose supervisor does not answer. The lock keeps the guard out of it."""
    with run.lock():
        record = run.read()
        if record.state.ended:
            return
        if record.role == "supervisor":
            # known only while it lives: processes that cleared their environment
            below = descendants(record.owner.pid) if record.owner.alive else []
            for member in (record.owner, *below):
                member.signal(signal.SIGKILL)
        kill_run(run.run_id, run.path, grace_s=0.0)
        try:
            run.write(replace(record, state=State.CANCELLED, ended_unix=time.time()))
        except OSError as error:
            raise BackendError(
                f"run `{run.run_id}` was stopped, but that cannot be written: {error.strerror}",
                hint=f"free space for `{run.path}`, or `parctl delete {run.run_id}`",
            ) from error
