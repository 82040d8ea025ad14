"""Copy parctl into a folder: `python -m parctl.launcher.kubernetes.copy_agent FOLDER`.

An init container of parctl's own image runs it, so that the agent can run in an image that has only
Python and whatever the user's program needs.
"""

import shutil
import sys
from pathlib import Path

import parctl


def copy_package(folder: Path) -> Path:
    """Copy the package, links followed, without what its own build left there."""
    (source,) = map(Path, parctl.__path__)
    target = folder / "parctl"
    shutil.copytree(
        source,
        target,
        symlinks=False,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "tests"),
    )
    return target


if __name__ == "__main__":
    copy_package(Path(sys.argv[1]))
