"""Where parctl's own files are. Light, as every command begins here."""

import os
from pathlib import Path

from parctl.errors import UsageError

MAX_RUN_ID = 40  # characters


def home() -> Path:
    """The user's home. UsageError: HOME is not set and nobody has this user id."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise UsageError(
            "this user has no home directory",
            hint="set HOME, or XDG_STATE_HOME and XDG_CONFIG_HOME",
        ) from error


def config_file() -> Path:
    """Where the settings are. XDG says that a relative path is to be ignored."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not config_home.is_absolute():
        config_home = home() / ".config"
    return config_home / "parctl" / "config.yaml"


def runs_root() -> Path:
    """Where the runs of this user are. XDG says that a relative path is to be ignored."""
    state_home = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state_home.is_absolute():
        state_home = home() / ".local" / "state"
    return state_home / "parctl" / "runs"


def ahead_log() -> Path:
    """A file for what is started before there is a run directory to write in."""
    return runs_root() / f".ahead-{os.getpid()}-{os.urandom(4).hex()}.log"
