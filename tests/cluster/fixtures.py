"""The cluster as pytest fixtures: one for all tests, a namespace for each.

Where the cluster's programs are absent, its tests skip with one line; with
`PARCTL_REQUIRE_CLUSTER=1` that is a failure. `PARCTL_CLUSTER=NAME` uses a cluster that
`make cluster` keeps.
"""

import os
from collections.abc import Generator, Iterator

import pytest
from tests.cluster.cluster import Cluster, assemble, kept, machine_of, obstacle, session

# Read before the first test: each test starts with an environment free of such names.
KEPT = os.environ.get("PARCTL_CLUSTER")
REQUIRED = os.environ.get("PARCTL_REQUIRE_CLUSTER") == "1"
NO_CLUSTER = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell of all tests that have no cluster in one line: skips of one place are shown as one."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason == item.config.stash.get(NO_CLUSTER, None):
            report.longrepr = (__file__, 0, reason)
    return report


@pytest.fixture(scope="session")
def session_cluster(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    reason = obstacle()
    if reason is not None:
        if REQUIRED:
            pytest.fail(reason, pytrace=False)
        pytestconfig.stash[NO_CLUSTER] = reason
        pytest.skip(reason)
    if KEPT:
        assert kept(KEPT), f"there is no cluster `{KEPT}`: `make cluster` brings up `dev`"
        there = assemble(machine_of(KEPT))
        yield there
        there.api.close()
        return
    with session() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whole, with this test and what it starts in the cluster's network."""
    with session_cluster.inside():
        session_cluster.heal()
        yield session_cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace under the restricted pod security standard."""
    with cluster.namespace() as name:
        yield name
