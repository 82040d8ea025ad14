"""The daemon's settings: what the chart sets, what is missing, what is wrong."""

import re
import subprocess
import sys

import pytest
from tests.helm.chart import CHART

from parctl.cli.discover import pace_of, target_of
from parctl.errors import UsageError

NEEDED = {
    "PARCTL_NODE": "gpu-1",
    "PARCTL_POD": "discovery-x",
    "PARCTL_POD_UID": "u-2",
    "PARCTL_POD_NAMESPACE": "parctl",
}


def test_the_settings_of_a_pod_become_a_target() -> None:
    target = target_of({**NEEDED, "PARCTL_LABELS": "true", "PARCTL_TAINT_EFFECT": "NoSchedule"})

    assert (target.node, target.publish, target.namespace) == ("gpu-1", "crd", "parctl")
    assert target.config_map == "parctl-topology-gpu-1"
    assert (target.labels, target.events, target.taint_effect) == (True, False, "NoSchedule")


def test_no_effect_is_no_taint() -> None:
    assert target_of({**NEEDED, "PARCTL_TAINT_EFFECT": ""}).taint_effect is None


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not set"):
        target_of({key: value for key, value in NEEDED.items() if key != name})


def test_a_wrong_kind_of_publishing_is_named() -> None:
    with pytest.raises(UsageError, match="PARCTL_PUBLISH = crds, expected crd or configMap"):
        target_of({**NEEDED, "PARCTL_PUBLISH": "crds"})


def test_the_chart_sets_every_variable_that_is_read_and_no_other() -> None:
    template = (CHART / "templates/discovery/daemonset.yaml").read_text()
    given = set(re.findall(r"name: (PARCTL_\w+)", template))
    code = sys.modules["parctl.cli.discover"].__file__
    assert code is not None
    with open(code) as file:
        read = set(re.findall(r'"(PARCTL_\w+)"', file.read()))

    assert given == read


def test_the_pace_is_slow_by_default() -> None:
    pace = pace_of({})

    assert (pace.interval_s, pace.poll_s) == (300.0, 10.0)
    assert (pace.alive, pace.published) == (None, None)


def test_the_daemon_loads_neither_the_command_line_nor_the_planner() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parctl.cli.discover"],
        capture_output=True,
        text=True,
        env={},
    )
    assert shown.returncode == 2
    loaded = set(re.findall(r"\|\s+([\w.]+)$", shown.stderr, re.MULTILINE))

    assert "parctl.topology.discovery.loop" in loaded
    heavy = {"typer", "rich", "pydantic", "numpy", "torch", "pynvml", "parctl.planner"}
    assert loaded & heavy == set()
