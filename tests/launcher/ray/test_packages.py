"""What is sent: named by its content, whole, and nothing that no node needs."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.launcher.ray.packages import (
    MAX_BYTES,
    Package,
    parctl_package,
    run_package,
    workdir_package,
)


def test_equal_content_has_an_equal_name_whatever_its_order_and_age() -> None:
    one = Package(holds="a", files={"a.py": b"1", "b.py": b"2"})
    two = Package(holds="b", files={"b.py": b"2", "a.py": b"1"})

    assert one.uri == two.uri
    assert one.zipped() == two.zipped()
    assert one.uri.startswith("gcs://_ray_pkg_") and one.uri.endswith(".zip")


@pytest.mark.parametrize(
    "other",
    [
        {"a.py": b"1", "b.py": b"3"},
        {"a.py": b"1", "c.py": b"2"},
        {"a.py": b"12", "b.py": b""},
    ],
)
def test_other_content_has_another_name(other: dict[str, bytes]) -> None:
    first = Package(holds="", files={"a.py": b"1", "b.py": b"2"})
    assert Package(holds="", files=other).uri != first.uri


def test_parctl_sends_what_a_node_runs_and_no_command_line() -> None:
    files = parctl_package().files

    assert {
        "parctl/__init__.py",
        "parctl/errors.py",
        "parctl/launcher/ray/driver.py",
        "parctl/runtime/worker.py",
        "parctl/recipes/corpus/01-overview.md",
        "pynvml.py",  # nodes have NVML, and not what Python needs to ask it
    } <= set(files)
    assert not any(path.startswith("parctl/cli/") or "__pycache__" in path for path in files)


def test_the_plan_travels_as_a_file() -> None:
    assert run_package("{}", '{"a": 1}').files == {
        "parctl_run/plan.json": b"{}",
        "parctl_run/run.json": b'{"a": 1}',
    }


def test_a_working_directory_keeps_its_programs_and_loses_its_history(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / ".gitignore").write_text("*")  # says nothing of what a run needs
    (tmp_path / "train.py").write_text("print()")
    (tmp_path / "run.sh").write_text("#!/bin/sh")
    (tmp_path / "run.sh").chmod(0o755)
    package = workdir_package(tmp_path)

    assert sorted(package.files) == [".gitignore", "run.sh", "train.py"]
    with zipfile.ZipFile(io.BytesIO(package.zipped())) as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes == {".gitignore": 0o644, "run.sh": 0o755, "train.py": 0o644}


def test_more_than_ray_takes_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "big.bin").open("wb") as file:
        os.truncate(file.fileno(), MAX_BYTES + 1)  # a hole: it fills no disk

    with pytest.raises(UsageError, match=r"100 MiB, and Ray takes 100; largest in it: data"):
        workdir_package(tmp_path)
