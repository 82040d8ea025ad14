"""A live Kubernetes cluster: an API server's answers over HTTP, through the real client."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.topology.sources.answering import answering

from parctl.errors import BackendError, UsageError
from parctl.topology.discover import discover


def node(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"my/rack": "r1"}},
        "status": {"allocatable": {"nvidia.com/gpu": "2"}},
    }


def use_config(
    path: Path, address: str, monkeypatch: pytest.MonkeyPatch, namespace: str | None = None
) -> None:
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u"}}],
    }
    if namespace is not None:
        config["contexts"][0]["context"]["namespace"] = namespace
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_all_pages_slices_and_levels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    slices = {
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": "n1",
            "devices": [
                {"name": f"gpu-{i}", "basic": {"attributes": {"uuid": {"string": f"GPU-{i}"}}}}
                for i in range(2)
            ],
        }
    }
    levels = {"spec": {"levels": [{"nodeLabel": "my/rack"}]}}
    answers = {
        "/api/v1/nodes?limit=500": {"items": [node("n1")], "metadata": {"continue": "p2"}},
        "/api/v1/nodes?continue=p2&limit=500": {"items": [node("n2")], "metadata": {}},
        "/apis/resource.k8s.io/v1beta1/resourceslices": {"items": [slices]},
        "/apis/kueue.x-k8s.io/v1beta1/topologies": {"items": [levels]},
    }
    with answering(answers) as (address, asked):
        use_config(tmp_path / "config", address, monkeypatch)
        topology = discover("kubernetes:lab")

    assert [found.name for found in topology.nodes] == ["n1", "n2"]
    assert [device.uuid for device in topology.nodes[0].hardware.devices] == ["GPU-0", "GPU-1"]
    assert topology.nodes[1].tiers == ("r1",)
    assert topology.source == f"k8s {address}"
    assert {header for _, header in asked} == {"Bearer secret"}


def test_a_list_whose_next_page_is_gone_is_read_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    answers: dict[str, Any] = {
        "/api/v1/nodes?limit=500": {"items": [node("n1")], "metadata": {"continue": "p2"}},
        "/api/v1/nodes?continue=p2&limit=500": 410,
        "/api/v1/nodes": {"items": [node("n1"), node("n2")], "metadata": {}},
    }
    with answering(answers) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch)
        topology = discover("kubernetes:lab")

    assert [found.name for found in topology.nodes] == ["n1", "n2"]


RECORD = {
    "schema": 1,
    "kind": "gpu",
    "gpus": [{"index": 0}, {"index": 1}],
    "links": ["X NV4", "NV4 X"],
}
RECORDS = "/apis/parctl.dev/v1alpha1/nodetopologies"
CONFIG_MAPS = "/api/v1/configmaps"


def config_map() -> dict[str, Any]:
    """The record of n1, as a ConfigMap has it."""
    content = {"node": "n1", "spec": RECORD, "status": {}}
    labels = {"parctl.dev/node-topology": "true"}
    return {"metadata": {"labels": labels}, "data": {"record.json": json.dumps(content)}}


def test_records_are_read_where_the_cluster_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    kind = {"apiVersion": "parctl.dev/v1alpha1", "kind": "NodeTopology"}
    record = {**kind, "metadata": {"name": "n1"}, "spec": RECORD}
    answers = {"/api/v1/nodes": {"items": [node("n1")]}, RECORDS: {"items": [record]}}
    with answering(answers) as (address, asked):
        use_config(tmp_path / "config", address, monkeypatch)
        topology = discover("kubernetes:lab")

    assert topology.nodes[0].hardware.matrix == (("X", "NV4"), ("NV4", "X"))
    assert not any("configmaps" in path for path, _ in asked)


def test_records_in_config_maps_are_read_where_there_is_no_such_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    answers = {"/api/v1/nodes": {"items": [node("n1")]}, CONFIG_MAPS: {"items": [config_map()]}}
    with answering(answers) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch)
        topology = discover("kubernetes:lab")

    assert topology.nodes[0].hardware.matrix == (("X", "NV4"), ("NV4", "X"))


def test_who_may_not_list_all_config_maps_is_asked_for_those_of_the_contexts_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    answers: dict[str, Any] = {
        "/api/v1/nodes": {"items": [node("n1")]},
        CONFIG_MAPS: 403,
        "/api/v1/namespaces/parctl/configmaps": {"items": [config_map()]},
    }
    with answering(answers) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch, namespace="parctl")
        topology = discover("kubernetes:lab")

    assert topology.nodes[0].hardware.matrix == (("X", "NV4"), ("NV4", "X"))
    assert not any("ConfigMap" in sentence for sentence in topology.unknown)


def test_config_maps_that_may_not_be_listed_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they hold may be faults: a check that did not see them does not keep that to itself."""
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    answers: dict[str, Any] = {
        "/api/v1/nodes": {"items": [node("n1")]},
        CONFIG_MAPS: 403,
        "/api/v1/namespaces/default/configmaps": 403,
    }
    with answering(answers) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch)
        topology = discover("kubernetes:lab")

    assert topology.unknown[0] == (
        "records of nodes, if ConfigMaps hold them: Kubernetes answers 403 Forbidden when asked for"
        " configmaps of every namespace; Kubernetes answers 403 Forbidden when asked for configmaps"
        " of namespace default"
    )


def test_what_may_not_be_listed_is_unknown_and_nodes_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    answers: dict[str, Any] = {
        "/api/v1/nodes": {"items": [node("n1")]},
        "/apis/resource.k8s.io/v1/resourceslices": 403,
    }
    with answering(answers) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch)
        assert discover("k8s").unknown[0].startswith("resourceslices: Kubernetes answers 403")
        answers["/api/v1/nodes"] = 403
        with pytest.raises(BackendError, match="answers 403 Forbidden when asked for nodes"):
            discover("kubernetes")


def test_a_server_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    with answering({}) as (address, _):
        use_config(tmp_path / "config", address, monkeypatch)
    with pytest.raises(BackendError, match="does not answer"):
        discover("kubernetes")


def test_an_unknown_context_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes", reason="the package `kubernetes` is not installed")
    use_config(tmp_path / "config", "http://127.0.0.1:1", monkeypatch)
    with pytest.raises(UsageError, match="no Kubernetes cluster"):
        discover("kubernetes:nowhere")


def test_without_the_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.config", None)
    with pytest.raises(UsageError) as error:
        discover("kubernetes")

    assert error.value.message == "the Kubernetes client is not installed"
    assert "parctl[kubernetes]" in (error.value.hint or "")
