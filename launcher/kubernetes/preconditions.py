"""What has to be so in the cluster before any object of a run is sent."""

from collections.abc import Mapping
from typing import Any

from parctl.errors import UsageError
from parctl.launcher.backend import Manifests
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.client import ApiError, Client
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.objects import FORBIDDEN, created_unix, kueue_api, label_of
from parctl.launcher.kubernetes.shapes import template_of

LEFTOVER_S = 60.0  # nobody takes so long from the first object of a run to its workload


def refuse_unknown_queue(client: Client, manifests: Manifests) -> None:
    """Without Kueue the label of a queue means nothing, and the pods would run at once."""
    queue = label_of(manifests.documents[-1], names.QUEUE)
    if queue is not None and kueue_api(client) is None:
        raise UsageError(
            f"launch.queue = {queue}, and this cluster has no Kueue, whose queues these are",
            hint="leave `launch.queue` out, or have Kueue installed",
        )


def refuse_taken(client: Client, document: Mapping[str, Any]) -> Object | None:
    """Refuse a name that an object of others has: applying would change it, and own it.

    Returns the object of that name if it is the run's own. Asked for as a list of one: who may
    launch may list all these kinds, but not get each of them.
    """
    kind, metadata = document["kind"], document["metadata"]
    found = client.list(
        document["apiVersion"],
        kind,
        fields=f"metadata.name={metadata['name']}",
        namespace=metadata.get("namespace"),
    )
    for each in found or ():
        run = label_of(each, names.RUN)
        if run != metadata["labels"][names.RUN]:
            whose = f"of run `{run}`" if run else "no part of a run"
            raise UsageError(
                f"namespace {each['metadata']['namespace']} has a {kind} `{metadata['name']}`"
                f" already, which is {whose}",
                hint="choose another `--run-id`: objects of others are not touched",
            )
        return each
    return None


def is_leftover(client: Client, each: Object) -> bool:
    """Whether a launch was cut short after this object of a run that has no workload."""
    return client.now_unix - created_unix(each) > LEFTOVER_S


def try_pod(client: Client, workload: Mapping[str, Any]) -> bool:
    """Have the cluster judge a pod of the run: the workload's own dry run makes none.

    Quotas, pod security and missing accounts or priority classes show here. Raises ApiError. False:
    who launches may not make pods, and so cannot ask.
    """
    template = template_of(workload)
    metadata = {
        "name": f"{workload['metadata']['name']}-try",
        "namespace": workload["metadata"]["namespace"],
        "labels": template["metadata"]["labels"],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    try:
        client.apply(pod, dry_run=True)
    except ApiError as error:
        if error.code == FORBIDDEN and 'resource "pods"' in error.said:
            return False
        raise
    return True
