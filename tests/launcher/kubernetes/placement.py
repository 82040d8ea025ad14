"""A cluster in disorder, and a run that has to find its place in it."""

import random
import threading
from dataclasses import dataclass

from tests.cluster.pods import pod, python
from tests.launcher.kubernetes.real import Here, nodes_by_rank

GPU_NODES = ("gpu-1", "gpu-2", "gpu-3")
WORDS = [
    "import json, os",
    "told = {'rank': int(os.environ['RANK']), 'local_rank': int(os.environ['LOCAL_RANK'])}",
    "told['node'] = os.environ['PARCTL_NODE']",
    "print('placed', json.dumps(told), flush=True)",
]
PROBE = ["python3", "-S", "-c", "\n".join(WORDS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disorder:
    """What is in the way when a run of two nodes with two GPUs each is launched.

    Attributes:
        busy: a node where another job holds GPUs, and how many; None: none.
        late: a node that takes no pods until the others have theirs; None: none.
    """

    busy: tuple[str, int] | None
    late: str | None


def disorder(seed: int) -> Disorder:
    """One of the arrangements that leave room for the run."""
    chance = random.Random(seed)
    busy = chance.choice([None, *((node, gpus) for node in GPU_NODES for gpus in (1, 2))])
    free = [node for node in GPU_NODES if busy is None or node != busy[0]]
    return Disorder(busy=busy, late=chance.choice([None, *free]))


def launch_into(here: Here, seed: int) -> None:
    """Launch TP2+DP2 into a disorder; assert that every rank is where layout and rules say."""
    run_id, wanted = f"probe-{seed}", disorder(seed)
    api = here.cluster.api
    if wanted.busy:
        node, gpus = wanted.busy
        tolerations = [{"operator": "Exists"}]
        hold = python("import time", "time.sleep(600)")
        filler = pod(f"busy-{seed}", hold, gpus=gpus, nodeName=node, tolerations=tolerations)
        api.apply(filler, namespace=here.namespace)
    opening = threading.Timer(4.0, uncordon, (here, wanted.late))

    def hold_back() -> None:
        if wanted.late:
            here.cluster.nodes[wanted.late].cordon()
            opening.start()

    try:
        recipe = here.recipe(PROBE, "TP2+DP2", placement={})
        here.launch(recipe, run_id, planned=hold_back)
        ended = here.ended(run_id)
    finally:
        if opening.is_alive():
            opening.join()
    assert ended.state == "Succeeded", here.why(run_id)
    told = nodes_by_rank(here, run_id)
    assert sorted(told) == [0, 1, 2, 3], (seed, told)
    assert told[0] == told[1] != told[2] == told[3], (seed, told)  # tp stays in a node
    assert told == {rank.rank: rank.node for rank in ended.ranks}, (seed, told, ended.ranks)
    if wanted.busy:
        assert wanted.busy[0] not in told.values()
        api.delete("Pod", f"busy-{seed}", here.namespace, grace_s=0)


def uncordon(here: Here, node: str | None) -> None:
    """From a thread of its own: the client of the test is not for two."""
    assert node
    here.cluster.kubectl("uncordon", node)
