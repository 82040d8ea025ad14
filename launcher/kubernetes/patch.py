"""The recipe's `launch.kubernetes.patch`: merge patches by kind of object, the last resort.

A patch may change nearly all. It may not change by what the run is found again, nor what the pods
run: such a run would hold devices that no command of parctl could give back.
"""

from collections.abc import Mapping
from typing import Any, get_args

from parctl.errors import UsageError
from parctl.launcher.kubernetes import names
from parctl.launcher.kubernetes.names import Object
from parctl.launcher.kubernetes.shapes import template_of
from parctl.recipes.kubernetes_spec import PatchKind

Patches = Mapping[str, Mapping[str, Any]]
OURS = "parctl.dev/"
KEPT = (
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "spec.completions",
    "spec.parallelism",
    "spec.completionMode",
)


def merge_patch(value: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386): mappings are merged, null removes, the rest replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(value) if isinstance(value, Mapping) else {}
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), change)
    return result


def patched(each: Object, patches: Patches) -> Object:
    """An object of the run with its patch. UsageError: parctl would not find it again."""
    kind = each["kind"]
    if kind not in patches:
        return each
    result: Object = merge_patch(each, patches[kind])
    for path in KEPT:
        _keep(kind, path, *(_at(one, *path.split(".")) for one in (each, result)))
    _keep_names(kind, each, result)
    if _at(each, "metadata", "labels", names.ROLE) == names.WORKLOAD:
        _keep_pods(kind, template_of(each), result)
    return result


def patched_pod(template: Object, patches: Patches) -> Object:
    """The template of all pods with the patch `Pod`. UsageError: they would run something else."""
    if "Pod" not in patches:
        return template
    result: Object = merge_patch(template, patches["Pod"])
    _keep_template("Pod", template, result)
    return result


def unused(patches: Patches, kinds: set[str]) -> list[str]:
    """A sentence per patch that has no object, `kinds` being those of the run."""
    return [
        f"launch.kubernetes.patch.{kind} is not used: this run has no {kind}"
        for kind in get_args(PatchKind)
        if kind in patches and kind not in {*kinds, "Pod"}
    ]


def _keep_pods(kind: str, before: Object, workload: Object) -> None:
    try:
        after = template_of(workload)
    except (KeyError, IndexError, TypeError):
        after = {}
    _keep_template(kind, before, after)


def _keep_template(kind: str, before: Object, after: Object) -> None:
    _keep_names(kind, before, after)
    commands = (_command(each) for each in (before, after))
    _keep(kind, f"the command of the container `{names.CONTAINER}`", *commands)


def _keep_names(kind: str, before: Object, after: Object) -> None:
    for place in ("labels", "annotations"):
        wanted = _at(before, "metadata", place) or {}
        found = _at(after, "metadata", place)
        for key, value in wanted.items():
            if key.startswith(OURS):
                given = found.get(key) if isinstance(found, Mapping) else None
                _keep(kind, f"metadata.{place}.{key}", value, given)


def _keep(kind: str, what: str, before: object, after: object) -> None:
    if before != after:
        raise UsageError(
            f"launch.kubernetes.patch.{kind} changes {what}, without which parctl loses the run",
            hint="leave it as `parctl launch --dry-run` shows it without the patch",
        )


def _command(template: Object) -> object:
    """What the container of the ranks runs; lists are replaced whole by a patch."""
    containers = _at(template, "spec", "containers")
    for container in containers if isinstance(containers, list) else ():
        if isinstance(container, Mapping) and container.get("name") == names.CONTAINER:
            return [container.get("command"), container.get("args")]
    return None


def _at(each: object, *path: str) -> Any:
    for step in path:
        each = each.get(step) if isinstance(each, Mapping) else None
    return each
