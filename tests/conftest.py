"""Every test starts from a clean environment and its own state and config directories."""

import os
import signal
from pathlib import Path

import pytest

pytest_plugins = ("tests.cluster.fixtures",)

# A background job of a shell is started with ^C ignored, and would hand that on to every program
# that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LEAKING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "KUBECONFIG", "CUDA_VISIBLE_DEVICES", "NO_COLOR")
LEAKING_PREFIXES = ("MASTER_", "TORCHELASTIC_", "PARCTL_", "RAY_")


@pytest.fixture(autouse=True)
def clean_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the directory that holds this test's XDG state and config."""
    for name in list(os.environ):
        if name in LEAKING or name.startswith(LEAKING_PREFIXES):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    return home
