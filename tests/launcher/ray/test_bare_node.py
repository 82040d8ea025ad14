"""What runs on the cluster needs Ray, torch and numpy there, and parctl's own package.

The cluster of these tests has no more (`conftest`). Ray itself brings pydantic and yaml along, so
those two are hidden from what is imported there.
"""

import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from tests.launcher.ray.runs import SMALL_NODES, ended, launch, script

from parctl.launcher.backend import State
from parctl.launcher.ray.backend import RayBackend
from parctl.launcher.ray.packages import parctl_package

# what parctl depends on where people type, and a node need not have
ABSENT = ("typer", "pydantic", "rich", "tokenizers", "transformers", "kubernetes")
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


def test_a_node_of_these_tests_sees_nothing_else(
    bare: str, backend: RayBackend, tmp_path: Path
) -> None:
    names = ("parctl", "pynvml", "ray", "torch", "numpy", *ABSENT[:1], *ABSENT[2:])
    look = (
        "import importlib.util, sys\n"
        f"print(sys.prefix, *(n for n in {names!r} if importlib.util.find_spec(n)))"
    )
    # -I: without the package that is sent along
    launch(script(tmp_path, ["python3", "-I", "-c", look], {"dp": 1}), SMALL_NODES, run_id="bare-1")

    assert ended(backend, "bare-1").state is State.SUCCEEDED
    lines = backend.logs("bare-1", rank=0, since=None, tail=None, follow=False)
    assert [line.text for line in lines] == [f"{Path(bare).parents[1]} ray torch numpy"]
