"""A test that fails leaves no run behind either."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.launcher.runs import BACKEND


@pytest.fixture(autouse=True)
def runs_end_with_their_test(clean_environment: Path) -> Iterator[None]:
    """Cancel what still runs, before the state directory of the test is forgotten."""
    yield
    for run in BACKEND.list():
        if not run.state.ended:
            BACKEND.cancel(run.run_id)
