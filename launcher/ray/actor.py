"""The actor as Ray starts it on a node that has no parctl yet: it fetches it and is an agent then.

Ray can unpack packages for its workers by itself, but makes workers for that anew, each by way of
one more interpreter that imports Ray as well. A worker without any may be waiting already. So the
driver gives the packages up for its workers, and this class, which goes to the node by value and
needs the standard library and Ray alone, puts parctl beside Ray's own files there: once per node
and version.
"""

import json
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray tells the entry point of a job of its own
FOLDER = "parctl_packages"  # in Ray's directory of the session


def give_up_packages() -> str | None:
    """Have this job's workers start without packages; returns the URI of parctl's own.

    In the driver, before `ray.init`. None: nothing was sent, parctl is installed on the nodes. Ray
    keeps the packages all the same, for the actor that the driver is a child of.
    """
    config = json.loads(os.environ.get(JOB_CONFIG, "{}"))
    environment = config.get("runtime_env") or {}
    modules = environment.get("py_modules")
    if not modules:
        return None
    kept = {key: environment[key] for key in ("working_dir",) if key in environment}
    os.environ[JOB_CONFIG] = json.dumps({**config, "runtime_env": kept})
    return str(modules[0])


class ParctlAgent:
    """Stands for `parctl.launcher.ray.agent.Agent` on a node."""

    def __init__(self, package: str | None, node: str, settings: str, plan: str) -> None:
        self._package, self._given = package, (node, json.loads(settings), plan)
        self._agent: Any = None

    def describe(self) -> Any:
        if self._package is not None:
            folder = _fetched(self._package)
            sys.path.insert(0, folder)
            given = os.environ.get("PYTHONPATH")  # of the node process and the ranks
            os.environ["PYTHONPATH"] = folder + (os.pathsep + given if given else "")
        from parctl.launcher.ray.agent import Agent

        self._agent = Agent(*self._given)
        return self._agent.describe()

    def order(self, order: Mapping[str, Any]) -> None:
        self._agent.order(order)

    def poll(self, timeout_s: float) -> Any:
        return self._agent.poll(timeout_s)


def _fetched(uri: str) -> str:
    """Unpack a package on this node unless it is there; returns its folder."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    session = str(ray._private.worker._global_node.get_session_dir_path())
    name = uri.rpartition("/")[2].removesuffix(".zip")
    folder = Path(session, FOLDER, name)
    if not folder.is_dir():
        data = _internal_kv_get(uri)
        if data is None:
            raise RuntimeError(f"Ray has {uri} no more")
        part = folder.with_name(f"{name}.{os.getpid()}")
        with zipfile.ZipFile(BytesIO(data)) as archive:
            archive.extractall(part)
        try:
            part.rename(folder)
        except OSError:  # another agent was faster
            shutil.rmtree(part, ignore_errors=True)
    return str(folder)
