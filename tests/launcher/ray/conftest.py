"""One cluster for all tests of a session: four nodes with eight fake GPUs each, two with two.

It runs in an environment that has Ray, torch and numpy alone, so every test shows that a node needs
no more.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.launcher.ray.bare import RAY, TORCH, bare_python
from tests.launcher.ray.cluster import RayCluster, start_cluster
from tests.launcher.ray.outcomes import MATRIX, Outcomes

from parctl.launcher.ray.backend import RayBackend

NODES = {
    **{f"node-{number}": {"num_gpus": 8, "num_cpus": 4} for number in range(4)},
    # small ones, so that four ranks need two nodes
    **{f"pair-{number}": {"num_gpus": 2, "num_cpus": 4} for number in range(2)},
}
OUTCOMES = pytest.StashKey[Outcomes]()


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    return request.config.stash.setdefault(OUTCOMES, Outcomes())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if MATRIX and OUTCOMES in config.stash:
        terminalreporter.section("what each fault led to")
        terminalreporter.write("\n".join([*config.stash[OUTCOMES].table(), ""]))


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter that the cluster runs in."""
    return bare_python(tmp_path_factory.mktemp("bare"), [RAY, *TORCH])


@pytest.fixture(scope="session")
def four_nodes(bare: str) -> Iterator[RayCluster]:
    cluster = start_cluster(NODES, python=bare)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(
    four_nodes: RayCluster, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RayCluster]:
    """The cluster, with this test's environment pointing to it; no run outlives it."""
    for name, value in four_nodes.environment.items():
        monkeypatch.setenv(name, value)
    yield four_nodes
    for name, value in four_nodes.environment.items():  # whatever the test made of it
        monkeypatch.setenv(name, value)
    backend = RayBackend()
    for run in backend.list():
        if not run.state.ended:
            backend.cancel(run.run_id, grace_s=0)


@pytest.fixture
def backend(cluster: RayCluster) -> RayBackend:
    return RayBackend()
