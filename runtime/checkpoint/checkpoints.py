"""Checkpoints that survive a kill at any moment, written by all ranks together.

A process killed anywhere leaves the checkpoints before it untouched and at most one torn directory,
which readers skip and the next save removes (`runtime.checkpoint.directory`). Tensors carry the
plain model's names and their whole shapes, so another layout can read them.

With `async_save` a save costs training one copy to host memory. A thread writes the copy, at most
one at a time: the next save waits for it, and so does the end of the run::

    train  ---copy--------train-----------copy---train---
                 \\--write-----COMPLETE/       \\--write---

The ranks agree on a save through a process group of its own, whose time-out is long and which no
other collective can mix with.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from parctl.errors import ParctlError, UsageError
from parctl.recipes.frozen import to_json
from parctl.recipes.spec import CheckpointSpec, ModelSpec
from parctl.runtime.checkpoint import directory as directory_of
from parctl.runtime.checkpoint.directory import (
    FileRecord,
    Found,
    final_path,
    find_checkpoints,
    partial_path,
    read_description,
)
from parctl.runtime.optimizer import MOMENTS
from parctl.runtime.parallel.mesh import LONG_TIMEOUT
from parctl.topology.layout import Layout

SCHEMA = 1
TOKENIZER = "tokenizer.json"


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
    """The checkpoints in one directory. Every rank makes one at the same time.

    Saving, finishing and loading are collective. `say` is told what happens.
    """

    def __init__(
        self,
        directory: Path,
        spec: CheckpointSpec,
        device: torch.device,
        say: Callable[[str], None],
        *,
        tokenizer: Path | None,
    ) -> None:
        """`tokenizer`: a file that every checkpoint is to hold, for who reads it later."""
        self.directory, self._tokenizer = directory, tokenizer
        self._spec, self._say = spec, say
        self._group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT, group_desc="checkpoint")
        self._stager: DefaultStager | None = None
        if spec.async_save:
            options = StagingOptions(
                use_pinned_memory=device.type == "cuda",
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
            self._stager = DefaultStager(options)
        self._writer: Thread | None = None
        self._failure: BaseException | None = None

    def find(self) -> Found:
        """Return what the first rank finds: files may reach other nodes later."""
        found: list[Found | None] = [None]
        if dist.get_rank() == 0:
            found[0] = find_checkpoints(self.directory)
        dist.broadcast_object_list(found, group=self._group)
        assert found[0]
        return found[0]

    def damage(self, path: Path) -> str | None:
        """Return what is wrong with the content of a checkpoint. Each rank reads its share."""
        own = directory_of.wrong_content(path, share=dist.get_rank(), of=dist.get_world_size())
        said: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(said, own, group=self._group)
        return next((problem for problem in said if problem), None)

    def save(self, progress: Progress, state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint of this step, or copy `state` and write it in the background."""
        self.finish()
        final = final_path(self.directory, progress.step)
        if dist.get_rank() == 0:
            for torn in find_checkpoints(self.directory).torn:
                shutil.rmtree(torn)
            partial_path(final).mkdir(parents=True)
        dist.barrier(self._group)
        if self._stager is None:
            self._write(final, progress, state)
            return
        copy = self._stager.stage(dict(state))
        assert isinstance(copy, dict)
        self._writer = Thread(
            target=self._write_later, args=(final, progress, copy), name="checkpoint", daemon=True
        )
        self._writer.start()

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed on this rank."""
        return self._failure is not None

    def finish(self) -> None:
        """Wait for the save in the background, and raise what it raised."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            raise self._failure

    def _write_later(self, final: Path, progress: Progress, state: Mapping[str, Tensor]) -> None:
        try:
            self._write(final, progress, state)
        except BaseException as error:  # all ranks meet again in `finish`, which raises it
            self._failure = error
            self._say(f"the save of {final.name} failed: {error}")

    def _write(self, final: Path, progress: Progress, state: Mapping[str, Tensor]) -> None:
        partial = partial_path(final)
        rank = dist.get_rank()
        try:
            save(
                dict(state),
                storage_writer=FileSystemWriter(
                    partial, single_file_per_rank=True, sync_files=True
                ),
                process_group=self._group,
            )
        except CheckpointException as error:
            free = shutil.disk_usage(self.directory).free
            raise ParctlError(
                f"cannot write {final}, {free / 1e9:.1f} GB are free there: {first_cause(error)}",
                hint="the checkpoints before it are whole, and the next launch continues them",
            ) from None
        own = [*partial.glob(f"__{rank}_*")]
        if rank == 0:
            own.append(partial / ".metadata")  # which lists what is where
            if self._tokenizer is not None:
                own.append(partial / TOKENIZER)
                shutil.copyfile(self._tokenizer, own[-1])
        gathered: list[dict[str, FileRecord]] = [{}] * dist.get_world_size()
        dist.all_gather_object(
            gathered, {path.name: directory_of.record(path) for path in own}, group=self._group
        )
        if rank == 0:
            records = {name: value for part in gathered for name, value in part.items()}
            directory_of.complete(partial, {"schema": SCHEMA, **asdict(progress)}, records)
            directory_of.remove_old(self.directory, keep=self._spec.keep)
        dist.barrier(self._group)
        self._say(f"saved {final}")

    def load(self, path: Path, state: Mapping[str, Tensor]) -> None:
        """Read tensors in place, from a checkpoint of any layout."""
        try:
            load(dict(state), storage_reader=FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            raise ParctlError(
                f"cannot read {path}: {first_cause(error)}",
                hint="remove that directory, and the checkpoint before it is used",
            ) from None


def first_cause(error: CheckpointException) -> BaseException:
    """Return what went wrong on the first of the ranks where something did.

    torch's own exception is no `Exception`, so nobody would catch it, and prints the traceback of
    every rank.
    """
    cause, _ = next(iter(error.failures.values()))
    return cause


def tensors(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    buffers: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint by its name in it."""
    result: dict[str, Tensor] = {f"model.{name}": buffer for name, buffer in buffers.items()}
    for name, parameter in parameters.items():
        result[f"model.{name}"] = parameter.detach()
        for moment in MOMENTS:
            result[f"optimizer.{moment}.{name}"] = optimizer.state[parameter][moment]
    return result


def read_progress(path: Path) -> Progress:
    content = read_description(path)
    if content.pop("schema", None) != SCHEMA:
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


def take_directory(directory: Path, layout: Layout, *, run: str) -> IO[str] | None:
    """Raise when `directory` cannot be written, now and not at the first save.

    Raise also when another run saves there, and when nodes do not share it: each would keep a part
    that nobody can join. Returns, on one rank, the lock on it; it ends with the process.
    """
    probe, held = directory / f".writable-by-{run}", None
    if dist.get_rank() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.touch()
        except OSError as error:
            raise UsageError(
                f"checkpoint.dir = {directory} cannot be written: {error.strerror}",
                hint="set checkpoint.dir to a directory that the ranks may write",
            ) from error
        held = directory_of.lock(directory, run=run)
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
    return held
