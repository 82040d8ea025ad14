"""The job that asks every node what it is like inside: `python -m parctl.launcher.ray.look ID`.

Writes one JSON object among Ray's logs: Ray's id of a node -> its topology, or why there is none.
"""

import json
import sys
from pathlib import Path
from typing import Any

from parctl.launcher.ray.run_files import FOLDER, LOOK_FILE
from parctl.launcher.run_directory import write_whole

NODE_S = 120.0  # a node unpacks parctl and starts a worker


def look() -> Any:
    """Return the topology of the machine that this runs on."""
    from parctl.topology.sources.local import discover_local
    from parctl.topology.store import topology_to_json

    return topology_to_json(discover_local())


def main() -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(log_to_driver=False)
    questions = {
        node["NodeID"]: ray.remote(look)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    ray.wait(list(questions.values()), num_returns=len(questions), timeout=NODE_S)
    found: dict[str, Any] = {}
    for node_id, question in questions.items():
        try:
            found[node_id] = ray.get(question, timeout=0)
        except Exception as error:  # one node's fault is told, the others are still worth knowing
            found[node_id] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    logs = Path(str(ray._private.worker._global_node.get_logs_dir_path()))
    folder = logs / FOLDER / sys.argv[1]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / LOOK_FILE, json.dumps(found))


if __name__ == "__main__":
    main()
