"""The command line on Kubernetes: dry runs, names of places, lists, errors and their codes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launcher.kubernetes.cases import TARGET, plan_of
from tests.launcher.kubernetes.fake_api import FakeApi, kubeconfig, serve
from tests.launcher.runs import run_lightly

from parctl.cli.main import run
from parctl.launcher.kubernetes.client import Client
from parctl.launcher.kubernetes.kubeconfig import find_access
from parctl.launcher.kubernetes.render import render
from parctl.launcher.kubernetes.submit import submit
from parctl.recipes.kubernetes_spec import KubernetesSpec

RECIPE = """
version: 1
name: hello
task: script
script: {command: [python3, -c, "print(1)"], axes: {dp: 4}}
launch: {backend: kubernetes, image: "parctl.test/base:1", kubernetes: {kind: job}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "hello.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    with serve() as (api, address):
        path = kubeconfig(tmp_path / "config", address, token="t")
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield api


def test_a_dry_run_prints_all_objects_and_contacts_nothing(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", recipe, "--dry-run", "--cluster", "h100:2x2", "-n", "team-b"]
    assert run([*words, "--run-id", "hello-1"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [each["kind"] for each in documents] == [
        "ConfigMap",
        "Service",
        "NetworkPolicy",
        "Job",
    ]
    assert {each["metadata"]["namespace"] for each in documents} == {"team-b"}
    assert {each["metadata"]["labels"]["parctl.dev/run"] for each in documents} == {"hello-1"}


def test_choices_that_need_privilege_say_why(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", recipe, "--dry-run", "--cluster", "h100:2x2"]
    choices = {"host_network": "true", "rdma": "{rdma/hca: 1}"}
    volumes = "{nfs: {mount: /mnt/nfs, host_path: /srv/nfs}}"
    set_ = [f"launch.kubernetes.{key}={value}" for key, value in choices.items()]
    set_.append(f"launch.kubernetes.volumes={volumes}")

    assert run([*words, *(word for each in set_ for word in ("--set", each))]) == 0
    said = capsys.readouterr().err.splitlines()

    assert len(said) == 3
    assert all("the namespace has to enforce no more than `privileged`" in each for each in said)
    assert "network of their node" in said[0]
    assert "/srv/nfs" in said[1]
    assert "IPC_LOCK" in said[2]


def test_a_dry_run_needs_to_know_the_nodes(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["launch", recipe, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "a dry run contacts nothing" in error and "--cluster h100:2x8" in error


def test_a_work_folder_is_sent_along(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("print(1)")
    words = ["launch", recipe, "--dry-run", "--cluster", "h100:2x2"]
    assert run([*words, "--set", f"launch.workdir={tmp_path / 'src'}"]) == 0
    first = next(yaml.safe_load_all(capsys.readouterr().out))
    assert "workdir.tar.gz.000" in first["binaryData"]


def test_an_unknown_namespace_of_a_recipe_is_no_label(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", recipe, "--dry-run", "--cluster", "h100:2x2"]
    assert run([*words, "--set", "launch.kubernetes.namespace=Team A"]) == 2
    assert "launch.kubernetes.namespace" in capsys.readouterr().err


def test_without_a_cluster_a_launch_is_exit_2(
    recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["launch", recipe, "--cluster", "h100:2x2"]) == 2


def test_an_unreachable_cluster_is_exit_5(
    recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "c", "http://127.0.0.1:9")))
    assert run(["status", "hello-1", "-b", "kubernetes"]) == 5


def submitted(run_id: str, owner: str) -> None:
    from dataclasses import replace

    client = Client(find_access(None))
    target = replace(TARGET, owner=owner)
    submit(client, render(plan_of(KubernetesSpec(kind="job")), run_id, target))


def test_a_list_shows_the_runs_of_the_namespace_or_only_mine(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted("one", "ada")
    submitted("two", "eve")
    monkeypatch.setenv("PARCTL_OWNER", "ada")
    assert run(["list", "-b", "kubernetes", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["one", "two"]
    assert run(["list", "-b", "kubernetes", "--mine", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["one"]
    found: Any = json.loads("[]")
    assert run(["list", "-b", "kubernetes", "-n", "team-z", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("words", [["list"], ["status", "one"]], ids=" ".join)
def test_looking_at_runs_loads_neither_planner_nor_specs(api: FakeApi, words: list[str]) -> None:
    """Whoever looks pays for every import; pydantic is not among these, for Typer wants it."""
    submitted("one", "ada")
    heavy = {"parctl.planner", "parctl.recipes.spec", "kubernetes", "numpy", "torch"}
    assert run_lightly([*words, "-b", "kubernetes"], heavy) == (0, "")


def test_an_unknown_run_names_the_namespace(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "absent", "-b", "kubernetes"]) == 2
    assert "absent" in capsys.readouterr().err


def test_a_server_side_dry_run_creates_nothing(
    api: FakeApi, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", recipe, "--cluster", "h100:2x2", "--dry-run-server"]
    assert run(words) == 0
    assert api.objects == {}
    applied = [path for method, path in api.asked if method == "PATCH"]
    assert len(applied) == 5 and all("dryRun=All" in path for path in applied)
    assert "/pods/" in applied[-1]  # which the workload's own dry run does not make
    assert "nothing was created" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("why", "code", "words"),
    [
        ('User "ada" cannot patch resource "pods" in API group ""', 0, "as far as can be told"),
        ("exceeded quota: q, requested: pods=1", 2, "a pod of the run is refused by a quota"),
    ],
)
def test_a_pod_that_would_be_refused_is_told(
    api: FakeApi, recipe: str, capsys: pytest.CaptureFixture[str], why: str, code: int, words: str
) -> None:
    said = {"reason": "Forbidden", "message": f'pods "x" is forbidden: {why}'}
    api.refuse = lambda method, path: (403, said) if "/pods/" in path else None
    assert run(["launch", recipe, "--cluster", "h100:2x2", "--dry-run-server"]) == code
    assert words in capsys.readouterr().err


def test_later_commands_are_told_the_flags_of_the_launch(
    api: FakeApi, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", recipe, "--cluster", "h100:2x2", "--run-id", "one", "-n", "team-b"]
    assert run(words) == 0
    assert "`parctl logs one -b kubernetes -n team-b --follow`" in capsys.readouterr().err

    assert run(words) == 0
    said = capsys.readouterr().err
    assert "exists already with the same plan and is Pending; nothing was started" in said
    assert "follow it" not in said


def test_who_may_read_jobs_alone_has_no_other_runs(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted("one", "ada")
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "cannot list"}) if "/jobs" not in path else None
    )
    assert run(["list", "-b", "kubernetes", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["one"]
    api.refuse = lambda method, path: (403, {"reason": "Forbidden", "message": "cannot list"})
    assert run(["list", "-b", "kubernetes", "-o", "name"]) == 5


def test_only_kubernetes_has_a_server_to_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "here.yaml"
    path.write_text(RECIPE.replace("backend: kubernetes", "backend: local"), encoding="utf-8")
    assert run(["launch", str(path), "--dry-run-server"]) == 2
    assert "asks a Kubernetes cluster" in capsys.readouterr().err
