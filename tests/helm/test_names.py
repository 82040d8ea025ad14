"""Names and labels that people may choose, however strange, and what becomes of them."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helm.chart import CHART, KUBERNETES, PROGRAM_NAMES, Object, helm, one, write_values

from parctl.launcher.run_id import check_run_id

LONG = "a" * 52  # Helm allows 53
_PART = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = re.compile(rf"{_PART}(\.{_PART})*")


def objects_of(program: str, release: str, namespace: str, *words: str) -> list[Object]:
    words = ("--namespace", namespace, "--kube-version", KUBERNETES, *words)
    done = helm(program, "template", release, str(CHART), *words)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from leaves(inside, f"{path}.{key}")
    elif isinstance(value, list):
        for inside in value:
            yield from leaves(inside, path)
    else:
        yield path, value


@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_names_that_look_like_numbers_stay_names(program: str) -> None:
    """A namespace `123` and a release `1e3` are legal, and YAML would take them for numbers."""
    account = "discovery.serviceAccount.name=4"
    words = ("--set-string", f"fullnameOverride=2e5,{account},discovery.priorityClassName=5")
    objects = objects_of(program, "1e3", "123", *words)

    named = [
        (path, value)
        for each in objects
        for path, value in leaves(each)
        if path.endswith(("name", "Name", "namespace", "instance")) and ".schema." not in path
    ]
    assert [found for found in named if not isinstance(found[1], str)] == []
    assert {str(value) for path, value in named} >= {"123", "1e3", "2e5-discovery", "4"}


def test_releases_whose_long_names_begin_alike_share_nothing() -> None:
    first, second = (
        {
            (each["kind"], each["metadata"]["name"])
            for each in objects_of("helm4", LONG + end, LONG, "--set", "crds.install=false")
        }
        for end in "bc"
    )

    assert first & second == set()


# where a long release is cut: at a dot, at a hyphen, between letters
@pytest.mark.parametrize("release", ["a" * 30 + ".bcdefghij", "a" * 30 + "-bcdefghij", LONG])
@pytest.mark.parametrize("namespace", ["n", "b" * 63])
def test_every_name_of_a_long_release_is_one_that_the_api_server_takes(
    release: str, namespace: str
) -> None:
    for each in objects_of("helm4", release, namespace):
        name = each["metadata"]["name"]
        assert SUBDOMAIN.fullmatch(name), (each["kind"], name)


@pytest.mark.parametrize("release", ["parctl", "my.rel", "7up", "1.2", LONG + "b"])
def test_the_run_of_helm_test_has_a_legal_id_whatever_the_release_is_called(release: str) -> None:
    pod = one(objects_of("helm4", release, "n"), "Pod")
    (script,) = pod["spec"]["containers"][0]["args"]
    (prefix,) = re.findall(r"^RUN=(.*)\$\(date", script, re.MULTILINE)

    assert check_run_id(f"{prefix}123456") == f"{prefix}123456"


def test_two_grants_in_one_namespace_are_one_binding(tmp_path: Path) -> None:
    subjects = [{"kind": "User", "name": name} for name in ("ada", "bo")]
    users = [{"namespace": "team-a", "subjects": [subject]} for subject in (*subjects, subjects[0])]
    values = write_values(tmp_path, "grants", {"access": {"users": users}})

    binding = one(
        objects_of("helm4", "r", "n", "-f", str(values)), "RoleBinding", "n-r-parctl-user"
    )

    assert [subject["name"] for subject in binding["subjects"]] == ["ada", "bo"]


def test_labels_of_the_platform_are_taken_and_those_that_select_pods_are_not() -> None:
    part_of = r"commonLabels.app\.kubernetes\.io/part-of=platform"
    for each in objects_of("helm4", "r", "n", "--set", part_of):
        assert each["metadata"]["labels"]["app.kubernetes.io/part-of"] == "platform"

    for place in ("commonLabels", "discovery.podLabels"):
        setting = rf"{place}.app\.kubernetes\.io/instance=other"
        done = helm("helm4", "template", "r", str(CHART), "--set", setting, check=False)
        assert "app.kubernetes.io/instance" in done.stderr and done.stdout == ""


@pytest.mark.parametrize("program", PROGRAM_NAMES)
def test_a_chart_that_this_one_is_part_of_turns_it_off_by_condition(
    program: str, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(CHART, whole / "charts" / "parctl")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    part = {"name": "parctl", "version": version, "condition": "parctl.enabled"}
    about = {"apiVersion": "v2", "name": "whole", "version": "1.0.0", "dependencies": [part]}
    (whole / "Chart.yaml").write_text(yaml.safe_dump(about))
    words = ("template", "w", str(whole), "--set")

    assert "kind: DaemonSet" in helm(program, *words, "parctl.enabled=true").stdout
    assert "kind:" not in helm(program, *words, "parctl.enabled=false").stdout


def test_a_recipe_for_the_test_is_text_whatever_is_in_it(tmp_path: Path) -> None:
    recipe = ' leading: space\n tab: "\t{{ .Release.Name }}"\n---\nkind: Secret\n'
    values = write_values(tmp_path, "recipe", {"test": {"recipe": recipe}})

    objects = objects_of("helm4", "r", "n", "-f", str(values))

    assert one(objects, "ConfigMap")["data"]["recipe.yaml"] == recipe
    assert not any(each["kind"] == "Secret" for each in objects)
