"""The copy of parctl that an init container makes is whole without the rest of its image."""

import os
import subprocess
import sys
from pathlib import Path

from parctl.launcher.kubernetes.copy_agent import copy_package


def test_the_copied_agent_is_complete(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    assert not list(package.rglob("__pycache__"))
    assert not [path for path in package.rglob("*") if path.is_symlink()]
    program = (
        "import parctl.launcher.kubernetes.pod, parctl.launcher.kubernetes.leader, "
        "parctl.launcher.nodes.node as node; print(node.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program],  # no site packages: the standard library
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(str(tmp_path)), done.stderr
