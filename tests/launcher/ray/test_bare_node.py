"""What runs on the cluster needs Ray, torch and numpy there, and parctl's own package."""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from parctl.launcher.ray.packages import parctl_package

# what parctl depends on where people type, and a node need not have
ABSENT = ("typer", "pydantic", "rich", "pynvml", "tokenizers", "transformers", "kubernetes")
BLOCK = """\
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib
for module in sys.argv[1:]:
    importlib.import_module(module)
    assert sys.modules["parctl"].__file__.startswith({folder!r}), sys.modules["parctl"].__file__
"""


@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        (
            (*ABSENT, "yaml"),
            [
                "parctl.launcher.ray.driver",
                "parctl.launcher.ray.agent",
                "parctl.launcher.nodes.node",
                "parctl.launcher.ray.look",
                "parctl.launcher.nodes.fewer",
            ],
        ),
        ((*ABSENT, "yaml", "ray"), ["parctl.runtime.worker", "parctl.runtime.preflight"]),
    ],
)
def test_the_package_alone_is_enough(
    tmp_path: Path, absent: tuple[str, ...], modules: list[str]
) -> None:
    with zipfile.ZipFile(BytesIO(parctl_package().zipped())) as archive:
        archive.extractall(tmp_path)
    code = BLOCK.format(absent=set(absent), folder=str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code, *modules],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
    )

    assert ran.returncode == 0, ran.stderr
