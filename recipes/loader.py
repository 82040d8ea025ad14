"""`load_recipe`: from a path, a shipped name or a line to a checked `Recipe`, or to every problem
at once.

::

    bytes -> tree with positions -> shorthands written out, --set applied
          -> schema -> defaults -> cross checks

The one idea: a problem found at one step does not hide those of the next. Values that the schema
refuses are cut out of the tree and the rest goes on, so that one reading shows all that is wrong.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from parctl.errors import RecipeError
from parctl.recipes.build import Context, build_recipe
from parctl.recipes.faults import Fault, Problem
from parctl.recipes.origin import find_origin
from parctl.recipes.overrides import apply_override
from parctl.recipes.problems import schema_faults
from parctl.recipes.schema import RecipeFields
from parctl.recipes.shorthand_node import expand, expand_line, is_line, synthetic_entry
from parctl.recipes.spec import Recipe
from parctl.recipes.yaml_source import (
    MappingNode,
    Node,
    Position,
    Scalar,
    SequenceNode,
    read_yaml,
    to_python,
)

_LAST = 1 << 30  # sorts problems without a line behind those that have one
_ENVIRONMENTS = (("launch", "env"), ("script", "env"))  # values are text exactly as written


def load_recipe(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load and check a recipe.

    `source` is a path, `-` for standard input, the name of a shipped recipe, or a line such as
    `LLaMA-70B: TP+SP+FSDP`. Raises RecipeError with all problems in the order of the file.

    >>> load_recipe("tiny-llama: TP2+SP+FSDP2", ["train.steps=5"]).parallelism.text
    'TP2+SP+FSDP2'
    """
    origin = find_origin(source)
    read = read_yaml(origin.text, origin.file)
    if read.root is None:
        raise _error(read.problems)
    problems = list(read.problems)
    root, default_name = read.root, origin.default_name
    if isinstance(root, Scalar) and isinstance(root.value, str):
        raise _error([*problems, _bare_text(root)])
    if not isinstance(root, MappingNode):
        message = "found a list or a single value, expected keys with values"
        raise _error([*problems, _at(root.position, "", message, "begin with `version: 1`")])
    if is_line(root):
        root, model_name = expand_line(root)
        default_name = default_name or model_name
    for override in overrides:
        problems += apply_override(root, override)
    problems += [*expand(root, "model"), *expand(root, "parallelism")]
    _fill_parts(root)
    _keep_environment_text(root)
    context = Context(source=origin.file, default_name=default_name, folder=origin.folder)
    recipe = _check(root, context, problems)
    if problems or recipe is None:
        raise _error(problems)
    return recipe


def _fill_parts(root: MappingNode) -> None:
    """Let a part of a model beside `preset` say only what it changes: `--set model.moe.top_k=1`."""
    from parctl.recipes.presets import find_preset, load_preset

    entry = root.entries.get("model")
    if entry is None or not isinstance(entry.value, MappingNode):
        return
    model = entry.value.entries
    named = model["preset"].value if "preset" in model else None
    found = find_preset(named.text) if isinstance(named, Scalar) else None
    for part in ("moe", "mla", "vision"):
        inner = model[part].value if part in model else None
        if found is None or not isinstance(inner, MappingNode):
            continue
        for key, value in (load_preset(found).values.get(part) or {}).items():
            inner.entries.setdefault(key, synthetic_entry(key, value, inner.position))


def _check(root: MappingNode, context: Context, problems: list[Problem]) -> Recipe | None:
    """Run the schema and the checks behind it; add to `problems` what they find."""
    explained = {problem.path for problem in problems}
    fields: RecipeFields | None = None
    for _ in range(4):  # cutting a value out can make the mapping around it incomplete
        try:
            fields = RecipeFields.model_validate(to_python(root))
            break
        except ValidationError as error:
            faults = [
                fault for fault in schema_faults(error, RecipeFields) if fault.path not in explained
            ]
            problems += [_locate(root, fault) for fault in faults]
            explained |= {fault.path for fault in faults}
            context.doubtful |= {fault.path.partition(".")[0] for fault in faults}
            if not _cut_out(root, error):
                break
    if fields is None:
        return None
    recipe = build_recipe(fields, context)
    for fault in context.faults:
        # what was cut out, or could not be read, is not missing
        if not any(path == fault.path or path.startswith(fault.path + ".") for path in explained):
            problems.append(_locate(root, fault, of_a_default=True))
    return recipe


