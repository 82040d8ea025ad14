"""A conversation as one prompt, by the model's own Jinja template.

Templates come with a model's files and are programs of strangers, so they run in Jinja's sandbox,
and nothing of ours is within their reach but the messages. Without a template a conversation is
written as `role: text` lines.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.runtime.inference.detokenize import read_json

Message = Mapping[str, Any]  # role and content, which is text
MARKS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TemplateError(UsageError):
    """The template does not take this conversation."""


class ChatTemplate:
    """Writes conversations as prompts. `marks`: the texts of special tokens, by their names."""

    def __init__(self, source: str | None, marks: Mapping[str, str], where: str) -> None:
        self._marks, self._where, self._template = dict(marks), where, None
        if source is not None:
            self._template = compile_template(source, where)

    def render(self, messages: Sequence[Message]) -> str:
        """Raise TemplateError for a conversation that the template refuses."""
        if self._template is None:
            lines = [f"{message['role']}: {message['content']}\n" for message in messages]
            return "".join([*lines, "assistant:"])
        from jinja2.exceptions import TemplateError as JinjaError

        try:
            return str(
                self._template.render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=True,
                    tools=None,
                    documents=None,
                    **self._marks,
                )
            )
        except (JinjaError, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise TemplateError(
                f"the chat template does not take these messages: {error}",
                hint="roles usually alternate: system, user, assistant, user",
            ) from error


def compile_template(source: str, where: str) -> Any:
    if find_spec("jinja2") is None:
        raise UsageError(
            f"{where}: chat templates need the package jinja2, which is not installed",
            hint="`pip install 'parctl[serve]'`",
        )
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except JinjaError as error:
        raise UsageError(
            f"{where}: not a template: {error}", hint="it is Jinja, as Hugging Face models use it"
        ) from error


def to_json(value: Any, indent: int | None = None) -> str:
    """As templates expect it: not escaped for HTML, as Jinja's own filter would."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def refuse(message: str) -> None:
    from jinja2.exceptions import TemplateError as JinjaError

    raise JinjaError(message)


def load_template(tokenizer: str, given: str | None) -> ChatTemplate:
    """Return the template in the file `given`, else the one beside the tokenizer, if any."""
    folder = None if tokenizer == "byte" else Path(tokenizer).parent
    config = {} if folder is None else read_json(folder / "tokenizer_config.json")
    marks = {name: mark_text(config[name]) for name in MARKS if config.get(name)}
    beside = None if folder is None else folder / "chat_template.jinja"
    if given is not None or (beside is not None and beside.is_file()):
        path = Path(given) if given is not None else beside
        assert path is not None
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), marks, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"inference.chat_template = {path}: {error}", hint="give a Jinja file"
            ) from error
    return ChatTemplate(template_text(config.get("chat_template")), marks, str(folder))


def template_text(value: Any) -> str | None:
    """Of several named templates the one called default."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    return value if isinstance(value, str) else None


def mark_text(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)
