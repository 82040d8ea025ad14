"""The command line of parctl against the test cluster, in a namespace of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.cluster import Cluster
from tests.launcher.kubernetes.real import Here


@pytest.fixture
def here(
    cluster: Cluster, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Here]:
    cluster.controllers.ensure("jobset")
    place = Here(cluster=cluster, namespace=namespace, folder=tmp_path)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    yield place
