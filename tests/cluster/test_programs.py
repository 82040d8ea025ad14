"""What is built, from which versions, and what is said when it cannot be."""

import os
import re
import shutil

import pytest
from tests.cluster import programs
from tests.cluster.programs import HERE, PROGRAMS, ProgramsMissing, build_one


def test_every_program_takes_its_version_from_a_go_module() -> None:
    assert PROGRAMS["kubelet"].version == PROGRAMS["kube-apiserver"].version
    assert all(re.fullmatch(r"v\d+\.\d+\.\d+", found.version) for found in PROGRAMS.values())


def test_the_libraries_are_of_the_release_of_the_programs() -> None:
    text = (HERE / "go.mod").read_text()
    minor_and_patch = PROGRAMS["kubelet"].version.removeprefix("v1.")

    replaced = re.findall(r"k8s\.io/\S+ => k8s\.io/\S+ v0\.(\S+)", text)

    assert len(replaced) > 30
    assert set(replaced) == {minor_and_patch}


def test_without_go_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(ProgramsMissing, match=r"Go is not here. hint: install Go 1\.26"):
        build_one(PROGRAMS["etcd"])


def test_without_root_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(
        ProgramsMissing, match=r"not installed: runc\. hint: run `make cluster-deps`"
    ):
        programs.install(["runc"])
