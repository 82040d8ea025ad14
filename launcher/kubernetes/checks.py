"""What a plan may not ask of Kubernetes, said before anything is sent."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from parctl.errors import CannotPlaceError, UsageError
from parctl.launcher.kubernetes.leader_worker_set import check_group
from parctl.planner.plan import Plan
from parctl.recipes.kubernetes_spec import KubernetesSpec


def check_plan(plan: Plan, spec: KubernetesSpec, *, keeps_together: bool) -> None:
    """Raise UsageError or CannotPlaceError for what cannot work.

    `keeps_together`: something will see to `topology`.
    """
    _check_even(plan)
    if spec.topology is not None and not keeps_together:
        raise UsageError(
            f"launch.kubernetes.topology = {spec.topology}, and no queue would see to it",
            hint="set `launch.queue` to a LocalQueue of Kueue's, or use `node_selector`",
        )
    if spec.kind == "leaderworkerset":
        check_group(plan, spec)
    if spec.kind == "rayjob" and spec.recovery == "coordinator":
        raise UsageError(
            "recovery = coordinator, and a RayJob has a driver that does a coordinator's work",
            hint="leave `recovery` out, or use `kind: jobset` or `kind: job`",
        )
    _check_checkpoints(plan, spec)
    if spec.min_nodes is not None and spec.kind != "rayjob" and spec.recovery != "coordinator":
        raise UsageError(
            f"launch.kubernetes.min_nodes = {spec.min_nodes}, and recovery is native, which knows "
            "only the whole job",
            hint="set `launch.kubernetes.recovery: coordinator`, or use `kind: rayjob`",
        )
    script = plan.recipe.script
    if script is not None and script.workdir is not None and plan.recipe.launch.workdir is not None:
        raise UsageError(
            "both script.workdir and launch.workdir say where the ranks start",
            hint="launch.workdir is sent along; script.workdir is a folder that pods have already",
        )


def _check_even(plan: Plan) -> None:
    counts: dict[str, int] = {}
    for slot in plan.layout.slots:
        counts[slot.node] = counts.get(slot.node, 0) + 1
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{count} on {node}" for node, count in list(counts.items())[:4])
        raise CannotPlaceError(
            f"the plan puts unequal numbers of ranks on its nodes ({words}), and the pods of a "
            "run are made from one template",
            hint="leave the odd nodes out: `placement: {exclude: [...]}`, or lower a degree",
        )


def _check_checkpoints(plan: Plan, spec: KubernetesSpec) -> None:
    """Ranks of several pods save into one folder, which a pod's own disk is not."""
    checkpoint = plan.recipe.checkpoint
    if checkpoint is None or plan.recipe.task != "train":
        return
    directory = checkpoint.dir
    if directory is None and plan.layout.num_nodes == 1 and not plan.recipe.launch.retries:
        return
    remedy = (
        "mount a volume that all nodes share and save there: `launch.kubernetes.volumes: "
        "{shared: {mount: /mnt/shared, claim: NAME}}`, `checkpoint.dir: /mnt/shared/RUN`"
    )
    if directory is None:
        why = "ranks on several nodes" if plan.layout.num_nodes > 1 else "a restarted pod"
        raise UsageError(
            f"checkpoint.dir is not set, and {why} cannot use a pod's own disk", hint=remedy
        )
    if "://" in directory and not directory.startswith("file://"):
        return
    path = directory.removeprefix("file://")
    shared = [v.mount for v in spec.volumes.values() if v.claim or v.host_path]
    if not _inside(path, shared):
        raise UsageError(
            f"checkpoint.dir = {directory} is on no volume of launch.kubernetes.volumes",
            hint=remedy,
        )


def _inside(path: str, mounts: Sequence[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(mount) for mount in mounts)
