"""The Kubernetes back end as the command line sees it.

All state is in the cluster: the workload with its annotations, its pods, what their leader reports.
So every command works from any shell that has the kubeconfig.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parctl.errors import UnknownRunError, UsageError
from parctl.launcher.backend import Diagnosis, LogLine, Manifests, RunRef, RunStatus
from parctl.launcher.contexts import Context, resolve_context
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.kubeconfig import ClusterAccess, find_access
from parctl.launcher.kubernetes.leader_worker_set import LEADER_WORKER_SET, LWS_API
from parctl.launcher.kubernetes.logs import follow_logs, leader_log, read_logs
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import (
    RunObjects,
    annotation_of,
    label_of,
    list_workloads,
    read_run,
)
from parctl.launcher.kubernetes.payload import read_workdir
from parctl.launcher.kubernetes.report import Report, last_report, metrics_rows
from parctl.launcher.kubernetes.state import cancelled_unix, end_of, status_of, workload_status
from parctl.launcher.kubernetes.stopping import cancel_run, delete_run
from parctl.launcher.kubernetes.submit import check, submit
from parctl.launcher.kubernetes.watch import RunWatch
from parctl.launcher.metrics import metrics_of
from parctl.launcher.owner import owner_name
from parctl.recipes.kubernetes_spec import DNS_LABEL, KubernetesSpec

if TYPE_CHECKING:
    from parctl.planner.plan import Plan
    from parctl.recipes.spec import Recipe
    from parctl.topology.model import Topology

JOBSET = ("jobset.x-k8s.io/v1alpha2", "JobSet")


class KubernetesBackend:
    def __init__(self) -> None:
        self._context: Context = resolve_context(backend="kubernetes", recipe_backend=None)
        # a context of the kubeconfig is what an address is elsewhere
        self._kube_context = os.environ.get("PARCTL_KUBE_CONTEXT") or self._context.address
        self._access: ClusterAccess | None = None
        self._client: Client | None = None
        self._recipe_namespace: str | None = None
        self._has_jobset = self._has_lws = True  # until a cluster was asked
        self._watches: dict[str, RunWatch] = {}
        self._reads: dict[str, int] = {}

    @property
    def cluster(self) -> str:
        """The source of the topology that a plan for this back end is made of."""
        return f"kubernetes:{self._kube_context}" if self._kube_context else "kubernetes"

    @contextmanager
    def head_start(self, recipe: "Recipe", run_id: str) -> Iterator[None]:
        """Ask the cluster what `kind: auto` is to be, while the plan is being made."""
        spec = recipe.launch.kubernetes or KubernetesSpec()
        self._recipe_namespace = spec.namespace
        if spec.kind == "auto":
            self._has_jobset = self.client.serves(*JOBSET)
            if recipe.task == "serve":
                self._has_lws = self.client.serves(LWS_API, LEADER_WORKER_SET)
        yield

    def render(self, plan: "Plan", run_id: str, topology: "Topology | None" = None) -> Manifests:
        """Pure but for `launch.workdir`, whose files are read here."""
        from parctl.launcher.kubernetes.render import Target, render

        spec = plan.recipe.launch.kubernetes or KubernetesSpec()
        self._recipe_namespace = spec.namespace
        workdir = plan.recipe.launch.workdir
        target = Target(
            namespace=self._namespace() or self._default_namespace(),
            owner=owner_name(),
            queue=self._context.queue,
            image=os.environ.get("PARCTL_IMAGE"),
            has_jobset=self._has_jobset,
            has_lws=self._has_lws,
            topology=topology,
            workdir=None if workdir is None else read_workdir(Path(workdir)),
        )
        return render(plan, run_id, target)

    def submit(self, manifests: Manifests) -> RunRef:
        return submit(self.client, manifests)

    def check(self, manifests: Manifests) -> bool:
        """Have the cluster validate what would be submitted. Raises what it would refuse with.

        False: but for the pods, which who launches may not make.
        """
        return check(self.client, manifests)

    def status(self, run_id: str) -> RunStatus:
        run = self._run(run_id)
        status = status_of(run, self._report(run), server=self.access.server)
        return replace(status, owner=label_of(run.workload, names.OWNER))

    def logs(
        self, run_id: str, *, rank: int | None, since: float | None, tail: int | None, follow: bool
    ) -> Iterator[LogLine]:
        run = self._run(run_id)
        num_ranks = int(annotation_of(run.workload, names.NUM_RANKS) or 1)
        if rank is not None and not 0 <= rank < num_ranks:
            raise UsageError(
                f"run `{run_id}` has no rank {rank}", hint=f"its ranks are 0 to {num_ranks - 1}"
            )
        if not follow:
            return read_logs(self.client, run, rank=rank, since=since, tail=tail)
        watch = self._watch(run.workload)
        return follow_logs(
            self.access,
            watch.objects,
            rank=rank,
            since=since,
            tail=tail,
            ended=lambda run: _has_ended(run.workload),
        )

    def cancel(self, run_id: str, *, grace_s: float | None = None) -> None:
        """Stop a run; after `grace_s`, or the recipe's own time to save, no pod of it is left."""
        cancel_run(self.client, self._run(run_id), grace_s=grace_s)
        self._watches.pop(run_id, None)

    def delete(self, run_id: str) -> None:
        """Remove an ended run with all its objects. Checkpoints on volumes stay."""
        run = self._run(run_id)
        state = status_of(run, None, server=self.access.server).state
        if not state.ended:
            raise UsageError(f"run `{run_id}` is {state}", hint=f"`parctl cancel {run_id}` first")
        delete_run(self.client, run)

    def list(self) -> Sequence[RunStatus]:
        """Every run of the namespace, newest first, from what the workloads alone say."""
        workloads = list_workloads(self.client, owner=None)
        runs = [self._listed(workload) for workload in workloads]
        return sorted(runs, key=lambda status: (-status.created_unix, status.run_id))

    def why(self, run_id: str) -> Diagnosis:
        from parctl.launcher.kubernetes.facts import gather_facts
        from parctl.launcher.kubernetes.why import diagnose

        run = self._run(run_id)
        return diagnose(gather_facts(self.client, run, self._report(run)))

    def metrics(self, run_id: str) -> Sequence[Mapping[str, Any]]:
        return metrics_of(metrics_rows(leader_log(self.client, self._run(run_id), whole=True)))

    @property
    def access(self) -> ClusterAccess:
        if self._access is None:
            self._access = find_access(self._kube_context, namespace=self._namespace())
        return self._access

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.access)
        return self._client

    def _namespace(self) -> str | None:
        """Flag and environment first, then the recipe, then the context of parctl."""
        given = os.environ.get("PARCTL_NAMESPACE")
        name = given or self._recipe_namespace or self._context.namespace
        if name is not None and not re.fullmatch(DNS_LABEL, name):
            raise UsageError(
                f"`{name}` is no name of a namespace",
                hint="at most 63 lower-case letters, digits and dashes",
            )
        return name

    def _default_namespace(self) -> str:
        """The kubeconfig's, where there is one: rendering needs no cluster."""
        try:
            return self.access.namespace
        except UsageError:
            return "default"

    def _listed(self, workload: Object) -> RunStatus:
        status = workload_status(workload, None, server=self.access.server)
        return replace(status, owner=label_of(workload, names.OWNER))

    def _run(self, run_id: str) -> RunObjects:
        """The objects of a run: asked for once, watched from the second time on."""
        self._reads[run_id] = self._reads.get(run_id, 0) + 1
        if run_id in self._watches:
            run = self._watches[run_id].objects()
        else:
            run = read_run(self.client, run_id)
            if run is not None and self._reads[run_id] > 2:
                self._watch(run.workload)
        if run is None:
            raise UnknownRunError(
                f"there is no run `{run_id}` in namespace {self.access.namespace}",
                hint="`parctl list` shows the runs; `--namespace` names another namespace",
            )
        return run

    def _watch(self, workload: Object) -> RunWatch:
        run_id = workload["metadata"]["name"]
        if run_id not in self._watches:
            self._watches[run_id] = RunWatch(self.access, workload)
        return self._watches[run_id]

    def _report(self, run: RunObjects) -> Report | None:
        """What the leader said last; a coordinator's word is in the workload itself."""
        if annotation_of(run.workload, names.RECOVERY) == "coordinator":
            return None
        return last_report(leader_log(self.client, run, whole=False))


def _has_ended(workload: Object) -> bool:
    return end_of(workload) is not None or cancelled_unix(workload) is not None
