"""The options that all commands about runs share.

What an option says of the current context is left in the environment, where the back end finds it:
`--address X` is PARCTL_ADDRESS=X for the time of the command.
"""

import os
import shlex
from collections.abc import Callable
from typing import Annotated

import typer


def remembered(variable: str) -> Callable[[str | None], str | None]:
    """Return a callback that leaves an option's value in the environment."""

    def remember(value: str | None) -> str | None:
        if value:
            os.environ[variable] = value
        return value

    return remember


BackendOption = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--backend",
        help="local, ray or kubernetes; else the current context's.",
        show_default=False,
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Of Ray's dashboard, e.g. http://head:8265.",
        callback=remembered("PARCTL_ADDRESS"),
        show_default=False,
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="DIR",
        help="Where the nodes keep the run's files; a directory that all of them mount.",
        callback=remembered("PARCTL_STORAGE"),
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--namespace",
        metavar="NAME",
        help="Of Kubernetes; else the context's.",
        callback=remembered("PARCTL_NAMESPACE"),
        show_default=False,
    ),
]
KubeContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME",
        help="Context of the kubeconfig; else its current one.",
        callback=remembered("PARCTL_KUBE_CONTEXT"),
        show_default=False,
    ),
]
KubeconfigOption = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="In place of KUBECONFIG.",
        callback=remembered("KUBECONFIG"),
        show_default=False,
    ),
]


def flags_again(
    backend: str,
    *,
    address: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
) -> str:
    """The flags by which later commands find what a launch with these has started.

    Begins with a space, if there are any: what the environment or the current context says needs
    no flag.
    """
    from parctl.launcher.contexts import resolve_context

    usual = resolve_context(backend=None, recipe_backend=None)
    flags = {
        "-b": None if backend == usual.backend else backend,
        "--address": address,
        "-n": namespace,
        "--context": context,
        "--kubeconfig": kubeconfig,
    }
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in flags.items() if value)