def _cut_out(root: MappingNode, error: ValidationError) -> bool:
    """Cut the refused values out of the tree, so that the rest can be checked."""
    changed = False
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        steps = [str(step) for step in detail["loc"] if step != "[key]"]
        if steps == ["version"]:
            root.entries["version"] = synthetic_entry("version", 1, root.position)
            changed = True
            continue
        if detail["type"] == "missing":
            steps.pop()  # the mapping that lacks it goes
        changed |= bool(steps) and _prune(root, steps)
    return changed


def _prune(root: MappingNode, steps: Sequence[str]) -> bool:
    """Cut the value at a path out of the tree."""
    parents: list[tuple[MappingNode | SequenceNode, str]] = []
    node: Node = root
    for step in steps:
        if isinstance(node, MappingNode) and step in node.entries:
            parents.append((node, step))
            node = node.entries[step].value
        elif isinstance(node, SequenceNode) and step.isdecimal() and int(step) < len(node.items):
            parents.append((node, step))
            node = node.items[int(step)]
        else:
            return False
    while parents and isinstance(parents[-1][0], SequenceNode):
        parents.pop()  # a list with a bad item goes as a whole: its length may matter
    if not parents:
        return False
    owner, key = parents[-1]
    assert isinstance(owner, MappingNode)
    del owner.entries[key]
    return True


def _keep_environment_text(root: MappingNode) -> None:
    """Give environment variables the text that was written: `007` stays `007`."""
    for section, key in _ENVIRONMENTS:
        outer = root.entries.get(section)
        inner = (
            outer.value.entries.get(key) if outer and isinstance(outer.value, MappingNode) else None
        )
        if inner is not None and isinstance(inner.value, MappingNode):
            for entry in inner.value.entries.values():
                if isinstance(entry.value, Scalar):
                    entry.value.value = entry.value.text


def _locate(root: MappingNode, fault: Fault, *, of_a_default: bool = False) -> Problem:
    """Find the line of a fault: its value, its key, or the nearest thing above that is there.

    With `of_a_default` a value that nobody wrote is not blamed on a `--set` of its neighbour.
    """
    place = root.position
    current: Node = root
    steps = fault.path.split(".") if fault.path else []
    while steps:
        step = steps.pop(0)
        if isinstance(current, MappingNode):
            while step not in current.entries and steps:
                step += f".{steps.pop(0)}"  # a key may hold dots itself
            if step not in current.entries:
                if of_a_default and place.file.startswith("--set "):
                    place = root.position
                break
            entry = current.entries[step]
            current = entry.value
            place = entry.key.position if fault.at_key else current.position
            if isinstance(current, MappingNode):
                place = entry.key.position
        elif (
            isinstance(current, SequenceNode)
            and step.isdecimal()
            and int(step) < len(current.items)
        ):
            current = current.items[int(step)]
            place = current.position
        else:
            break
    path = "model" if fault.path == "model.preset" else fault.path
    return _at(place, path, fault.message, fault.hint)


def _bare_text(root: Scalar) -> Problem:
    from parctl.recipes.presets import find_preset

    model = find_preset(root.text)
    if model is not None:
        hint = f"`{root.text}` is a model: say how to split it, `{root.text}: TP+SP+FSDP`"
    else:
        hint = "begin with `version: 1`, or write one line `MODEL: FORM`, `LLaMA-70B: TP+SP+FSDP`"
    shown = root.text if len(root.text) <= 40 else root.text[:37] + "..."
    return _at(root.position, "", f'found "{shown}", expected keys with values', hint)


def _at(place: Position, path: str, message: str, hint: str) -> Problem:
    return Problem(
        file=place.file,
        line=place.line,
        column=place.column,
        path=path,
        message=message,
        hint=hint,
    )


def _error(problems: Sequence[Problem]) -> RecipeError:
    return RecipeError(
        sorted(
            dict.fromkeys(problems),
            key=lambda problem: (
                problem.file.startswith("--set "),
                problem.line or _LAST,
                problem.column or _LAST,
            ),
        )
    )
