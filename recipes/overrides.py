"""`--set path=value`: a value, read as YAML, put in its place in the tree of a recipe.

The one idea: overriding happens before anything is checked, so an override is checked exactly like
the file, and its errors point at the `--set` they came from.
"""

import re

from parctl.recipes.faults import Problem
from parctl.recipes.shorthand_node import expand
from parctl.recipes.yaml_source import Entry, MappingNode, Node, Position, Scalar, decode, read_yaml

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


def apply_override(root: MappingNode, override: str) -> list[Problem]:
    """Set one value; missing mappings on the way are made, a shorthand is written out."""
    file = f"--set {override if len(override) <= 80 else override[:77] + '...'}"
    path, equals, text = override.partition("=")
    if not equals or not _PATH.fullmatch(path):
        message = f"found {override[:40]!r}, expected PATH=VALUE"
        return [_problem(file, 1, "", message, "for example `--set train.steps=10`")]
    # The value starts in this column of `path=value`; reading it after blanks keeps columns right.
    padded, problems = decode((" " * (len(path) + 1) + text).encode("utf-8", "surrogatepass"), file)
    if padded is None:
        return problems
    source = read_yaml(padded, file)
    if source.problems and source.root is None and not text.strip():
        value: Node = Scalar(
            position=Position(file=file, line=1, column=len(path) + 2),
            value=None, text="", text_offset=0,
        )  # fmt: skip
    elif source.problems or source.root is None:
        return source.problems
    else:
        value = source.root
    return _put(root, path.split("."), value, file)


def _put(root: MappingNode, steps: list[str], value: Node, file: str) -> list[Problem]:
    problems: list[Problem] = []
    column, node = 1, root
    for depth, step in enumerate(steps[:-1]):
        if depth == 0 and step in ("model", "parallelism"):
            problems += expand(root, step)
        entry = node.entries.get(step)
        if entry is None or (isinstance(entry.value, Scalar) and entry.value.value is None):
            place = Position(file=file, line=1, column=column)
            entry = Entry(key=_name(step, place), value=MappingNode(position=place))
            node.entries[step] = entry
        if not isinstance(entry.value, MappingNode):
            above = ".".join(steps[: depth + 1])
            message = f"`{above}` is a single value, so nothing can be set inside it"
            hint = f"set the whole: `--set {above}=...`"
            return [*problems, _problem(file, column, ".".join(steps), message, hint)]
        column, node = column + len(step) + 1, entry.value
    place = Position(file=file, line=1, column=column)
    node.entries[steps[-1]] = Entry(key=_name(steps[-1], place), value=value)
    return problems


def _name(text: str, place: Position) -> Scalar:
    return Scalar(position=place, value=text, text=text, text_offset=0)


def _problem(file: str, column: int, path: str, message: str, hint: str) -> Problem:
    return Problem(file=file, line=1, column=column, path=path, message=message, hint=hint)
