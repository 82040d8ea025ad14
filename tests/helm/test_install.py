"""The chart's life on a real cluster: install, test, upgrade under load, roll back, uninstall."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.api import Api, ApiError, Object, condition
from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_until
from tests.helm.chart import (
    CHART,
    CI_VALUES,
    IMAGE_VALUES,
    PROGRAM_NAMES,
    copy_of_version,
    helm,
    merged,
    need,
    one,
    render,
    values_of,
    write_values,
)
from tests.helm.conftest import (
    DEFINITION,
    GPU_NODES,
    TEST_VALUES,
    Site,
    release_name,
    site_in,
    token_of,
)
from tests.launcher.kubernetes.real import Here, start_probe

pytestmark = pytest.mark.cluster
DEFINITIONS = "apiextensions.k8s.io/v1"


@pytest.fixture
def here(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """A namespace where a user runs something meanwhile."""
    with cluster.namespace() as namespace:
        place = Here(cluster=cluster, namespace=namespace, folder=tmp_path)
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        yield place


def definition(site: Site) -> Object | None:
    return site.cluster.api.find("CustomResourceDefinition", DEFINITION, api_version=DEFINITIONS)


def columns(site: Site) -> list[str]:
    """What `kubectl get nodetopologies` prints."""
    crd = definition(site)
    assert crd is not None
    return [each["name"] for each in crd["spec"]["versions"][0]["additionalPrinterColumns"]]


def identity(pods: list[Object]) -> set[tuple[str, int]]:
    """Which pods these are, and how often they were restarted."""
    return {
        (pod["metadata"]["uid"], sum(s["restartCount"] for s in pod["status"]["containerStatuses"]))
        for pod in pods
    }


@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_a_release_lives_through_its_whole_life_beside_a_run(
    cluster: Cluster, here: Here, tmp_path: Path, program: str
) -> None:
    need(program)
    release = release_name()
    with site_in(cluster, tmp_path, program) as site:
        old = copy_of_version(tmp_path, "0.0.1")
        site.helm("package", str(old), "--destination", str(tmp_path))
        said = site.install(release, tmp_path / "parctl-0.0.1.tgz")
        assert f"helm test {release} -n {site.namespace}" in said
        site.wait_discovery(len(GPU_NODES))
        probe = start_probe(here)
        probe.counting()
        pods = identity(here.pods())

        site.install(release, verb="upgrade")
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        (listed,) = yaml.safe_load(site.helm("list", "-o", "json"))
        assert listed["chart"] == f"parctl-{chart['version']}"
        crd = definition(site)
        assert crd is not None
        assert crd["metadata"]["labels"]["helm.sh/chart"] == f"parctl-{chart['version']}"
        assert "Domain" in columns(site)
        site.wait_discovery(len(GPU_NODES))

        tested = site.helm("test", release, "--timeout", "120s")
        assert "Phase:          Succeeded" in tested, tested

        site.helm("rollback", release, "1")
        (listed,) = yaml.safe_load(site.helm("list", "-o", "json"))
        assert listed["chart"] == "parctl-0.0.1"
        assert "Domain" not in columns(site)
        site.wait_discovery(len(GPU_NODES))

        before = probe.counts()
        probe.counting(beyond=max(before))
        assert identity(here.pods()) == pods
        assert probe.finish().state == "Succeeded"

        site.helm("uninstall", release)
        wait_until(lambda: not site.belongings(release), seconds=40, what="nothing of the release")
        wait_until(lambda: definition(site) is None, seconds=20, what="end of the definition")


def test_a_second_release_lives_in_another_namespace(site: Site, tmp_path: Path) -> None:
    first, second = release_name(), release_name()
    site.install(first)
    with site_in(site.cluster, tmp_path, site.program) as other:
        minimal = values_of(CHART / "ci" / "minimal-values.yaml")
        other.install(second, CHART, minimal)
        assert other.pods() == []
        names = [name for name in other.belongings(second) if name.startswith("clusterrole.")]
        assert len(names) == 3
        other.helm("uninstall", second)
        wait_until(lambda: not other.belongings(second), seconds=30, what="nothing of the second")

    assert definition(site) is not None
    site.wait_discovery(len(GPU_NODES))


def test_two_releases_do_not_fight_over_the_definition(site: Site, tmp_path: Path) -> None:
    site.install(release_name(), CHART, {"discovery": {"enabled": False}})
    with site_in(site.cluster, tmp_path, site.program) as other:
        values = write_values(tmp_path, "second", IMAGE_VALUES)
        said = other.helm("install", "second", str(CHART), "-f", str(values), check=False)

    assert DEFINITION in said
    assert "cannot be imported into the current release" in said


def test_the_definition_and_its_objects_stay_when_that_is_asked_for(site: Site) -> None:
    release = release_name()
    site.install(release, CHART, {"crds": {"keep": True}, "discovery": {"enabled": False}})
    site.helm("uninstall", release)
    try:
        assert definition(site) is not None
        # and the next release takes it over
        site.install(release, CHART, {"discovery": {"enabled": False}})
        site.helm("uninstall", release)
        wait_until(lambda: definition(site) is None, seconds=20, what="end of the definition")
    finally:
        site.cluster.api.delete("CustomResourceDefinition", DEFINITION, None, DEFINITIONS)


@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_an_upgrade_does_not_take_the_definition_from_under_discovery(
    cluster: Cluster, tmp_path: Path, program: str
) -> None:
    need(program)
    release = release_name()
    without = {"crds": {"install": False}}
    with site_in(cluster, tmp_path, program) as site:
        site.install(release)
        # ready is told of
        site.wait_discovery(len(GPU_NODES))
        assert all(site.record(node) for node in GPU_NODES)
        values = write_values(tmp_path, "without", TEST_VALUES, without)
        words = ("upgrade", release, str(CHART), "--values", str(values))

        said = site.helm(*words, check=False)
        assert "upgrade with crds.keep=true first" in said
        crd = definition(site)
        assert crd is not None and "deletionTimestamp" not in crd["metadata"]

        site.install(release, CHART, {"crds": {"keep": True}}, verb="upgrade")
        site.helm(*words)
        site.helm(*words)  # it is nobody's now
        crd = definition(site)
        assert crd is not None and "deletionTimestamp" not in crd["metadata"]
        try:
            site.helm("uninstall", release)
        finally:
            cluster.api.delete("CustomResourceDefinition", DEFINITION, None, DEFINITIONS)
        wait_until(lambda: definition(site) is None, seconds=20, what="end of the definition")


def test_without_the_definition_no_pod_is_ready_and_each_says_so(site: Site) -> None:
    site.install(release_name(), CHART, {"crds": {"install": False}})

    def logs() -> str:
        labels = "app.kubernetes.io/component=discovery"
        return site.cluster.kubectl("-n", site.namespace, "logs", "-l", labels)

    def told() -> bool:
        running = [p for p in site.pods() if p["status"]["phase"] == "Running"]
        return len(running) == len(GPU_NODES) and logs().count("no definition") >= len(GPU_NODES)

    wait_until(told, seconds=60, what="every pod's complaint")
    assert f"no definition {DEFINITION} in this cluster" in logs()
    assert not any(condition("Ready")(pod) for pod in site.pods())


def test_who_has_rights_in_one_namespace_only_can_install(site: Site, tmp_path: Path) -> None:
    """The administrator has prepared an account with the role that publishing needs."""
    namespace, api = site.namespace, site.cluster.api
    publisher = {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "verbs": ["get", "create", "patch"],
    }
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "prepared"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "prepared"}}
    api.apply(account, namespace=namespace)
    api.apply({**role, "kind": "Role", "rules": [publisher]}, namespace=namespace)
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prepared"}
    subject = {"kind": "ServiceAccount", "name": "prepared", "namespace": namespace}
    bound = {"kind": "RoleBinding", "roleRef": reference, "subjects": [subject]}
    api.apply({**role, **bound}, namespace=namespace)
    everything = [
        {"apiGroups": ["", "apps", "batch"], "resources": ["*"], "verbs": ["*"]},
    ]
    user = site.cluster.user(namespace, everything)
    limited = Site(cluster=site.cluster, namespace=namespace, folder=tmp_path, program="helm4")
    values = write_values(
        tmp_path,
        "limited",
        merged(values_of(CHART / "ci" / "no-cluster-rights-values.yaml"), IMAGE_VALUES),
        {"discovery": {"pollSeconds": 1, "intervalSeconds": 5}},
    )
    words = ("--namespace", namespace, "--kubeconfig", str(user))

    helm("helm4", "install", "own", str(CHART), "-f", str(values), *words, folder=tmp_path)
    limited.wait_discovery(len(GPU_NODES))

    def published() -> bool:
        maps = api.list("ConfigMap", namespace, selector="parctl.dev/node-topology=true")
        return len(maps) == len(GPU_NODES)

    wait_until(published, seconds=30, what="a ConfigMap of every node")
    # the test launches as that account, which for this needs the user role as well
    rules = one(render("helm4"), "ClusterRole", "parctl-user")["rules"]
    role["metadata"] = {"name": "launches"}
    api.apply({**role, "kind": "Role", "rules": rules}, namespace=namespace)
    api.apply({**role, **bound, "roleRef": {**reference, "name": "launches"}}, namespace=namespace)
    tested = helm("helm4", "test", "own", *words, timeout_s=200, folder=tmp_path).stdout
    assert "Phase:          Succeeded" in tested, tested
    helm("helm4", "uninstall", "own", *words, folder=tmp_path)
    # they belong to the pods, and go with them
    selector = "parctl.dev/node-topology=true"
    wait_until(
        lambda: not api.list("ConfigMap", namespace, selector=selector),
        seconds=40,
        what="end of the ConfigMaps",
    )


def test_a_daemon_that_writes_config_maps_may_write_no_other(site: Site) -> None:
    """A plan, or the certificate that pods of the namespace trust, is a ConfigMap too."""
    api = site.cluster.api
    nobody: Object = {"access": {"users": [], "viewers": []}}  # their namespaces are not there
    site.install(release_name(), CHART, values_of(CHART / "ci" / "config-map-values.yaml"), nobody)
    site.wait_discovery(len(GPU_NODES))
    selector = "parctl.dev/node-topology=true"
    wait_until(
        lambda: len(api.list("ConfigMap", site.namespace, selector=selector)) == len(GPU_NODES),
        seconds=30,
        what="a ConfigMap of every node",
    )
    pod = next(p for p in site.pods() if p["spec"]["nodeName"] == "gpu-1")
    maps = [m["metadata"]["name"] for m in api.list("ConfigMap", site.namespace, selector=selector)]
    (own,) = (name for name in maps if name.endswith("-gpu-1"))
    note = {"metadata": {"annotations": {"example.com/note": "x"}}}
    daemon = Api(token_of(site, pod))
    try:
        daemon.patch("ConfigMap", own, note, site.namespace)
        for other in ("kube-root-ca.crt", own.replace("gpu-1", "gpu-2")):
            with pytest.raises(ApiError, match="may not write about"):
                daemon.patch("ConfigMap", other, note, site.namespace)
    finally:
        daemon.close()


def test_the_api_server_takes_every_object_that_is_rendered(site: Site) -> None:
    """Strictly: an unknown field would be an error."""
    site.cluster.controllers.ensure("kueue")
    for file in CI_VALUES:
        for each in render("helm4", "--values", str(file)):
            accepted(site, each)


def accepted(site: Site, each: dict[str, Any]) -> None:
    """Let the server check an object in a namespace that exists."""
    if "namespace" in each["metadata"]:
        each["metadata"]["namespace"] = site.namespace
    if each["kind"] == "Pod":
        each["spec"]["serviceAccountName"] = "default"  # admission wants one that exists
    site.cluster.api.apply(each, dry_run=True)
