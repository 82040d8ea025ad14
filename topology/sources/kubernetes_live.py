"""The nodes of a running Kubernetes cluster, over its API.

Asks for Nodes, ResourceSlices (v1, else v1beta1), Kueue's Topologies and the records of the chart's
daemon, and hands the objects to `parctl.topology.sources.kubernetes`: what is read from a file and
from a cluster is one code.
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from parctl.errors import BackendError, UsageError
from parctl.topology.discovery.objects import CONFIG_LABEL, GROUP, PLURAL, VERSION
from parctl.topology.document import mapping, mappings, text_of
from parctl.topology.model import Topology
from parctl.topology.sources.kubernetes import Objects, build

# group, versions with the newest first, plural; the first version that is served is read
SLICES = ("resource.k8s.io", ("v1", "v1beta2", "v1beta1"), "resourceslices")
KUEUE = ("kueue.x-k8s.io", ("v1beta2", "v1beta1", "v1alpha1"), "topologies")
RECORDS = (GROUP, (VERSION,), PLURAL)
PAGE = 500
TIMEOUT_S = 15.0
ERRORS, NOT_SERVED, FORBIDDEN, GONE = 400, 404, (401, 403), 410


def read_cluster(context: str | None) -> Topology:
    """Read the cluster of a kubeconfig context; None is the current one, or the pod's own."""
    with _client(context) as client:
        objects = _read_objects(client, context)
        host = client.configuration.host
    if not objects.nodes:
        raise BackendError(f"Kubernetes at {host} lists no node")
    return build(objects, name=context or "kubernetes", source=f"k8s {host}")


def _read_objects(client: Any, context: str | None) -> Objects:
    """Nodes, which are needed, and what else may be listed."""
    api = importlib.import_module("kubernetes.client")
    core, custom = api.CoreV1Api(client), api.CustomObjectsApi(client)

    objects = Objects(nodes=_pages(partial(_decoded, core.list_node), "nodes") or [])
    wanted = ((SLICES, objects.slices), (KUEUE, objects.kueue), (RECORDS, objects.records))
    for (group, versions, plural), into in wanted:
        try:
            for version in versions:
                ask = partial(
                    custom.list_cluster_custom_object,
                    group,
                    version,
                    plural,
                    _request_timeout=TIMEOUT_S,
                )
                found = _pages(ask, plural, optional=True)
                if found is not None:
                    into += found
                    break
        except BackendError as error:
            objects.cut.append(f"{plural}: {error.message}")
    if not objects.records:
        _read_config_maps(core, _namespace(context), objects)
    return objects


def _read_config_maps(core: Any, namespace: str, into: Objects) -> None:
    """Records of a daemon without a kind of its own: of every namespace, else of the context's."""
    places: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("of every namespace", core.list_config_map_for_all_namespaces),
        (f"of namespace {namespace}", partial(core.list_namespaced_config_map, namespace)),
    )
    refusals = []
    for place, ask in places:
        plural = f"configmaps {place}"
        try:
            labelled = partial(_decoded, ask, label_selector=CONFIG_LABEL)
            found = _pages(labelled, plural, optional=True)
        except BackendError as error:
            refusals.append(error.message)
            continue
        kind = {"kind": "ConfigMap", "apiVersion": "v1"}
        into.records += [{**kind, **item} for item in found or ()]
        break
    if refusals and not into.records:
        into.cut.append(f"records of nodes, if ConfigMaps hold them: {'; '.join(refusals)}")


def _decoded(ask: Callable[..., Any], **choices: Any) -> Any:
    """One answer as it came: the client's own models refuse fields that they do not know."""
    answer = ask(_preload_content=False, _request_timeout=TIMEOUT_S, **choices)
    if answer.status >= ERRORS:
        api = importlib.import_module("kubernetes.client")
        raise api.ApiException(status=answer.status, reason=answer.reason)
    return json.loads(answer.data)


def _namespace(context: str | None) -> str:
    """The namespace of a context, or of the pod that this runs in."""
    config = importlib.import_module("kubernetes.config")
    try:
        contexts, current = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))
    except config.ConfigException:
        place = Path(config.incluster_config.SERVICE_CERT_FILENAME).with_name("namespace")
        return place.read_text().strip() if place.is_file() else "default"
    chosen = next((each for each in contexts if each["name"] == context), current)
    return text_of(mapping(chosen, "context").get("namespace")) or "default"


def _client(context: str | None) -> Any:
    try:
        config = importlib.import_module("kubernetes.config")
        api = importlib.import_module("kubernetes.client")
    except ImportError as error:
        raise UsageError(
            "the Kubernetes client is not installed",
            hint="`pip install 'parctl[kubernetes]'`, or save the objects: "
            "`kubectl get nodes,resourceslices -o json > FILE`",
        ) from error
    try:
        # the client looks at KUBECONFIG once, when it is imported
        return config.new_client_from_config(
            config_file=os.environ.get("KUBECONFIG"), context=context
        )
    except config.ConfigException as error:
        if context is None:
            try:
                config.load_incluster_config()
                return api.ApiClient()
            except config.ConfigException:
                pass
        raise UsageError(
            f"no Kubernetes cluster: {_first_line(error)}",
            hint="set KUBECONFIG, or name a context: `kubernetes:CONTEXT`",
        ) from error


def _pages(
    ask: Callable[..., Any], plural: str, *, optional: bool = False
) -> list[Mapping[str, Any]] | None:
    """All objects, page by page; None for what the cluster does not serve."""
    api = importlib.import_module("kubernetes.client")
    objects: list[Mapping[str, Any]] = []
    page: dict[str, Any] = {"limit": PAGE}
    while True:
        try:
            answer = ask(**page)
        except api.ApiException as error:
            if optional and error.status == NOT_SERVED:
                return None
            if error.status == GONE and "_continue" in page:
                # the pages are of one moment, which the server has forgotten: all in one answer
                page, objects = {}, []
                continue
            hint = (
                "the account may not list them; say what there is: `--cluster h100:2x8`, or a file"
                if error.status in FORBIDDEN
                else None
            )
            raise BackendError(
                f"Kubernetes answers {error.status} {error.reason} when asked for {plural}",
                hint=hint,
            ) from error
        except Exception as error:  # urllib3, ssl, proxies: the client raises what they raise
            raise BackendError(f"Kubernetes does not answer: {_first_line(error)}") from error
        objects += mappings(mapping(answer).get("items"))
        token = text_of(mapping(answer, "metadata").get("continue"))
        if token is None:
            return objects
        page["_continue"] = token


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
