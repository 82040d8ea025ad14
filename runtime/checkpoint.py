"""Checkpoints that survive a kill at any moment.

`DIR/step-00000100/` holds torch's DCP files, `parctl.json`, and `COMPLETE`, which is written last::

    DIR/.saving-step-00000100/   while it is written; renamed when complete
    DIR/step-00000100/           readable exactly when COMPLETE is there

A process killed anywhere leaves the older ones untouched and at most one torn directory, which
readers skip and the next save removes. Tensors carry the plain model's names and their whole
shapes, so another layout can read them.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from parctl.errors import ParctlError, UsageError
from parctl.recipes.spec import CheckpointSpec, ModelSpec, to_json
from parctl.runtime.optimizer import MOMENTS, set_step
from parctl.topology.layout import Layout

SCHEMA = 1
COMPLETE = "COMPLETE"
DESCRIPTION = "parctl.json"
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands. All that a checkpoint holds besides tensors."""

    run: str
    plan_hash: str
    step: int
    tokens: int
    cursor: int  # sequences used, independent of the layout
    seq_len: int  # that the cursor counts in
    model: Mapping[str, Any]


class Checkpoints:
    """The checkpoints in one directory. Every rank makes one; saving and loading are collective."""

    def __init__(self, directory: Path, spec: CheckpointSpec) -> None:
        self.directory = directory
        self._keep = spec.keep

    def complete(self) -> tuple[list[Path], list[Path]]:
        """Return the complete ones, oldest first, and the torn ones."""
        if not self.directory.is_dir():
            return [], []
        found = [path for path in self.directory.iterdir() if NAME.fullmatch(path.name)]
        found.sort(key=step_of)
        whole = [path for path in found if (path / COMPLETE).is_file()]
        torn = [path for path in found if path not in whole]
        return whole, torn + sorted(self.directory.glob(".saving-*"))

    def save(
        self,
        progress: Progress,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> Path:
        """Write a checkpoint of this step. Returns its directory once it is complete."""
        final = self.directory / f"step-{progress.step:08d}"
        partial = self.directory / f".saving-{final.name}"
        if dist.get_rank() == 0:
            for torn in self.complete()[1]:
                shutil.rmtree(torn)
            partial.mkdir(parents=True)
        dist.barrier()
        try:
            save(
                tensors(parameters, optimizer),
                storage_writer=FileSystemWriter(
                    partial, single_file_per_rank=True, sync_files=True
                ),
            )
        except CheckpointException as error:
            free = shutil.disk_usage(self.directory).free
            raise ParctlError(
                f"cannot write {final}, {free / 1e9:.1f} GB are free there: {first_cause(error)}",
                hint="the checkpoints before it are whole, and the next launch continues them",
            ) from None
        dist.barrier()
        if dist.get_rank() == 0:
            content = {"schema": SCHEMA, **asdict(progress)}
            write_synced(partial / DESCRIPTION, json.dumps(content, indent=1))
            write_synced(partial / COMPLETE, "")
            sync_directory(partial)
            os.rename(partial, final)
            sync_directory(self.directory)
            self._remove_old()
        dist.barrier()
        return final

    def _remove_old(self) -> None:
        whole, _ = self.complete()
        if self._keep:
            for path in whole[: -self._keep]:
                (path / COMPLETE).unlink()
                shutil.rmtree(path)

    def load(
        self,
        path: Path,
        model: ModelSpec,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.AdamW,
    ) -> Progress:
        """Read parameters and optimizer state in place, from a checkpoint of any layout."""
        progress = read_progress(path)
        refuse_other_model(path, progress.model, model)
        try:
            load(tensors(parameters, optimizer), storage_reader=FileSystemReader(path))
        except CheckpointException as error:
            raise ParctlError(
                f"cannot read {path}: {first_cause(error)}",
                hint="remove that directory, and the checkpoint before it is used",
            ) from None
        set_step(optimizer, progress.step)
        return progress


def first_cause(error: CheckpointException) -> BaseException:
    """Return what went wrong on the first of the ranks where something did.

    torch's own exception is no `Exception`, so nobody would catch it, and prints the traceback of
    every rank.
    """
    cause, _ = next(iter(error.failures.values()))
    return cause


def step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW
) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint by its name in it."""
    result: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        result[f"model.{name}"] = parameter.detach()
        for moment in MOMENTS:
            result[f"optimizer.{moment}.{name}"] = optimizer.state[parameter][moment]
    return result


def read_progress(path: Path) -> Progress:
    content = json.loads((path / DESCRIPTION).read_text())
    if content.pop("schema") != SCHEMA:
        raise UsageError(
            f"{path} was written by another version of parctl",
            hint=f"this one reads checkpoints of schema {SCHEMA}",
        )
    return Progress(**content)


def refuse_other_model(path: Path, saved: Mapping[str, Any], model: ModelSpec) -> None:
    """Raise when the checkpoint's model has another shape. Name and dropout may differ."""
    wanted = to_json(model)
    different = [
        f"{key} is {saved.get(key)!r} there and {value!r} in the recipe"
        for key, value in wanted.items()
        if key not in ("name", "dropout", "max_seq_len") and saved.get(key) != value
    ]
    if different:
        raise UsageError(
            f"{path} holds another model: {'; '.join(different)}",
            hint="set checkpoint.dir to a new directory, or the model to that of the checkpoint",
        )


def refuse_unusable_directory(directory: Path, layout: Layout, *, run: str) -> None:
    """Raise when `directory` cannot be written, now and not at the first save.

    Raise also when nodes do not share it: each would keep a part that nobody can join.
    """
    probe = directory / f".writable-by-{run}"
    if dist.get_rank() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.touch()
        except OSError as error:
            raise UsageError(
                f"checkpoint.dir = {directory} cannot be written: {error.strerror}",
                hint="set checkpoint.dir to a directory that the ranks may write",
            ) from error
    seen: list[bool] = [True] * dist.get_world_size()
    if layout.num_nodes > 1:
        dist.barrier()
        dist.all_gather_object(seen, probe.exists())
    if dist.get_rank() == 0:
        probe.unlink()
    if not all(seen):
        blind = sorted(layout.ranks[position] for position, sees in enumerate(seen) if not sees)
        raise UsageError(
            f"checkpoint.dir = {directory} is not shared: "
            f"ranks {', '.join(map(str, blind))} do not see what another rank writes",
            hint="set checkpoint.dir to a path that every node mounts",
        )


def write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
