"""Folders of small models, with what `transformers` makes of a few prompts, made once."""

from collections.abc import Callable

import pytest
from tests.runtime.inference.matrix import Expected, expect

NUM_PROMPTS = 8
Reference = Callable[[str], Expected]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function: of a model's name its folder, and what is expected of the wishes."""
    made: dict[str, Expected] = {}

    def find(name: str) -> Expected:
        if name not in made:
            made[name] = expect(tmp_path_factory.mktemp(name), name, NUM_PROMPTS)
        return made[name]

    return find
