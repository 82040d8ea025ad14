"""The program itself: help, unknown words, errors as sentences."""

from importlib import import_module

import pytest

from parctl.cli.main import COMMANDS, run


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_table_says_what_each_docstring_says(name: str) -> None:
    module = import_module(f"parctl.cli.{name}")
    function = getattr(module, name, None) or getattr(module, f"{name}_", None)
    text = module.app.info.help if hasattr(module, "app") else function.__doc__
    assert text

    assert text.strip().splitlines()[0] == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    assert f"Usage: parctl {name}" in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lunch"]) == 2
    assert capsys.readouterr().err == (
        "error: no command `lunch`\n\nhint: did you mean `parctl launch`?\n"
    )


def test_an_unknown_option_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "tiny-llama", "--clutser", "h100:1x8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option: --clutser")
    assert "hint: `parctl plan --help` lists what it takes" in error
