"""The back ends by name, each imported when it is first asked for."""

from collections.abc import Mapping
from importlib import import_module

from parctl.errors import UsageError
from parctl.launcher.backend import Backend
from parctl.launcher.contexts import resolve_context
from parctl.launcher.run_id import match_run_id

# name -> "module:class"
BACKENDS: Mapping[str, str] = {
    "local": "parctl.launcher.local:LocalBackend",
    "ray": "parctl.launcher.ray.backend:RayBackend",
    "kubernetes": "parctl.launcher.kubernetes.backend:KubernetesBackend",
}


def get_backend(name: str) -> Backend:
    """Return a back end by name. Raises UsageError for a name that does not exist."""
    if name not in BACKENDS:
        raise UsageError(f"there is no back end `{name}`", hint=f"one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    backend: Backend = getattr(import_module(module), attribute)()
    return backend


def current_backend(flag: str | None) -> Backend:
    """Return the back end of `-b`, or the current context's."""
    return get_backend(resolve_context(backend=flag, recipe_backend=None).backend)


def find_run(text: str, flag: str | None) -> tuple[Backend, str]:
    """Return the back end and the full id of a run that `text` names or begins.

    Without a `-b` flag a local run of that id comes first, then the current context.
    """
    from parctl.launcher.run_directory import run_directories

    local_ids = [run.run_id for run in run_directories()]
    name = flag or resolve_context(backend=None, recipe_backend=None).backend
    if name == "local" or (flag is None and any(run_id.startswith(text) for run_id in local_ids)):
        return get_backend("local"), match_run_id(text, local_ids)
    backend = get_backend(name)
    return backend, match_run_id(text, [status.run_id for status in backend.list()])
