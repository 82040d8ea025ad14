"""A cluster that is named by its kind alone is the one that runs go to."""

from pathlib import Path

import pytest

from parctl.cli.main import run as parctl
from parctl.cli.options import with_address


def test_ray_alone_is_the_address_that_runs_go_to(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert with_address("ray") == "ray"
    monkeypatch.setenv("PARCTL_ADDRESS", "head:1")
    assert with_address("ray") == "ray:head:1"
    assert [with_address(source) for source in (None, "ray:other:2", "h100:2x8")] == [
        None,
        "ray:other:2",
        "h100:2x8",
    ]


@pytest.mark.parametrize("words", [["topology"], ["plan", "tiny-llama"]])
def test_commands_that_take_a_cluster_ask_that_address(
    clean_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    monkeypatch.setenv("PARCTL_ADDRESS", "127.0.0.1:9")

    assert parctl([*words, "--from", "ray"]) == 5
    assert "Ray at http://127.0.0.1:9 does not answer" in capsys.readouterr().err
