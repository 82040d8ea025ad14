"""One endpoint for all tests that only ask: starting one takes longer than they do."""

from collections.abc import Iterator

import pytest
from tests.runtime.serving.endpoint import Endpoint, serving

KEY = "sesame-4711"


@pytest.fixture(scope="package")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint with a key, two keys' worth of clients and small limits."""
    home = tmp_path_factory.mktemp("serving")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        patch.setenv("SERVE_TEST_KEY", f"{KEY}\nother-key")
        overrides = [
            "launch.secrets={KEY: {from_env: SERVE_TEST_KEY}}",
            "serve.api_key_from=KEY",
            "serve.max_body_bytes=65536",
            "serve.max_concurrent=64",
            "serve.max_samples=8",
            "inference.max_sequences=16",
        ]
        with serving(home, overrides, run_id="serve-1", key=KEY) as found:
            yield found
