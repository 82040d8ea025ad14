"""What pods read before they can ask anybody: files in ConfigMaps, compressed and cut to size.

An object may hold 1 MiB. Each file is compressed and cut into parts, parts fill ConfigMaps one
after the other, and a projected volume shows all of them in one folder, where `read_payload` puts
the files together again. The same files give the same bytes.
"""

import base64
import gzip
import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from parctl.errors import UsageError

PART_BYTES = 900_000  # of the 1,048,576 that a ConfigMap may hold, keys and metadata apart
MAX_WORKDIR_BYTES = 1 << 20  # compressed
WORKDIR = "workdir.tar"
IGNORED = (".git", "__pycache__", ".venv", "node_modules", ".mypy_cache", ".pytest_cache")


def pack(files: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Return the `binaryData` of one ConfigMap after the other."""
    maps: list[dict[str, str]] = [{}]
    room = PART_BYTES
    for name, content in files.items():
        packed = gzip.compress(content, mtime=0)
        for number, start in enumerate(range(0, len(packed), PART_BYTES)):
            part = packed[start : start + PART_BYTES]
            if len(part) > room:
                maps.append({})
                room = PART_BYTES
            maps[-1][f"{name}.gz.{number:03d}"] = base64.b64encode(part).decode()
            room -= len(part)
    return maps


def read_payload(folder: Path, name: str) -> bytes | None:
    """Return a file that `pack` put there; None when there is none of that name."""
    parts = sorted(folder.glob(f"{name}.gz.*"))
    return gzip.decompress(b"".join(part.read_bytes() for part in parts)) if parts else None


def read_workdir(folder: Path) -> bytes:
    """Return a folder as a tar archive. UsageError when it is too large to be sent along."""
    if not folder.is_dir():
        raise UsageError(f"launch.workdir = {folder} is no folder")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _files(folder):
            archive.add(path, arcname=str(path.relative_to(folder)), filter=_plain)
    packed = len(gzip.compress(buffer.getvalue(), mtime=0))
    if packed > MAX_WORKDIR_BYTES:
        raise UsageError(
            f"launch.workdir = {folder} is {packed / 2**20:.1f} MiB compressed, and 1 MiB fits in "
            "a ConfigMap",
            hint="put it in the image, or on a volume: `launch.kubernetes.volumes` and "
            "`script.workdir`",
        )
    return buffer.getvalue()


def unpack_workdir(archive: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(part in IGNORED for part in inside):
            yield path


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop what differs from machine to machine."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.pax_headers = {}
    return entry
