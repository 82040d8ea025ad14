"""`parctl export`: write a checkpoint as a Hugging Face folder."""

from typing import Annotated

import typer


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A run, a `checkpoint.dir`, or one `step-...` in it."
        ),
    ],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder to make.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: bf16 or fp32.")] = "bf16",
) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    from importlib.util import find_spec
    from pathlib import Path

    from parctl.errors import UsageError
    from parctl.launcher.places import runs_root

    if find_spec("torch") is None:
        raise UsageError("torch is not installed", hint="`pip install 'parctl[torch]'`")
    from parctl.runtime.checkpoint.directory import local_path
    from parctl.runtime.huggingface.export import export as write

    run = runs_root() / checkpoint / "checkpoints"
    source = run if "/" not in checkpoint and run.is_dir() else local_path(checkpoint)
    done = write(source, Path(folder), dtype=dtype)
    typer.echo(
        f"{done.architecture} of {done.checkpoint.name}: {done.num_tensors} tensors, "
        f"{done.num_bytes / 1e9:.2f} GB, {len(done.files)} files: {folder}"
    )
