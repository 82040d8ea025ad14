"""What README and docs say is true: commands run, options exist, code runs, links are good."""

import re
import shlex
from pathlib import Path

import pytest

from parctl.cli.main import COMMANDS, run

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# print, and change nothing
PURE = ("plan", "topology", "validate", "schema", "recipes", "explain", "simulate")


def console_commands() -> list[tuple[str, str]]:
    """Every `$ parctl ...` line of a console block, with its page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            found += [
                (page.name, line.removeprefix("$ "))
                for line in block.splitlines()
                if line.startswith("$ parctl ")
            ]
    return found


@pytest.mark.parametrize(("page", "line"), console_commands())
def test_every_documented_command_works(
    page: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, _, comment = line.partition("#")
    words = shlex.split(command)[1:]
    monkeypatch.chdir(ROOT)
    if words[0] in PURE and not any(word.isupper() or word.endswith(".yaml") for word in words):
        expected = 4 if "refused" in comment else 0
        assert run(words) == expected, capsys.readouterr().err
        return
    assert words[0] in COMMANDS
    assert run([words[0], "--help"]) == 0
    shown = capsys.readouterr().out
    for word in words[1:]:
        if re.fullmatch(r"--?[a-z][-a-z]*", word):
            assert word in shown, f"{page}: `{words[0]}` has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_program_runs() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    # the same program, with fewer steps
    program = code[1].replace(
        'parctl.load("tiny-llama")',
        'parctl.load("tiny-llama", ["train.steps=2", "train.validate_every=0"])',
    )
    assert program != code[1]
    scope: dict[str, object] = {}
    exec(program, scope)

    assert scope["run"].status().state == "Succeeded"  # type: ignore[attr-defined]


def test_the_readme_offers_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "$ make demo" in text and "$ make test" in text
