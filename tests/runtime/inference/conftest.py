"""Folders of small models, with what `transformers` makes of a few prompts, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.runtime.inference.matrix import Tokens, expect

NUM_PROMPTS = 8
Reference = Callable[[str], tuple[Path, Tokens]]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function: of a model's name its folder, and the tokens expected of the wishes."""
    made: dict[str, tuple[Path, Tokens]] = {}

    def find(name: str) -> tuple[Path, Tokens]:
        if name not in made:
            folder, tokens, _ = expect(tmp_path_factory.mktemp(name), name, NUM_PROMPTS)
            made[name] = (folder, tokens)
        return made[name]

    return find
