"""Checkpoints as files: which of those in a directory are whole, and how one becomes so.

::

    DIR/.saving-step-00000100/   while it is written; renamed when complete
    DIR/step-00000100/           torch's DCP files, `parctl.json`, and `COMPLETE`, written last
    DIR/.in-use                  locked by the run that saves here, as long as it lives

`COMPLETE` lists the other files with their sizes and CRC-32. So a directory is *torn* when it has
no `COMPLETE`, *damaged* when a file is not what the list says, and whole otherwise. Sizes are
compared when checkpoints are looked for; checksums before one is read, every rank reading its share
of the files. Nothing here needs torch.
"""

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from parctl.errors import UsageError

COMPLETE = "COMPLETE"
DESCRIPTION = "parctl.json"
LOCK = ".in-use"
NAME = re.compile(r"step-(\d{8,})")
BLOCK = 1 << 22  # bytes that are read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What `COMPLETE` says of one file."""

    num_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The checkpoints of a directory."""

    whole: tuple[Path, ...]  # oldest first
    damaged: Mapping[Path, str]  # and what is wrong
    torn: tuple[Path, ...]  # their save did not complete


def local_path(address: str) -> Path:
    """Return the directory that `checkpoint.dir` names: a path, or a `file://` address.

    >>> local_path("file:///mnt/run%201")
    PosixPath('/mnt/run 1')
    """
    if not address.startswith("file://"):
        return Path(address)
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(
            f"checkpoint.dir = {address} is on another machine, {parts.netloc}",
            hint=f"mount it, and write `file://{parts.path}`",
        )
    return Path(unquote(parts.path))


def find_checkpoints(directory: Path) -> Found:
    """Look through `directory`, which need not exist."""
    if not directory.is_dir():
        return Found(whole=(), damaged={}, torn=())
    named = [path for path in directory.iterdir() if NAME.fullmatch(path.name)]
    whole, damaged, torn = [], {}, []
    for path in sorted(named, key=step_of):
        if not (path / COMPLETE).is_file():
            torn.append(path)
        elif problem := wrong_size(path):
            damaged[path] = problem
        else:
            whole.append(path)
    return Found(
        whole=tuple(whole),
        damaged=damaged,
        torn=(*torn, *sorted(directory.glob(".saving-*"))),
    )


def step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match
    return int(match[1])


def final_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def partial_path(final: Path) -> Path:
    return final.parent / f".saving-{final.name}"


def record(path: Path) -> FileRecord:
    """Read a file to its end. About a second per GB."""
    checksum, num_bytes = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum, num_bytes = zlib.crc32(block, checksum), num_bytes + len(block)
    return FileRecord(num_bytes=num_bytes, crc32=checksum)


def read_records(checkpoint: Path) -> dict[str, FileRecord]:
    """Return the list in `COMPLETE`. Raises ValueError when it is none."""
    try:
        content = json.loads((checkpoint / COMPLETE).read_bytes())["files"]
        return {name: FileRecord(**values) for name, values in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{COMPLETE} lists no files") from error


def read_description(checkpoint: Path) -> dict[str, Any]:
    """Return what `parctl.json` says. Raises UsageError where there is none."""
    try:
        content: dict[str, Any] = json.loads((checkpoint / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{checkpoint} is no checkpoint of parctl: {error}",
            hint="name a directory such as `DIR/step-00000100`",
        ) from error
    return content


def wrong_size(checkpoint: Path) -> str | None:
    """Return what is wrong with the sizes of a checkpoint's files."""
    try:
        records = read_records(checkpoint)
    except (OSError, ValueError) as error:
        return str(error)
    for name, expected in records.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is gone"
        num_bytes = path.stat().st_size
        if num_bytes != expected.num_bytes:
            return f"{name} has {num_bytes} bytes, {expected.num_bytes} were written"
    return None


def wrong_content(checkpoint: Path, *, share: int, of: int) -> str | None:
    """Return what is wrong with the content of every `of`-th file from `share` on."""
    for name, expected in sorted(read_records(checkpoint).items())[share::of]:
        try:
            found = record(checkpoint / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected:
            return f"{name} is not what was written: its checksum differs"
    return None


def complete(
    partial: Path, description: Mapping[str, object], records: Mapping[str, FileRecord]
) -> Path:
    """Turn a written directory into a checkpoint. `records` are those of the files of tensors."""
    final = partial.parent / partial.name.removeprefix(".saving-")
    write_synced(partial / DESCRIPTION, json.dumps(description, indent=1))
    described = {DESCRIPTION: record(partial / DESCRIPTION)}
    files = {name: asdict(value) for name, value in {**records, **described}.items()}
    write_synced(partial / COMPLETE, json.dumps({"files": files}, indent=1))
    sync_directory(partial)
    if final.exists():  # torn or damaged, else training would have gone on from it
        shutil.rmtree(final)
    os.rename(partial, final)
    sync_directory(partial.parent)
    return final


def remove_old(directory: Path, *, keep: int) -> None:
    """Remove all that is older than the newest `keep` whole checkpoints; 0 keeps all."""
    found = find_checkpoints(directory)
    if keep == 0 or len(found.whole) <= keep:
        return
    oldest_kept = step_of(found.whole[-keep])
    for path in (*found.whole, *found.damaged):
        if step_of(path) < oldest_kept:
            (path / COMPLETE).unlink(missing_ok=True)  # first: a kill here leaves it torn
            shutil.rmtree(path)


def lock(directory: Path, *, run: str) -> IO[str]:
    """Keep other runs from saving in `directory` until the returned file, or this process, ends.

    Two runs in one directory would remove each other's checkpoints as torn or old. A file system
    without locks is used without.
    """
    file = (directory / LOCK).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise UsageError(
            f"checkpoint.dir = {directory} is in use by run {owner}",
            hint=f"wait for that run (`parctl wait {owner}`), or set checkpoint.dir to another "
            "directory",
        ) from None
    except OSError:
        return file
    file.truncate(0)
    file.write(run + "\n")
    file.flush()
    return file


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
