"""Settings of a user, in `$XDG_CONFIG_HOME/parctl/config.yaml`: contexts and retention.

::

    context: home                # the current one
    contexts:
      home: {backend: local}
      lab: {backend: ray, address: "http://head:8265", storage: s3://bucket/runs}
    retention: {runs: 50, days: 30}

Each setting of a context is decided by the first that says something: flag, PARCTL_* variable,
recipe, context, default. No pydantic here: `parctl status` reads this file and is to start fast.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.launcher.places import config_file

DEFAULT_BACKEND = "local"
CONTEXT_KEYS = ("backend", "address", "namespace", "queue", "storage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where runs go. None: the back end's own default."""

    backend: str
    address: str | None
    namespace: str | None
    queue: str | None
    storage: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What `parctl prune` keeps. None: no limit of that kind."""

    runs: int | None  # the newest ended ones
    days: float | None  # since they ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    context: str | None  # name of the current one
    contexts: Mapping[str, Mapping[str, str]]
    retention: Retention


def load_settings() -> Settings:
    """Read the settings; without a file, the defaults. UsageError names the file and the key."""
    path = config_file()
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    data = _mapping(_parse(path, text) if text.strip() else {}, path, "")
    _check_keys(data, ("context", "contexts", "retention"), path, "")
    contexts = {
        str(name): _context(value, path, f"contexts.{name}")
        for name, value in _mapping(data.get("contexts") or {}, path, "contexts").items()
    }
    current = data.get("context")
    if current is not None and current not in contexts:
        raise UsageError(f"{path}: context: `{current}` is not one of {_names(contexts)}")
    retention = _mapping(data.get("retention") or {}, path, "retention")
    _check_keys(retention, ("runs", "days"), path, "retention.")
    return Settings(
        context=current,
        contexts=contexts,
        retention=Retention(
            runs=_count(retention, "runs", path, int),
            days=_count(retention, "days", path, (int, float)),
        ),
    )


def resolve_context(
    *, backend: str | None, recipe_backend: str | None, settings: Settings | None = None
) -> Context:
    """Decide where a command goes; `backend` is the `-b` flag. `settings`: read already."""
    settings = settings or load_settings()
    name = os.environ.get("PARCTL_CONTEXT") or settings.context
    if name is not None and name not in settings.contexts:
        raise UsageError(
            f"PARCTL_CONTEXT={name}: there is no such context",
            hint=f"{config_file()} has {_names(settings.contexts)}",
        )
    chosen = settings.contexts[name] if name else {}
    values = {key: os.environ.get(f"PARCTL_{key.upper()}") or None for key in CONTEXT_KEYS}
    decided = backend or values["backend"] or recipe_backend or chosen.get("backend")
    # the other settings of a context speak about its own back end only
    if decided == chosen.get("backend", decided):
        values = {key: value or chosen.get(key) for key, value in values.items()}
    return Context(
        backend=decided or DEFAULT_BACKEND,
        address=values["address"],
        namespace=values["namespace"],
        queue=values["queue"],
        storage=values["storage"],
    )


def _parse(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from error


def _context(value: Any, path: Path, where: str) -> dict[str, str]:
    context = _mapping(value, path, where)
    _check_keys(context, CONTEXT_KEYS, path, f"{where}.")
    for key, text in context.items():
        if not isinstance(text, str):
            raise UsageError(f"{path}: {where}.{key}: found {text!r}, expected text")
    return context


def _mapping(value: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {where or 'the file'}: found {value!r}, expected `key: value`")
    return value


def _check_keys(data: Collection[str], known: Collection[str], path: Path, where: str) -> None:
    for key in data:
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"{path}: {where}{key}: unknown key",
                hint=f"did you mean `{nearest[0]}`?" if nearest else f"one of {', '.join(known)}",
            )


def _count(data: Mapping[str, Any], key: str, path: Path, kind: Any) -> Any:
    value = data.get(key)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool) and value >= 0):
        return value
    raise UsageError(f"{path}: retention.{key}: found {value!r}, expected a number, 0 or more")


def _names(contexts: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in contexts) or "none"
