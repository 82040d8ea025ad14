"""The images of the cluster, assembled without a registry.

An image here is nearly empty: this machine's `/usr`, its Python and the checkout are bind-mounted
read-only into every container by the runtime's base specification. So a pod runs the code of the
working tree as it is now, and nothing is copied or pulled. A pod's sandbox gets no such mounts,
which is why `pause` is a static program inside the image.
"""

import hashlib
import io
import json
import os
import platform
import sys
import tarfile
from pathlib import Path

from tests.cluster import programs

# A name without a host part would be asked of a registry.
BASE = "parctl.test/base:1"
PAUSE = "parctl.test/pause:1"

TREE = Path(__file__).resolve().parents[2]
# Fixed paths, as in a real image: nothing in a container knows where the checkout lies.
HOME_OF_TREE = "/opt/parctl/tree"
HOME_OF_PYTHON = "/opt/parctl/python"
ENTRY_POINTS = "/opt/parctl/bin"

USER = 1000  # images of the restricted pod security standard name a user that is not root
FOLDERS = ("proc", "sys", "dev", "etc", "run", "var/run", "var/log", "root", "opt", "home/parctl")
SHARED = ("tmp", "var/tmp", "home/parctl")
MERGED_INTO_USR = ("bin", "sbin", "lib", "lib64")

PASSWORDS = f"""root:x:0:0:root:/root:/bin/sh
parctl:x:{USER}:{USER}:parctl:/home/parctl:/bin/sh
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""
FILES = {
    "etc/passwd": PASSWORDS,
    "etc/group": f"root:x:0:\nparctl:x:{USER}:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
}
# Scripts of the environment name the checkout's own path in their first line; these do not.
MODULES = {
    "parctl": "parctl",
    "torchrun": "torch.distributed.run",
    "ray": "ray.scripts.scripts",
}
PATH = f"{ENTRY_POINTS}:{HOME_OF_PYTHON}/bin:/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT = [f"PATH={PATH}", f"PYTHONPATH={HOME_OF_TREE}/src", "PYTHONDONTWRITEBYTECODE=1"]


def binds() -> dict[str, str]:
    """Folders of this machine by where a container sees them."""
    found = {"/usr": "/usr", HOME_OF_TREE: str(TREE), HOME_OF_PYTHON: sys.prefix}
    if not sys.base_prefix.startswith("/usr"):
        found[sys.base_prefix] = sys.base_prefix  # the environment's links lead there
    for name in MERGED_INTO_USR:
        if Path("/", name).is_dir() and not Path("/", name).is_symlink():
            found[f"/{name}"] = f"/{name}"
    return found


def layer() -> bytes:
    """The file system of every image, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        made: set[str] = set()

        def folder(name: str, mode: int = 0o755) -> None:
            parts = name.strip("/").split("/")
            for depth in range(1, len(parts) + 1):
                path = "/".join(parts[:depth])
                if path not in made:
                    made.add(path)
                    entry = tarfile.TarInfo(path)
                    entry.type, entry.mode = tarfile.DIRTYPE, mode if depth == len(parts) else 0o755
                    tar.addfile(entry)

        def file(name: str, content: bytes, mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))

        for name in SHARED:
            folder(name, 0o1777)
        for name in (*FOLDERS, ENTRY_POINTS, *binds()):
            folder(name)
        for name in MERGED_INTO_USR:
            if Path("/", name).is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(f"/{name}")
                tar.addfile(entry)
        for name, text in FILES.items():
            file(name, text.encode())
        for name, module in MODULES.items():
            script = f'#!/bin/sh\nexec python -m {module} "$@"\n'
            file(f"{ENTRY_POINTS.strip('/')}/{name}", script.encode(), 0o755)
        file("pause", Path(programs.path("pause")).read_bytes(), 0o755)
    return buffer.getvalue()


def write_archive(file: Path) -> None:
    """Write both images as one OCI archive, for `ctr images import`."""
    root = layer()
    blobs = {digest(root): root}
    index = []
    for name, settings in {
        BASE: {"User": str(USER), "Env": ENVIRONMENT},
        PAUSE: {"Entrypoint": ["/pause"], "Env": ENVIRONMENT},
    }.items():
        config = document(
            {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
                "os": "linux",
                "config": settings,
                "rootfs": {"type": "layers", "diff_ids": [digest(root)]},
            }
        )
        manifest = document(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", root)],
            }
        )
        blobs |= {digest(config): config, digest(manifest): manifest}
        names = {"io.containerd.image.name": name}
        entry = descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
        index.append({**entry, "annotations": names})
    contents = {
        "oci-layout": document({"imageLayoutVersion": "1.0.0"}),
        "index.json": document({"schemaVersion": 2, "manifests": index}),
    }
    contents |= {f"blobs/sha256/{key.removeprefix('sha256:')}": blobs[key] for key in blobs}
    with tarfile.open(file, "w") as tar:
        for name, content in contents.items():
            entry_of = tarfile.TarInfo(name)
            entry_of.size = len(content)
            tar.addfile(entry_of, io.BytesIO(content))


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def document(value: object) -> bytes:
    return json.dumps(value).encode()


def descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}
