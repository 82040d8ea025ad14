"""A virtual environment that has what it is told to and what that requires, and nothing else.

Nothing is downloaded: its packages are links into the environment that the tests run in. parctl is
not among them, nor is anything that parctl alone depends on.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from venv import EnvBuilder

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

RAY, TORCH = "ray[default]", ("torch", "numpy")  # what a node has to have; the second for training


def bare_python(folder: Path, requirements: Iterable[str]) -> str:
    """Make the environment in `folder`; returns its interpreter."""
    EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    for needed in _closure(requirements):
        for top in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():  # several share a namespace such as `google`
                link.symlink_to(Path(str(needed.locate_file(top))))
    return str(folder / "bin" / "python3")


def _closure(requirements: Iterable[str]) -> Iterator[Distribution]:
    """Every installed distribution that these need, each once."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:  # not needed on this platform after all
            continue
        yield found
        extras = ["", *requirement.extras]
        waiting += [
            wanted
            for wanted in map(Requirement, found.requires or ())
            if wanted.marker is None
            or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
        ]
