"""What the chart renders, file by file, with both versions of Helm."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helm.branches import branches_taken, marked_chart
from tests.helm.chart import (
    CHART,
    CI_VALUES,
    PROGRAM_NAMES,
    ROOT,
    Object,
    helm,
    one,
    render,
)

from parctl.topology.discovery.record import MAX_OF, MAX_TEXT, MAX_WARNINGS

GOLDENS = Path(__file__).parent / "goldens"
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def golden_text(objects: list[Object]) -> str:
    return yaml.safe_dump_all(objects, sort_keys=False, width=100)


def rendered(name: str) -> list[Object]:
    return render("helm4", "--values", str(CHART / "ci" / f"{name}-values.yaml"))


@pytest.mark.parametrize("program", PROGRAM_NAMES)
@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)
def test_the_rendered_objects_are_the_golden_ones(program: str, file: Path) -> None:
    objects = render(program, "--values", str(file))
    golden = GOLDENS / f"{file.stem.removesuffix('-values')}.yaml"

    # as objects: the two Helms do not agree about blank lines
    assert objects == list(yaml.safe_load_all(golden.read_text())), (
        "run `python -m tests.helm.test_template`"
    )


@pytest.mark.parametrize("program", PROGRAM_NAMES)
@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)
def test_lint_has_nothing_to_say(program: str, file: Path) -> None:
    done = helm(program, "lint", "--strict", str(CHART), "--values", str(file))

    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout
    assert "[WARNING]" not in done.stdout


def test_every_branch_of_every_template_is_taken_by_a_file_and_left_by_another(
    tmp_path: Path,
) -> None:
    chart, names = marked_chart(tmp_path)
    taken = {file.stem: branches_taken(chart, file) for file in CI_VALUES}

    assert len(names) > 50
    never = [name for name in names if not any(name in found for found in taken.values())]
    always = [name for name in names if all(name in found for found in taken.values())]
    assert (never, always) == ([], [])


def test_every_object_carries_the_labels_and_annotations_that_are_asked_for() -> None:
    for each in rendered("everything"):
        metadata = each["metadata"]
        assert metadata["labels"]["team"] == "platform", metadata["name"]
        assert metadata["annotations"]["example.com/owner"] == "platform@example.com"
        template = each.get("spec", {}).get("template", {}).get("metadata")
        if template:
            assert template["labels"]["team"] == "platform"
            assert template["annotations"]["example.com/owner"] == "platform@example.com"


def test_cluster_wide_names_carry_the_release_and_its_namespace() -> None:
    done = helm("helm4", "template", "two", str(CHART), "--namespace", "apart")
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    wide = [
        each["metadata"]["name"]
        for each in objects
        if "namespace" not in each["metadata"] and each["kind"] != "CustomResourceDefinition"
    ]

    assert len(wide) == 9
    assert all(name.startswith("apart-two-parctl-") for name in wide), wide


def containers() -> list[Any]:
    found = []
    for file in CI_VALUES:
        for each in rendered(file.stem.removesuffix("-values")):
            pod = each if each["kind"] == "Pod" else each.get("spec", {}).get("template")
            if pod and "spec" in pod:
                name = f"{file.stem}-{each['kind']}"
                found.append(pytest.param(pod["spec"], id=name))
    return found


def test_every_container_passes_restricted_but_for_host_paths_and_what_is_asked_for() -> None:
    seen = 0
    for parameter in containers():
        pod = parameter.values[0]
        for container in pod["containers"]:
            seen += 1
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["requests"] and container["resources"]["limits"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            if security.get("privileged"):
                assert "driver-root" in parameter.id
                continue
            assert {key: security[key] for key in RESTRICTED} == RESTRICTED
        mounts = {m["name"]: m for c in pod["containers"] for m in c["volumeMounts"]}
        for volume in pod["volumes"]:
            if "hostPath" in volume:
                mount = mounts[volume["name"]]
                # what is mounted below it as well
                assert (mount["readOnly"], mount["recursiveReadOnly"]) == (True, "IfPossible")
    assert seen > 6


def test_the_digest_wins_over_the_tag_and_the_registry_comes_first() -> None:
    daemons = one(rendered("everything"), "DaemonSet")
    container = daemons["spec"]["template"]["spec"]["containers"][0]

    assert container["image"] == (
        "mirror.example.com:5000/tools/ml/parctl@sha256:"
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    )


def test_every_image_goes_through_the_mirror() -> None:
    for name in ("everything", "kueue-existing"):
        for each in rendered(name):
            for line in yaml.safe_dump(each).splitlines():
                if line.strip().startswith(("image:", "- image:")):
                    assert line.split("image: ")[1].startswith("mirror.example.com"), line


def test_without_cluster_rights_nothing_cluster_wide_is_rendered() -> None:
    kinds = {each["kind"] for each in rendered("no-cluster-rights")}

    assert kinds == {"DaemonSet", "ConfigMap", "Pod"}


def test_who_may_launch_or_look_may_list_records_that_are_config_maps() -> None:
    objects = rendered("config-map")
    role = one(objects, "Role", "parctl-records")
    binding = one(objects, "RoleBinding", "parctl-records")

    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "parctl"
    assert role["rules"] == [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    assert binding["roleRef"]["name"] == "parctl-records"
    wide = one(objects, "ClusterRoleBinding", "parctl-cluster-viewer")
    assert binding["subjects"] == wide["subjects"]
    assert [subject["name"] for subject in wide["subjects"]] == ["researchers", "ada@example.com"]


def test_records_of_their_own_kind_bring_no_right_to_config_maps() -> None:
    nowhere = render("helm4", "--set", "discovery.publish=configMap,discovery.enabled=false")
    for objects in (rendered("everything"), nowhere):
        assert not [each for each in objects if each["metadata"]["name"].endswith("-records")]


def egress(*words: str) -> list[Object]:
    policy = one(render("helm4", *words), "NetworkPolicy")
    return list(policy["spec"]["egress"])


def test_discovery_reaches_the_ports_of_the_api_server_and_its_addresses_where_they_are_named() -> (
    None
):
    ports = [{"port": port, "protocol": "TCP"} for port in (443, 6443)]
    addresses = "networkPolicy.apiServerCIDRs={10.96.0.1/32,fd00::1/128}"

    assert egress() == [{"ports": ports}]
    assert egress("--set", addresses) == [
        {
            "ports": ports,
            "to": [{"ipBlock": {"cidr": "10.96.0.1/32"}}, {"ipBlock": {"cidr": "fd00::1/128"}}],
        }
    ]


def test_the_nodes_of_a_flavor_are_those_that_are_named_and_no_others() -> None:
    queue = ("--set", "kueue.enabled=true,kueue.clusterQueue.quotas.cpu=8")
    default = one(render("helm4", *queue), "ResourceFlavor")
    named = one(rendered("kueue-existing"), "ResourceFlavor")

    assert default["spec"]["nodeLabels"] == {"nvidia.com/gpu.present": "true"}
    assert named["spec"]["nodeLabels"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


VALUES_OF_DOCS = re.findall(
    r"```yaml\n(.*?)```", (ROOT / "docs" / "helm.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("text", VALUES_OF_DOCS)
def test_the_values_in_the_docs_render(text: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(text)

    assert one(render("helm4", "--values", str(file)), "DaemonSet")


def test_the_definition_stays_only_when_that_is_asked_for() -> None:
    kept = one(rendered("everything"), "CustomResourceDefinition")
    gone = one(rendered("default"), "CustomResourceDefinition")

    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "annotations" not in gone["metadata"]


def test_records_are_cut_to_what_the_definition_takes() -> None:
    version = one(rendered("default"), "CustomResourceDefinition")["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    longest = dict(bounds(spec))

    assert longest.pop("warnings") == MAX_OF["warnings"]
    assert spec["warnings"]["maxItems"] == MAX_WARNINGS
    assert len(longest) > 8
    for name, length in longest.items():
        assert MAX_OF.get(name, MAX_TEXT) == length, name


def bounds(properties: Object) -> Iterator[tuple[str, int]]:
    """Names of texts in a record, and how long they may be."""
    for name, schema in properties.items():
        inside = schema.get("items", schema)
        if "maxLength" in inside:
            yield name, inside["maxLength"]
        yield from bounds(inside.get("properties", {}))


def test_a_pod_is_ready_once_it_has_published() -> None:
    pod = one(rendered("default"), "DaemonSet")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    files = {each["name"]: each.get("value") for each in container["env"]}

    assert container["startupProbe"]["exec"]["command"] == [
        "test",
        "-e",
        files["PARCTL_PUBLISHED_FILE"],
    ]


def notes(*words: str) -> str:
    """What Helm tells a person at the end; `template` leaves it out."""
    words = ("install", "parctl", str(CHART), "--namespace", "parctl", *words)
    done = helm("helm4", *words, "--dry-run=client")  # Helm 3 wants a cluster for it
    return done.stdout.partition("NOTES:\n")[2]


def test_the_notes_name_every_queue_on_a_line_of_its_own() -> None:
    quota = ("--set", "kueue.enabled=true,kueue.clusterQueue.quotas.cpu=8")
    queues = [
        f"kueue.localQueues[{i}].name={name},kueue.localQueues[{i}].namespace=team-{name}"
        for i, name in enumerate("ab")
    ]
    said = notes(*quota, "--set", ",".join(queues))

    assert "(`launch.queue`):\n\n    a (namespace team-a)\n    b (namespace team-b)\n" in said
    assert "No namespace has a queue" in notes(*quota)
    assert "launch.queue" not in notes()


def test_the_notes_say_what_a_prepared_account_needs() -> None:
    file = str(CHART / "ci" / "no-cluster-rights-values.yaml")

    assert "account `prepared` needs the user role in namespace parctl" in notes("--values", file)
    assert "needs the user role" not in notes()


def rights_told(*settings: str) -> set[tuple[str, str, str]]:
    """Namespace, resource and verb of what a prepared account needs, as the notes say it."""
    said = notes("--set", ",".join(("rbac.create=false", *settings)))
    _, _, rest = said.partition("which rbac.create: false leaves to you:\n\n")
    found = set()
    for line in rest.partition("\n\n")[0].splitlines():
        about, _, verbs = line.strip().partition(": ")
        resource, _, namespace = about.partition(" in namespace ")
        found |= {(namespace, resource, verb) for verb in verbs.split(", ")}
    return found


def rights_given(*settings: str) -> set[tuple[str, str, str]]:
    """The same of the roles that the chart makes for discovery."""
    words = [word for setting in settings for word in ("--set", setting)]
    found = set()
    for each in render("helm4", *words):
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"].endswith(
            "-discovery"
        ):
            namespace = each["metadata"].get("namespace", "")
            for rule in each["rules"]:
                (group,), (resource,) = rule["apiGroups"], rule["resources"]
                kind, _, part = resource.partition("/")
                name = "/".join(filter(None, (".".join(filter(None, (kind, group))), part)))
                found |= {(namespace, name, verb) for verb in rule["verbs"]}
    return found


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("discovery.labels=true",),
        ("discovery.taintEffect=NoSchedule", "discovery.events=false"),
        ("discovery.publish=configMap",),
    ],
    ids=lambda settings: ",".join(settings) or "default",
)
def test_the_notes_list_the_rights_that_a_prepared_account_needs(settings: tuple[str, ...]) -> None:
    told = rights_told(*settings)

    assert told == rights_given(*settings)
    assert len(told) >= 3


def test_the_notes_say_how_people_get_to_read_records_that_are_config_maps() -> None:
    maps = ("--set", "discovery.publish=configMap")
    role = "create rolebinding parctl-GROUP --role=parctl-records --group=GROUP"

    assert f"kubectl -n parctl {role}" in notes(*maps)
    assert "create role parctl-records" not in notes(*maps)
    prepared = notes(*maps, "--set", "rbac.create=false")
    assert "create role parctl-records --verb=list --resource=configmaps" in prepared
    assert role in prepared
    assert "parctl-records" not in notes()


def test_discovery_takes_no_gpu() -> None:
    pod = one(rendered("default"), "DaemonSet")["spec"]["template"]["spec"]

    assert "nvidia.com/gpu" not in yaml.safe_dump(pod["containers"][0]["resources"])
    assert "hostNetwork" not in pod and "hostPID" not in pod


def write_goldens() -> int:
    GOLDENS.mkdir(exist_ok=True)
    for file in CI_VALUES:
        objects = render("helm4", "--values", str(file))
        name = f"{file.stem.removesuffix('-values')}.yaml"
        (GOLDENS / name).write_text(golden_text(objects))
    return 0


if __name__ == "__main__":
    sys.exit(write_goldens())
