"""The driver gives up the packages that Ray would unpack for its workers, and nothing else."""

import json
import os

import pytest

from parctl.launcher.ray.actor import JOB_CONFIG, give_up_packages


def job(**runtime_env: object) -> str:
    return json.dumps({"runtime_env": runtime_env, "metadata": {"name": "tiny"}})


def test_workers_start_without_packages_and_agents_are_told_parctls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uris = ["gcs://_ray_pkg_parctl.zip", "gcs://_ray_pkg_run.zip"]
    monkeypatch.setenv(JOB_CONFIG, job(py_modules=uris, env_vars={"A": "1"}))

    assert give_up_packages() == "gcs://_ray_pkg_parctl.zip"
    assert json.loads(os.environ[JOB_CONFIG]) == {"runtime_env": {}, "metadata": {"name": "tiny"}}


def test_a_working_directory_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"py_modules": ["gcs://a.zip"], "working_dir": "gcs://b.zip"}
    monkeypatch.setenv(JOB_CONFIG, job(**sent))
    give_up_packages()

    assert json.loads(os.environ[JOB_CONFIG])["runtime_env"] == {"working_dir": "gcs://b.zip"}


def test_where_parctl_is_installed_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = job(env_vars={"PYTHONPATH": "/etc/parctl"})
    monkeypatch.setenv(JOB_CONFIG, installed)

    assert give_up_packages() is None
    assert os.environ[JOB_CONFIG] == installed
    monkeypatch.delenv(JOB_CONFIG)
    assert give_up_packages() is None
