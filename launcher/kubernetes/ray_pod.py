"""What the container of a Ray pod runs: `python3 -P -m parctl.launcher.kubernetes.ray_pod`.

Puts the plan where the driver and the agents look for it, starts Ray as KubeRay would have it, and
stays: a pod that is told to end lets the ranks save before it takes Ray from them, and the head
prints how the run is doing (`parctl.launcher.kubernetes.ray_voice`). Standard library and parctl's
own modules only.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.leader import StopRequest
from parctl.launcher.kubernetes.payload import read_payload
from parctl.launcher.kubernetes.pod_files import (
    PLAN_FILE,
    plan_folder,
    read_plan,
    run_folder,
    unpacked_workdir,
)
from parctl.launcher.kubernetes.ray_voice import Voice
from parctl.launcher.kubernetes.rayjob import RUN_FILE
from parctl.launcher.processes import processes_with
from parctl.launcher.ray.packages import RUN_FOLDER
from parctl.launcher.ray.run_files import log_name
from parctl.launcher.run_directory import RunDirectory
from parctl.topology.sources.ray import NODE_LABEL

COMMAND = "KUBERAY_GEN_RAY_START_CMD"  # set by KubeRay, for containers that start Ray themselves
SESSION = Path("/tmp/ray/session_latest")
TICK_S = 0.25
SLACK_S = 5.0  # after the ranks have had their `stop_grace_s`
RAY_LEAVES_S = 5.0


def main() -> int:
    plan, run_id = read_plan(), os.environ["PARCTL_RUN_ID"]
    stop = StopRequest()
    unpacked_workdir()
    words = run_folder() / "ray-start.log"
    command = os.environ[COMMAND]
    with words.open("wb") as output:
        ray = subprocess.Popen(
            ["/bin/sh", "-c", shell_line(command, os.environ["PARCTL_NODE"])],
            env=environment(lay_out_files(run_folder())),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    is_head = "--head" in command.split()
    voice = Voice(run_id, SESSION / "logs") if is_head else None
    code = attend(
        ray,
        stop,
        grace_s=plan.recipe.launch.stop_grace_s + SLACK_S,
        tick=voice.tick if voice else lambda: None,
        told=voice.stop_job if voice else partial(note_leaving, run_id),
        busy=lambda: voice.runs if voice else bool(processes_with(marks(run_id))),
    )
    if code and not stop.asked:
        print(words.read_text(encoding="utf-8", errors="replace"), flush=True)
    return names.SAVED if stop.asked else code


def note_leaving(run_id: str) -> None:
    """Have the node process tell the driver, which alone can have the ranks of all nodes save."""
    run = RunDirectory(SESSION / "logs" / log_name(run_id))
    with suppress(OSError):  # without a folder there is no rank
        run.leaving.touch()


def marks(run_id: str) -> dict[str, str]:
    """What ranks have in their environment, and Ray's own processes have not."""
    return {"TORCHELASTIC_RUN_ID": run_id}


def shell_line(command: str, node: str) -> str:
    """Ray's own command, with the node's name as a label.

    >>> shell_line("ray start --head  --block ", "gpu-1")
    'ulimit -n 65536 2>/dev/null; exec ray start --head --block --labels=parctl.dev/node=gpu-1'
    """
    words = " ".join(command.split())
    return f"ulimit -n 65536 2>/dev/null; exec {words} --labels={NODE_LABEL}={shlex.quote(node)}"


def lay_out_files(folder: Path) -> Path:
    """Put the plan and the driver's settings below `folder` as a package of Ray has them."""
    target = folder / "package" / RUN_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for name in (PLAN_FILE, RUN_FILE):
        content = read_payload(plan_folder(), name)
        assert content is not None, name
        (target / name).write_bytes(content)
    return target.parent


def environment(package: Path) -> dict[str, str]:
    """Of Ray, and so of the driver and the agents: ours is not theirs to be counted by."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARCTL_")}
    path = os.environ.get("PYTHONPATH")
    kept["PYTHONPATH"] = f"{package}:{path}" if path else str(package)
    return kept


def attend(
    ray: subprocess.Popen[bytes],
    stop: StopRequest,
    *,
    grace_s: float,
    tick: Callable[[], None],
    told: Callable[[], None],
    busy: Callable[[], bool],
) -> int:
    """Wait for Ray's end and return its code; once told to stop, end it when nothing runs."""
    deadline: float | None = None
    ended = False
    while (code := reap(ray)) is None:
        tick()
        now = time.monotonic()
        if stop.asked and deadline is None:
            deadline = now + grace_s
            told()
        if deadline is not None and (now > deadline or not busy()):
            if not ended:
                ended, deadline = True, now + RAY_LEAVES_S
                ray.terminate()
            elif now > deadline:
                ray.kill()
        time.sleep(TICK_S)
    tick()
    return code


def reap(ray: subprocess.Popen[bytes]) -> int | None:
    """Bury whatever has ended: the first process of a container inherits all orphans."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ray.returncode
        if pid == 0:
            return ray.returncode
        if pid == ray.pid:
            ray.returncode = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
