"""Where a run's files are on a node of the cluster, and which of them the dashboard hands out.

::

    SESSION/logs/parctl/RUN_ID/         the run directory; a link to STORAGE/RUN_ID if that is given
        logs/attempt-1/rank-3.log       of the ranks of this node
        driver/state.json               ranks and nodes, on the driver's node
        driver/metrics.jsonl            a copy of what rank 0 writes

Ray's agents serve what is below SESSION/logs, links included, so a client reads these files by the
id of a node and needs no mount.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from parctl.launcher.ray.packages import RUN_FOLDER

FOLDER = "parctl"  # below Ray's logs
LOOK_FILE = "topology.json"  # what `parctl.launcher.ray.look` writes


def log_name(run_id: str, *parts: str) -> str:
    """The name by which the dashboard knows a file of a run."""
    return "/".join((FOLDER, run_id, *parts))


def run_directory(settings: Mapping[str, Any]) -> Path:
    """Make the run directory on this node and return it."""
    import ray

    logs = Path(str(ray._private.worker._global_node.get_logs_dir_path()))
    run_id: str = settings["run_id"]
    storage: str | None = settings["storage"]
    path: Path = logs / FOLDER / run_id
    path.parent.mkdir(parents=True, exist_ok=True)
    if storage is not None:
        kept = Path(storage) / run_id
        kept.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.symlink_to(kept, target_is_directory=True)
        path = kept
    (path / "logs").mkdir(parents=True, exist_ok=True)
    return path


def find_run_file(name: str) -> Path:
    """A file of the run's package, which Ray has unpacked on this node."""
    found = (Path(entry, RUN_FOLDER, name) for entry in sys.path)
    path = next((path for path in found if path.is_file()), None)
    assert path is not None, f"{name} is in no package of {os.environ.get('PYTHONPATH')}"
    return path
