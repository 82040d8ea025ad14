"""values.yaml, its schema and the README's table say the same, and the schema lets nothing by."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.helm.chart import (
    CHART,
    CI_VALUES,
    PROGRAM_NAMES,
    helm,
    merged,
    render,
    values_of,
    write_values,
)
from tests.helm.readme import README, described_keys, value_at, with_table
from tests.helm.wrong_values import full_values, wrong_values

from parctl._version import __version__

NUM_IN_PROCESS = 1000
NUM_THROUGH_HELM = 50
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
KUEUE = "kueue.enabled=true,kueue.clusterQueue.quotas.cpu=1"
SUBJECT = "access.users[0].subjects[0]"
USERS = f"access.users[0].namespace=a,{SUBJECT}.kind=User,{SUBJECT}.name=u"
ENV, VOLUMES = "discovery.extraEnv", "discovery.extraVolumes"
MOUNTS = "discovery.extraVolumeMounts"
ROOTED = "discovery.privileged=true,discovery.driver.root=/run/nvidia/driver"
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def values_at(place: str, value: Any) -> dict[str, Any]:
    """Values with this one at a dotted path, and nothing else."""
    values: Any = value
    for key in reversed(place.split(".")):
        values = {key: values}
    return dict(values)


def node_affinity(operator: str, values: list[str]) -> dict[str, Any]:
    rule = {"key": "example.com/generation", "operator": operator, "values": values}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    return {"requiredDuringSchedulingIgnoredDuringExecution": terms}


def refusal(values: dict[str, Any]) -> str:
    """Everything that the schema has against the values, with the places."""
    errors = VALIDATOR.iter_errors(values)
    return "\n".join(f"{error.json_path}: {error.message[:2000]}" for error in errors)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


def test_the_defaults_pass() -> None:
    assert refusal(VALUES) == ""


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.stem)
def test_the_values_of_every_branch_pass(file: Path) -> None:
    assert refusal(merged(VALUES, values_of(file))) == ""


def test_every_value_is_described_and_has_a_schema() -> None:
    described = dict(described_keys((CHART / "values.yaml").read_text()))

    def leaves(value: Any, schema: Any, path: str) -> None:
        properties = schema.get("properties")
        if path in described or properties is None:
            assert path in described, path
            return
        assert set(value) == set(properties), path
        for key in value:
            leaves(value[key], properties[key], f"{path}.{key}".lstrip("."))

    leaves(VALUES, SCHEMA, "")
    assert len(described) > 50
    for path in described:
        value_at(VALUES, path)


def test_the_full_values_that_are_made_wrong_are_right() -> None:
    assert refusal(full_values()) == ""


def test_a_thousand_wrong_files_are_refused_with_the_key_named() -> None:
    kinds = set()
    for seed in range(NUM_IN_PROCESS):
        wrong = wrong_values(seed)
        said = refusal(wrong.values)
        assert said, f"seed {seed}: {wrong.what} passes"
        assert wrong.key in said, f"seed {seed}: {wrong.what}: {said}"
        kinds.add(wrong.what)
    assert len(kinds) > NUM_IN_PROCESS / 2


def test_helm_itself_refuses_wrong_files_and_names_the_key(tmp_path: Path) -> None:
    for seed in range(NUM_THROUGH_HELM):
        program = ("helm3", "helm4")[seed % 2]
        wrong = wrong_values(10_000 + seed)
        file = tmp_path / f"{seed}.yaml"
        file.write_text(yaml.safe_dump(wrong.values))
        words = ("template", "parctl", str(CHART), "--values", str(file))
        done = helm(program, *words, check=False)
        assert done.returncode != 0, f"seed {10_000 + seed}: {wrong.what} passes"
        assert done.stdout == ""
        said = done.stderr.replace("~1", "/")  # as JSON pointers write it
        assert wrong.key in said, f"seed {10_000 + seed}: {wrong.what}: {said}"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("image.registry", "https://mirror.example.com"),
        ("image.repository", "ml//parctl"),
        ("commonLabels", {"a" * 80: "b"}),
        ("commonAnnotations", {"helm.sh/hook": "post-install"}),
        ("discovery.affinity.nodeAffinity", {"requiredDuringScheduling": {}}),
        ("discovery.affinity.podAffinity", {"foo": 1}),
        ("discovery.extraEnv", [{"name": "A", "value": "a", "valueFrom": {"fieldRef": {}}}]),
        ("discovery.extraEnv", [{"name": "A", "valueFrom": {"fieldRef": {"path": "a"}}}]),
        ("discovery.extraEnv", [{"name": "PARCTL_NODE", "value": "a"}]),
        ("discovery.extraVolumes", [{"name": "v", "hostPath": {"paht": "/x"}}]),
        ("discovery.tolerations", [{"operator": "Exists", "key": "a", "value": "x"}]),
        ("discovery.tolerations", [{"effect": "NoSchedule"}]),
        ("discovery.serviceAccount.name", "a..b"),
        ("discovery.driver.root", "/a/../b"),
        ("discovery.driver.cdiDevice", "-/-=a"),
        ("commonLabels", {"a..b/x": "y"}),
        ("commonLabels", {"a.-b/x": "y"}),
        ("commonLabels", {"a" * 254 + "/x": "y"}),
        ("commonAnnotations", {"a..b/x": "y"}),
        ("discovery.nodeSelector", {"a-/x": "y"}),
        ("discovery.tolerations", [{"operator": "Exists", "key": "a..b/x"}]),
        ("kueue.topology.levels", ["a..b/x"]),
        ("discovery.resources.limits", {"nvidia.com/gpu": 1.5}),
        ("discovery.resources.limits", {"nvidia.com/gpu": "1500m"}),
        ("discovery.resources.requests", {"a..b/x": 1}),
        ("discovery.resources", {"claims": [{"name": "gpu"}]}),
        ("discovery.affinity.nodeAffinity", node_affinity("Gt", ["x"])),
        ("discovery.affinity.nodeAffinity", node_affinity("Lt", ["1", "2"])),
        ("discovery.affinity.nodeAffinity", node_affinity("Gt", ["1.5"])),
        ("discovery.affinity.nodeAffinity", node_affinity("Lt", [])),
        ("networkPolicy.apiServerCIDRs", ["10.0.0.1"]),
        ("networkPolicy.apiServerCIDRs", ["10.0.0.256/32"]),
        ("networkPolicy.apiServerCIDRs", ["10.0.0.0/33"]),
        ("networkPolicy.apiServerCIDRs", ["fd00::1::2/128"]),
        ("networkPolicy.apiServerCIDRs", ["fd00::1/129"]),
        ("networkPolicy.apiServerCIDRs", ["api.example.com"]),
    ],
)
def test_what_the_api_server_would_refuse_the_schema_refuses(place: str, value: Any) -> None:
    assert place in refusal(merged(VALUES, values_at(place, value)))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("commonLabels", {"a.b-c.d/x_y.z": "y", "plain": "", "a" * 253 + "/x": "y"}),
        ("commonAnnotations", {"example.com/note": "any text: at all"}),
        ("discovery.resources.limits", {"nvidia.com/gpu": 1, "cpu": 1.5, "memory": "1.5Gi"}),
        ("discovery.resources.limits", {"example.com/bytes": "4Gi"}),
        ("discovery.affinity.nodeAffinity", node_affinity("Gt", ["-1"])),
        ("discovery.affinity.nodeAffinity", node_affinity("In", ["x", "y"])),
        ("kueue.flavor.nodeLabels", {}),
        ("kueue.clusterQueue.quotas", {"example.com/share": "1500m"}),
        ("networkPolicy.apiServerCIDRs", ["10.0.0.0/8", "0.0.0.0/0", "255.255.255.255/32"]),
        ("networkPolicy.apiServerCIDRs", ["::/0", "fd00::/8", "1:2:3:4:5:6:7:8/128", "a::B:1/64"]),
    ],
)
def test_what_the_api_server_takes_the_schema_lets_through(place: str, value: Any) -> None:
    assert refusal(merged(VALUES, values_at(place, value))) == ""


@pytest.mark.parametrize("program", PROGRAM_NAMES)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("commonLabels", {"a..b/x": "y"}),
        ("commonAnnotations", {"a" * 254 + "/x": "y"}),
        ("discovery.resources.limits", {"nvidia.com/gpu": 1.5}),
        ("discovery.affinity.nodeAffinity", node_affinity("Gt", ["x"])),
        ("networkPolicy.apiServerCIDRs", ["fd00::1/129"]),
    ],
)
def test_both_helms_read_these_patterns_as_we_do(
    program: str, place: str, value: Any, tmp_path: Path
) -> None:
    file = write_values(tmp_path, "values", values_at(place, value))
    done = helm(program, "template", "parctl", str(CHART), "--values", str(file), check=False)

    assert done.returncode != 0
    assert place.rpartition(".")[2] in done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("discovery.driver.root=/run/nvidia/driver", "needs discovery.privileged: true"),
        ("kueue.enabled=true", "kueue.clusterQueue.quotas is empty"),
        (f"{KUEUE},kueue.topology.create=false", "needs kueue.topology.name"),
        (f"{KUEUE},kueue.topology.levels={{kubernetes.io/hostname,a}}", "is the last"),
        ("rbac.create=false,rbac.aggregate=true", "which rbac.create: false leaves out"),
        (f"rbac.create=false,{USERS}", "which rbac.create: false leaves out"),
        ("discovery.serviceAccount.create=false", "needs discovery.serviceAccount.name"),
        ("discovery.pollSeconds=400", "pollSeconds is longer"),
        ("discovery.resources.requests.memory=1Gi", "more than limits.memory, 96Mi"),
        (f"{ENV}[0].name=A,{ENV}[1].name=A", "A is there already"),
        (f"{ENV}[0].name=NVIDIA_VISIBLE_DEVICES", "is there already"),
        (f"{VOLUMES}[0].name=sys,{VOLUMES}[0].emptyDir.medium=", "the name sys is taken"),
        (
            f"{ROOTED},{VOLUMES}[0].name=driver,{VOLUMES}[0].emptyDir.medium=",
            "name driver is taken",
        ),
        (f"{ROOTED},{MOUNTS}[0].name=driver,{MOUNTS}[0].mountPath=/driver", "/driver is taken"),
        (f"{MOUNTS}[0].name=driver,{MOUNTS}[0].mountPath=/a", "there is no volume driver"),
        (f"{MOUNTS}[0].name=nope,{MOUNTS}[0].mountPath=/a", "there is no volume nope"),
        (f"{MOUNTS}[0].name=run,{MOUNTS}[0].mountPath=/sys", "/sys is taken"),
        ("test.recipe=a: b: c", "test.recipe is no YAML"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_words(setting: str, words: str) -> None:
    done = helm("helm4", "template", "parctl", str(CHART), "--set", setting, check=False)

    assert done.returncode != 0
    assert words in done.stderr


def test_a_volume_may_be_called_driver_where_the_chart_has_none(tmp_path: Path) -> None:
    volume = {"name": "driver", "emptyDir": {}}
    mount = {"name": "driver", "mountPath": "/driver"}
    values = {"discovery": {"extraVolumes": [volume], "extraVolumeMounts": [mount]}}
    file = write_values(tmp_path, "volumes", values)

    (daemons,) = (
        each for each in render("helm4", "--values", str(file)) if each["kind"] == "DaemonSet"
    )
    pod = daemons["spec"]["template"]["spec"]
    assert volume in pod["volumes"]
    assert mount in pod["containers"][0]["volumeMounts"]


def test_config_maps_and_labels_contradict_each_other() -> None:
    setting = "discovery.publish=configMap,discovery.labels=true"
    done = helm("helm4", "template", "parctl", str(CHART), "--set", setting, check=False)

    assert "for those who may not" in done.stderr


def test_the_table_in_the_readme_is_current() -> None:
    text = README.read_text()

    assert with_table(text) == text, "run `python -m tests.helm.readme`"


def test_the_chart_is_of_the_version_of_parctl() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert about["appVersion"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    # Artifact Hub reads YAML inside of YAML
    for key in ("artifacthub.io/crds", "artifacthub.io/crdsExamples", "artifacthub.io/changes"):
        assert isinstance(yaml.safe_load(about["annotations"][key]), list)
