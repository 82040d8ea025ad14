"""A namespace with everything that parctl may launch by."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.cluster import Cluster
from tests.cluster.controllers import CONTROLLERS, DEFINITIONS, define
from tests.helm.chart import one, render
from tests.helm.conftest import DEFINITION
from tests.launcher.kubernetes.real import Here


@pytest.fixture
def definition(cluster: Cluster) -> Iterator[None]:
    """The kind of records, without a release."""
    api = cluster.api
    define(api, [one(render("helm4"), "CustomResourceDefinition")])
    yield
    api.delete("CustomResourceDefinition", DEFINITION, None, DEFINITIONS)


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    cluster.controllers.ensure("jobset", "kueue")
    define_kinds(cluster, "kuberay", "lws")
    with cluster.namespace() as namespace:
        place = Here(cluster=cluster, namespace=namespace, folder=tmp_path)
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        yield place


def define_kinds(cluster: Cluster, *controllers: str) -> None:
    """The kinds of these controllers, without the controllers: what is launched is not started."""
    for controller in controllers:
        definitions, _ = cluster.controllers.manifests(CONTROLLERS[controller])
        missing = []  # they are large
        for each in definitions:
            there = ("CustomResourceDefinition", each["metadata"]["name"])
            if cluster.api.find(*there, api_version=DEFINITIONS) is None:
                missing.append(each)
        define(cluster.api, missing)
