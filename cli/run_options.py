"""The option that all commands about runs share."""

from typing import Annotated

import typer

BackendOption = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--backend",
        help="local, ray or kubernetes; else the current context's.",
        show_default=False,
    ),
]
