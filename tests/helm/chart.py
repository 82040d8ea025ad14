"""The chart as tests see it: its files, its values, and what Helm makes of them."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.image import BASE
from tests.cluster.programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "parctl"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = PROGRAMS["kubelet"].version  # Helm 3 as built plainly believes in 1.20
PROGRAM_NAMES = ("helm3", "helm4")
# the image of the test cluster, which is in no registry
IMAGE_VALUES = {
    "image": {
        "registry": BASE.split("/")[0],
        "repository": BASE.split("/")[1].split(":")[0],
        "tag": BASE.rpartition(":")[2],
        "pullPolicy": "Never",
    }
}

Object = dict[str, Any]


def need(program: str) -> str:
    """The path of a Helm; the test is skipped, in one line, where it was not built."""
    found = PROGRAMS[program]
    if not found.built:
        pytest.skip(f"no {program} here: run `make cluster-deps`")
    return str(found.path)


def helm(
    program: str,
    *words: str,
    check: bool = True,
    timeout_s: float = 120,
    folder: Path | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run Helm with a home of its own."""
    home = folder or Path("/tmp/parctl-helm-home")
    variables = {
        f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")
    }
    done = subprocess.run(
        [need(program), *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if check:
        assert done.returncode == 0, f"helm {' '.join(words)}\n{done.stdout}{done.stderr}"
    return done


def render(program: str, *words: str) -> list[Object]:
    """Return the objects of `helm template`, release `parctl` in namespace `parctl`."""
    release = ("parctl", str(CHART), "--namespace", "parctl", "--kube-version", KUBERNETES)
    done = helm(program, "template", *release, *words)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def one(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The only object of a kind, or the one of that name."""
    found = [each for each in objects if each["kind"] == kind]
    if name is not None:
        found = [each for each in found if each["metadata"]["name"] == name]
    assert len(found) == 1, [(each["kind"], each["metadata"]["name"]) for each in objects]
    return found[0]


def values_of(file: Path) -> Object:
    return yaml.safe_load(file.read_text()) or {}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Object:
    """Values over values, as Helm puts them together: maps are joined, lists are replaced."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


def write_values(folder: Path, name: str, *parts: Mapping[str, Any]) -> Path:
    """Write a values file of these parts, the last the strongest."""
    whole: Object = {}
    for part in parts:
        whole = merged(whole, part)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(whole))
    return file


def copy_of_version(folder: Path, version: str) -> Path:
    """The chart as an older release might have been: its definition has a column less."""
    copy = folder / f"parctl-{version}"
    shutil.copytree(CHART, copy)
    file = copy / "Chart.yaml"
    about = yaml.safe_load(file.read_text())
    about["version"] = version
    file.write_text(yaml.safe_dump(about))
    definition = copy / "templates" / "crd.yaml"
    lines = definition.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.strip().startswith("- {name: Domain,")]
    assert len(kept) == len(lines) - 1
    definition.write_text("".join(kept))
    return copy
