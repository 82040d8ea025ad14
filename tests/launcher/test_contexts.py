"""Settings: flag, environment, recipe, context, default; and errors that name the key."""

from pathlib import Path

import pytest

from parctl.errors import UsageError
from parctl.launcher.backends import get_backend
from parctl.launcher.contexts import load_settings, resolve_context
from parctl.launcher.retention import limits

SETTINGS = """
context: lab
contexts:
  home: {backend: local}
  lab: {backend: ray, address: "http://head:8265", storage: s3://bucket/runs}
retention: {runs: 50, days: 30}
"""


def configure(home: Path, text: str) -> Path:
    file = home / "config" / "parctl" / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_without_a_file_runs_are_local_and_kept() -> None:
    assert resolve_context(backend=None, recipe_backend=None).backend == "local"
    assert load_settings().retention.runs is None


def test_each_source_wins_over_the_next(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(clean_environment, SETTINGS)
    assert resolve_context(backend=None, recipe_backend=None).backend == "ray"
    assert resolve_context(backend=None, recipe_backend="kubernetes").backend == "kubernetes"
    monkeypatch.setenv("PARCTL_BACKEND", "local")
    assert resolve_context(backend=None, recipe_backend="kubernetes").backend == "local"
    assert resolve_context(backend="ray", recipe_backend="kubernetes").backend == "ray"


def test_a_context_speaks_for_its_own_back_end_only(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(clean_environment, SETTINGS)
    lab = resolve_context(backend=None, recipe_backend=None)
    assert (lab.address, lab.storage) == ("http://head:8265", "s3://bucket/runs")
    assert resolve_context(backend="kubernetes", recipe_backend=None).address is None
    monkeypatch.setenv("PARCTL_ADDRESS", "http://other:8265")
    assert resolve_context(backend="ray", recipe_backend=None).address == "http://other:8265"
    monkeypatch.setenv("PARCTL_CONTEXT", "home")
    monkeypatch.delenv("PARCTL_ADDRESS")
    assert resolve_context(backend=None, recipe_backend=None).backend == "local"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("contexs: {}", "contexs: unknown key", "did you mean `contexts`?"),
        (
            "contexts: {a: {adress: x}}",
            "contexts.a.adress: unknown key",
            "did you mean `address`?",
        ),
        ("contexts: {a: {backend: 1}}", "contexts.a.backend: found 1, expected text", None),
        ("contexts: [a]", r"contexts: found \['a'\], expected `key: value`", None),
        ("context: b\ncontexts: {a: {}}", "context: `b` is not one of `a`", None),
        ("retention: {runs: -1}", "retention.runs: found -1, expected a number", None),
        ("retention: {runs: 1.5}", "retention.runs: found 1.5, expected a number", None),
        ("retention: {days: true}", "retention.days: found True, expected a number", None),
        ("a: [", "not YAML", None),
        ("- a", "the file: found", None),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(
    clean_environment: Path, text: str, message: str, hint: str | None
) -> None:
    file = configure(clean_environment, text)
    with pytest.raises(UsageError, match=message) as wrong:
        load_settings()
    assert wrong.value.message.startswith(str(file))
    assert wrong.value.hint == hint


def test_an_unknown_context_is_refused(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(clean_environment, SETTINGS)
    monkeypatch.setenv("PARCTL_CONTEXT", "nowhere")
    with pytest.raises(UsageError, match="PARCTL_CONTEXT=nowhere: there is no such context"):
        resolve_context(backend=None, recipe_backend=None)


def test_a_back_end_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="no back end `slurm`") as error:
        get_backend("slurm")
    assert error.value.hint == "one of local, ray, kubernetes"


def test_flags_of_prune_win_over_the_settings(clean_environment: Path) -> None:
    with pytest.raises(UsageError, match="nothing says which runs to keep"):
        limits(runs=None, days=None)
    configure(clean_environment, SETTINGS)
    assert (limits(runs=None, days=None).runs, limits(runs=None, days=None).days) == (50, 30)
    assert (limits(runs=0, days=None).runs, limits(runs=0, days=1.5).days) == (0, 1.5)
