"""What is sent to the cluster: zip files that are named by their content.

Ray keeps a package under its name and unpacks it once per node, so a second launch sends nothing
that is there already. Two go with every run: parctl, with the module by which it asks GPUs, and the
plan with the driver's settings; a third is the working directory of a script.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import parctl
from parctl.errors import UsageError

MAX_BYTES = 100 * 2**20  # the largest body that Ray's dashboard takes
RUN_FOLDER = "parctl_run"  # in the package of a run
NVML = "pynvml"  # one file of pure Python: nodes have the driver, and seldom this
LEFT_AT_HOME = ("cli", "__pycache__", "tests")  # folders of parctl that no node needs
NOT_WORK = (".git", ".hg", ".svn", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache")
SHIPPED = "the directory that was sent along"  # in place of a path in the settings
DATE = (1980, 1, 1, 0, 0, 0)  # of every file, so that equal content makes equal packages


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    holds: str  # for people
    files: Mapping[str, bytes]  # by the path inside
    programs: frozenset[str] = frozenset()  # paths that may be executed

    @property
    def uri(self) -> str:
        """`gcs://_ray_pkg_<hash>.zip`: Ray's own form of name."""
        digest = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            program = path in self.programs
            digest.update(f"{len(path)} {path} {program} {len(content)} ".encode())
            digest.update(content)
        return f"gcs://_ray_pkg_{digest.hexdigest()[:32]}.zip"

    def zipped(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path, content in sorted(self.files.items()):
                entry = zipfile.ZipInfo(path, DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                mode = 0o755 if path in self.programs else 0o644
                entry.external_attr = mode << 16
                archive.writestr(entry, content)
        return buffer.getvalue()


def parctl_package() -> Package:
    """The modules and data of this parctl, without the command line, and NVML's module."""
    root = Path(parctl.__file__).parent
    files = {
        f"parctl/{path}": (root / path).read_bytes()
        for path in _walk(root, LEFT_AT_HOME, follow=True)
    }
    nvml = find_spec(NVML)
    assert nvml is not None and nvml.origin is not None, "a dependency of parctl"
    files[f"{NVML}.py"] = Path(nvml.origin).read_bytes()
    return Package(holds=f"parctl {parctl.__version__}", files=files)


def run_package(plan: str, settings: str) -> Package:
    """The plan and what else the driver has to know of a run, both JSON."""
    files = {
        f"{RUN_FOLDER}/plan.json": plan.encode(),
        f"{RUN_FOLDER}/run.json": settings.encode(),
    }
    return Package(holds="the plan and the settings of the run", files=files)


def workdir_package(workdir: Path) -> Package:
    """A working directory with all that is in it, but for version control and caches.

    Raises UsageError when it is more than Ray takes.
    """
    sizes = {path: (workdir / path).stat().st_size for path in _walk(workdir, NOT_WORK)}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        folders: dict[str, int] = {}
        for path, size in sizes.items():
            top = path.partition("/")[0]
            folders[top] = folders.get(top, 0) + size
        largest = sorted(folders, key=lambda name: -folders[name])[:3]
        shown = ", ".join(f"{name} ({folders[name] / 2**20:.0f} MiB)" for name in largest)
        raise UsageError(
            f"script.workdir = {workdir} holds {total / 2**20:.0f} MiB, and Ray takes "
            f"{MAX_BYTES / 2**20:.0f}; largest in it: {shown}",
            hint="put code alone there, and data on storage that the nodes mount",
        )
    return Package(
        holds=f"the working directory {workdir}",
        files={path: (workdir / path).read_bytes() for path in sizes},
        programs=frozenset(path for path in sizes if os.access(workdir / path, os.X_OK)),
    )


def _walk(root: Path, without: tuple[str, ...], *, follow: bool = False) -> Iterator[str]:
    """Yield the files below `root`, as relative paths."""
    for folder, folders, names in os.walk(root, followlinks=follow):
        folders[:] = sorted(name for name in folders if name not in without)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix()
