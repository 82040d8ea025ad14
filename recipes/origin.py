"""Where a recipe comes from: a file, standard input, a shipped name or one line, told apart by
stated rules.

In this order: `-` is standard input; what exists as a path is that file; what holds a colon is a
line; what looks like a path (a slash, or a YAML suffix) is a file that is missing; anything else is
the name of a shipped recipe.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from parctl.errors import RecipeError
from parctl.recipes.faults import Problem, nearest
from parctl.recipes.presets import find_preset
from parctl.recipes.shipped import shipped_path, shipped_recipes
from parctl.recipes.shorthand import read_form
from parctl.recipes.yaml_source import MAX_BYTES, decode

LINE = "<line>"
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    file: str  # how messages and plans call it
    text: str
    folder: Path  # relative paths inside the recipe start here
    default_name: str | None  # None: the model decides


def find_origin(source: str) -> Origin:
    """Find and read what `source` means. Raises RecipeError when there is nothing to read."""
    if source == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        return _origin("<stdin>", data, _here(), None)
    if not source.strip():
        raise _refusal("recipe", "the name of the recipe is empty", "`parctl recipes list`")
    path = _existing(source)
    if path is not None:
        return _read(source, path)
    if ":" in source and not source.lower().endswith(_SUFFIXES):
        return _line(source)
    looks_like_path = "/" in source or source.lower().endswith(_SUFFIXES)
    shipped = None if looks_like_path else shipped_path(source)
    if shipped is not None:
        data = shipped.read_bytes()
        return _origin(shipped.stem, data, _here(), shipped.stem)
    raise _missing(source, looks_like_path)


def _existing(source: str) -> Path | None:
    path = Path(source).expanduser()
    try:
        # a folder may have the name of a shipped recipe by chance
        return (
            path if path.exists() and (not path.is_dir() or _is_written_as_folder(source)) else None
        )
    except (OSError, ValueError):  # too long for a path, or holds a NUL: then it is no path
        return None


def _is_written_as_folder(source: str) -> bool:
    return "/" in source or source in (".", "..") or shipped_path(source) is None


def _read(source: str, path: Path) -> Origin:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
        hint = f"name a file in it: `{path / inside[0]}`" if inside else "name a file"
        raise _refusal(source, "found a folder, expected a recipe file", hint)
    if not path.is_file():
        raise _refusal(source, "found a device or socket, expected a file", "use `-` for stdin")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(
            source, f"cannot be read: {error.strerror}", "check its owner and mode"
        ) from error
    if len(data) > MAX_BYTES:
        message = f"the file has {path.stat().st_size:,} bytes, a recipe at most {MAX_BYTES:,}"
        raise _refusal(source, message, "is this the right file?", line=1)
    return _origin(source, data, path.resolve().parent, path.stem)


def _origin(file: str, data: bytes, folder: Path, default_name: str | None) -> Origin:
    text, problems = decode(data, file)
    if text is None:
        raise RecipeError(problems)
    return Origin(file=file, text=text, folder=folder, default_name=default_name)


def _line(source: str) -> Origin:
    text, problems = decode(source.encode("utf-8", "surrogatepass"), LINE)
    if text is None:
        raise RecipeError(problems)
    # YAML wants a blank behind the colon; a person may leave it out.
    spaced = re.sub(r"^(\s*[^:\s][^:]*):(?=\S)", r"\1: ", text)
    return Origin(file=LINE, text=spaced, folder=_here(), default_name=None)


def _here() -> Path:
    """What paths in a recipe that is no file start from."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        found = "the working directory has been removed"
        raise _refusal("recipe", found, "`cd` to one that is there") from error


def _missing(source: str, looks_like_path: bool) -> RecipeError:
    names = [recipe.name for recipe in shipped_recipes()]
    near = nearest(Path(source).stem, names)
    if looks_like_path:
        hint = f"a recipe `{near}` ships with parctl" if near else "check the path"
        return _refusal(source, "no such file", hint)
    model = find_preset(source)
    form = read_form(source)
    if model is not None:
        hint = f"`{source}` is a model; say how to split it: `{source}: TP+SP+FSDP`"
        hint += f", or take the shipped recipe `{near}`" if near else ""
    elif form.values and not form.faults:
        hint = f"this is a form; say for which model: `llama-3-8b: {source}`"
    elif near is not None:
        hint = f"did you mean `{near}`?"
    else:
        hint = f"shipped recipes are {', '.join(names)}"
    return _refusal(source, "no file and no shipped recipe of this name", hint)


def _refusal(file: str, message: str, hint: str, line: int | None = None) -> RecipeError:
    shown = file if len(file) <= 120 else file[:117] + "..."
    problem = Problem(file=shown, line=line, column=line, path="", message=message, hint=hint)
    return RecipeError([problem])
