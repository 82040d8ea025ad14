"""Secrets of a local run: named in the plan, inherited from the launcher, written nowhere.

The supervisor and the ranks inherit the launcher's environment, so a value travels from process to
process in memory and never through a file or a command line.
"""

import os
from collections.abc import Iterable, Mapping

from parctl.errors import UsageError
from parctl.recipes.spec import SecretSpec

HIDDEN = "********"


def check_secrets(secrets: Mapping[str, SecretSpec]) -> None:
    """Raise UsageError unless this process can supply every secret."""
    missing = []
    for name, secret in secrets.items():
        if secret.from_env is None:
            raise UsageError(
                f"launch.secrets.{name} is a Kubernetes Secret, and this run is local",
                hint=f"`{name}: {{from_env: VARIABLE}}` takes it from the environment",
            )
        if secret.from_env not in os.environ:
            missing.append(f"launch.secrets.{name} needs `{secret.from_env}`")
    if missing:
        raise UsageError(
            f"{'; '.join(missing)}: not set in this environment",
            hint="export it before `parctl launch`",
        )


def secret_values(sources: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values by the names that the ranks see. `sources` is name -> variable."""
    return {name: environment[source] for name, source in sources.items()}


def redact(text: str, values: Iterable[str]) -> str:
    """Blank out values in text that is about to be kept, such as the last lines of a log.

    >>> redact("login with hunter2", ["hunter2"])
    'login with ********'
    """
    for value in values:
        if value:
            text = text.replace(value, HIDDEN)
    return text
