"""The repository keeps its shape: one link per package, a complete wheel, a light start."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cli", "launcher", "planner", "recipes", "runtime", "topology")
HEAVY = ("torch", "ray", "kubernetes", "numpy", "pydantic", "yaml", "rich")


def tracked_files() -> list[str]:
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode != 0:
        pytest.skip("not a git checkout")
    return git.stdout.splitlines()


def test_src_holds_one_relative_link_per_package_folder() -> None:
    links = {
        path.name: path.readlink() for path in (ROOT / "src/parctl").iterdir() if path.is_symlink()
    }

    assert links == {name: Path("../..") / name for name in PACKAGES}


def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())

    wanted = {
        f"parctl/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".yaml", ".md") and "__pycache__" not in path.parts
    }
    assert len(wanted) > 60
    assert wanted - names == set()
    assert {"parctl/__main__.py", "parctl/api.py", "parctl/errors.py", "parctl/py.typed"} <= names


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_starting_parctl_loads_no_heavy_package(words: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parctl", *words], capture_output=True, text=True
    )
    assert shown.returncode == 0
    loaded = set(re.findall(r"\|\s+(\w+)(?:\.\w+)*$", shown.stderr, re.MULTILINE))

    assert "parctl" in loaded
    assert loaded & set(HEAVY) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["validate", "tiny-llama"],
        ["topology", "--from", "h100:2x8"],
        ["plan", "llama-70b", "--cluster", "h100:16x8"],
    ],
)
def test_planning_loads_no_torch_ray_or_kubernetes(words: list[str]) -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "parctl", *words], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    loaded = set(re.findall(r"\|\s+(\w+)(?:\.\w+)*$", shown.stderr, re.MULTILINE))

    assert loaded & {"torch", "ray", "kubernetes"} == set()


def test_no_lock_file_and_no_download_address_is_committed() -> None:
    hosts = re.compile(r"pypi\.org|pythonhosted|--index-url|proxy\.golang")
    for name in tracked_files():
        assert not name.endswith((".lock", "package-lock.json"))
        if name.endswith((".txt", ".toml", ".cfg", "Makefile", "run")):
            assert not hosts.search((ROOT / name).read_text()), name


def test_every_module_opens_with_a_docstring_and_stays_readable() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert text.startswith('"""'), path
            assert text.isascii(), path
            assert len(text.splitlines()) <= 400, path


def test_every_error_class_is_in_the_tree_of_the_docstring() -> None:
    text = (ROOT / "src/parctl/errors.py").read_text()
    docstring, code = text.split('"""', 2)[1:]

    for name in re.findall(r"^class (\w+Error)\(", code, re.MULTILINE):
        assert name in docstring
        assert f"`{name}`" in (ROOT / "docs/errors.md").read_text()
