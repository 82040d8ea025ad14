"""The field reference of the docs, written from the schema: `python -m parctl.recipes.reference
docs/recipes.md`.

The one idea: the docs hold a marked section that this module owns; a test compares it with what is
generated here.
"""

import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from parctl.recipes.faults import listed
from parctl.recipes.fields import Fields
from parctl.recipes.inference_schema import (
    GenerateFields,
    InferenceFields,
    SamplingFields,
    ServeFields,
)
from parctl.recipes.kubernetes_schema import KubernetesFields, TolerationFields, VolumeFields
from parctl.recipes.launch_schema import LaunchFields, SecretFields
from parctl.recipes.model_schema import (
    MlaFields,
    ModelFields,
    MoeFields,
    RopeScalingFields,
    VisionFields,
)
from parctl.recipes.placement_schema import PlacementFields
from parctl.recipes.presets import ALIASES, load_preset, preset_names
from parctl.recipes.problems import flow
from parctl.recipes.ray_schema import RayFields
from parctl.recipes.schema import (
    CheckpointFields,
    DataFields,
    OptimizerFields,
    ParallelismFields,
    RecipeFields,
    ScriptFields,
    TrainFields,
)
from parctl.recipes.shipped import shipped_recipes

BEGIN = "<!-- generated: python -m parctl.recipes.reference docs/recipes.md -->"
END = "<!-- end of generated text -->"
SECTIONS: tuple[tuple[str, type[Fields]], ...] = (
    ("(top level)", RecipeFields),
    ("parallelism", ParallelismFields),
    ("train", TrainFields),
    ("train.optimizer", OptimizerFields),
    ("data", DataFields),
    ("checkpoint", CheckpointFields),
    ("inference", InferenceFields),
    ("generate", GenerateFields),
    ("serve", ServeFields),
    ("generate.sampling, serve.sampling", SamplingFields),
    ("launch", LaunchFields),
    ("launch.secrets.NAME", SecretFields),
    ("launch.kubernetes", KubernetesFields),
    ("launch.kubernetes.volumes.NAME", VolumeFields),
    ("launch.kubernetes.tolerations", TolerationFields),
    ("launch.ray", RayFields),
    ("placement", PlacementFields),
    ("script", ScriptFields),
    ("model", ModelFields),
    ("model.moe", MoeFields),
    ("model.mla", MlaFields),
    ("model.vision", VisionFields),
    ("model.rope_scaling", RopeScalingFields),
)


def field_reference() -> str:
    """Write the tables of fields, models and shipped recipes."""
    parts = [_section(name, fields) for name, fields in SECTIONS]
    return "\n".join([*parts, _models(), _shipped()])


def write_reference(text: str) -> str:
    """Put the reference between the marks of a document."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{field_reference()}\n{END}{after}"


def _section(name: str, fields: type[Fields]) -> str:
    lines = [f"### `{name}`", "", (fields.__doc__ or "").strip().partition("\n\n")[0], ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, info in fields.model_fields.items():
        cells = (f"`{key}`", _words(info.annotation), _default(info), info.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _words(annotation: Any) -> str:
    plain = {
        int: "whole number",
        float: "number",
        bool: "true, false",
        str: "text",
        Any: "anything",
    }
    if annotation in plain:
        return plain[annotation]
    origin, arms = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _words(arms[0])
    if origin is list:
        return f"list of {_words(arms[0])}"
    if origin is dict:
        return f"NAME: {_words(arms[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Fields):
        return "keys"
    if arms:
        words = [_words(arm) for arm in arms if arm is not type(None)]
        return listed(dict.fromkeys(words))
    return f"`{annotation}`"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=False)
    if default in (None, PydanticUndefined, [], {}):
        return ""
    return f"`{flow(default)}`"


def _models() -> str:
    lines = ["### Models", "", "| name | also called | family | published parameters |"]
    lines.append("|---|---|---|---|")
    for name in preset_names():
        preset = load_preset(name)
        aliases = listed(alias for alias, target in ALIASES.items() if target == name)
        published = f"{preset.published_parameters:,}"
        cells = (
            f"`{name}`",
            aliases,
            preset.model.family,
            f"{published}: {preset.published_source}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _shipped() -> str:
    lines = ["### Shipped recipes", "", "| name | what |", "|---|---|"]
    lines += [f"| `{recipe.name}` | {recipe.summary} |" for recipe in shipped_recipes()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(write_reference(path.read_text(encoding="utf-8")), encoding="utf-8")
