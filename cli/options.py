"""Arguments and options that several commands share, so that they read alike everywhere."""

from typing import Annotated

import typer


def with_address(source: str | None) -> str | None:
    """`ray` as `ray:ADDRESS`, where a flag, PARCTL_ADDRESS or the current context names one."""
    if source != "ray":
        return source
    from parctl.launcher.contexts import resolve_context

    address = resolve_context(backend="ray", recipe_backend=None).address
    return f"ray:{address}" if address else source


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help='A file, the name of a shipped recipe, or a line such as "LLaMA-70B: TP+SP+FSDP".',
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a recipe field, e.g. train.steps=10. May be given several times.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "--from",
        metavar="CLUSTER",
        help="A cluster such as h100:16x8, a topology file, or local (the default).",
        show_default=False,
        callback=with_address,
    ),
]
DevicesOption = Annotated[
    int | None,
    typer.Option("--devices", min=1, metavar="N", help="Use N devices.", show_default=False),
]
OutputOption = Annotated[str, typer.Option("-o", "--output", help="table, json or yaml.")]
RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run id, or its beginning.", show_default=False),
]
