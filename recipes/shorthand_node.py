"""Shorthands inside the tree of a recipe, written out as the mappings that they stand for.

The one idea: `model: llama-3-8b`, `parallelism: TP8+SP` and the line `llama-3-8b: TP8+SP` are only
spellings. Written out, each value keeps the column of the term that said it, so errors and `--set`
work on the shorthand as on the mapping.
"""

from typing import Any

from parctl.recipes.faults import Problem
from parctl.recipes.presets import find_preset
from parctl.recipes.schema import RecipeFields
from parctl.recipes.shorthand import read_form
from parctl.recipes.yaml_source import Entry, MappingNode, Node, Position, Scalar


def is_line(root: Node) -> bool:
    """Whether a document is a whole recipe in one line: one key, no field of ours, with a text.

    `LLaMA-70B:` is one too: its form was forgotten, and that is what its problem should say.
    """
    if not isinstance(root, MappingNode) or len(root.entries) != 1:
        return False
    (entry,) = root.entries.values()
    if entry.key.text in RecipeFields.model_fields or not isinstance(entry.value, Scalar):
        return False
    if entry.value.value is None:
        return find_preset(entry.key.text) is not None
    return isinstance(entry.value.value, str)


def expand_line(root: MappingNode) -> tuple[MappingNode, str]:
    """Write `MODEL: form` out as a recipe; return it and the model as it was written."""
    (entry,) = root.entries.values()
    model, form = entry.key, entry.value
    assert isinstance(form, Scalar)
    full = MappingNode(position=root.position)
    full.entries["version"] = synthetic_entry("version", 1, model.position)
    full.entries["model"] = Entry(key=_scalar("model", "model", model), value=_as_text(model))
    key = _scalar("parallelism", "parallelism", form)
    full.entries["parallelism"] = Entry(key=key, value=_as_text(form))
    return full, model.text


def expand(root: MappingNode, key: str) -> list[Problem]:
    """Write the shorthand under `key` (`model` or `parallelism`) out, if there is one."""
    entry = root.entries.get(key)
    if entry is None:
        return []
    if key == "model":
        if isinstance(entry.value, Scalar) and isinstance(entry.value.value, str):
            preset = _scalar("preset", "preset", entry.key)
            mapping = MappingNode(position=entry.value.position)
            mapping.entries["preset"] = Entry(key=preset, value=entry.value)
            entry.value = mapping
        return []
    if isinstance(entry.value, Scalar) and isinstance(entry.value.value, str):
        mapping = MappingNode(position=entry.value.position)
        problems = _fill(mapping, entry.value)
        entry.value = mapping
        return problems
    if isinstance(entry.value, MappingNode) and "form" in entry.value.entries:
        form = entry.value.entries["form"].value
        if isinstance(form, Scalar) and isinstance(form.value, str):
            del entry.value.entries["form"]
            return _fill(entry.value, form)
    return []


def _fill(mapping: MappingNode, form: Scalar) -> list[Problem]:
    """Add what a form says to a mapping."""
    read = read_form(form.text)
    problems = [
        _problem(form, fault.offset, "parallelism", fault.message, fault.hint)
        for fault in read.faults
    ]
    for key, value in read.values.items():
        if key in mapping.entries:
            message = f"found `{key}` beside a form that gives it too"
            given = mapping.entries[key].key
            problems.append(
                _problem(given, 0, f"parallelism.{key}", message, "keep one of the two")
            )
            continue
        place = _at(form, read.offsets[key])
        scalar = Scalar(position=place, value=value, text=str(value), text_offset=0)
        mapping.entries[key] = Entry(key=scalar, value=scalar)
    return problems


def _problem(node: Scalar, offset: int, path: str, message: str, hint: str) -> Problem:
    place = _at(node, offset)
    return Problem(
        file=place.file, line=place.line, column=place.column, path=path, message=message, hint=hint
    )  # fmt: skip


def _at(node: Scalar, offset: int) -> Position:
    place = node.position
    column = None if place.column is None else place.column + node.text_offset + offset
    return Position(file=place.file, line=place.line, column=column)


def synthetic_entry(key: str, value: Any, place: Position) -> Entry:
    """An entry that nobody wrote, for what a line leaves out."""
    return Entry(
        key=Scalar(position=place, value=key, text=key, text_offset=0),
        value=Scalar(position=place, value=value, text=str(value), text_offset=0),
    )


def _scalar(value: Any, text: str, near: Scalar) -> Scalar:
    return Scalar(position=near.position, value=value, text=text, text_offset=0)


def _as_text(node: Scalar) -> Scalar:
    return Scalar(
        position=node.position, value=node.text, text=node.text, text_offset=node.text_offset
    )
