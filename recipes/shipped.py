"""The recipes that ship with parctl, by name."""

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShippedRecipe:
    name: str
    path: Path
    summary: str  # the first line of its comment


def shipped_recipes() -> list[ShippedRecipe]:
    """List them by name."""
    return [
        ShippedRecipe(name=path.stem, path=path, summary=_summary(path))
        for path in sorted(FOLDER.glob("*.yaml"))
    ]


def shipped_path(name: str) -> Path | None:
    """Find a shipped recipe; upper and lower case are the same."""
    paths = {path.stem: path for path in FOLDER.glob("*.yaml")}
    return paths.get(name.lower())


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
