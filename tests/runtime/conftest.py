"""Text that the runtime's tests train on."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 9,000 bytes of lines that differ."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"Line {i}: {i} times {i} is {i * i}, no more.\n" for i in range(250)))
    return path
