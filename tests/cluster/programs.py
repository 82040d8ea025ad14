"""The programs of the cluster: what they are, where they are kept, how they are built.

`go.mod` beside this file is the one place that names versions; Helm, which shares no library with
the rest, has its own in `helm/`. A program is built once and kept as
`NAME-VERSION` in a cache outside the tree, so that neither a checkout nor `make clean` builds it
again; the resource definitions and webhook manifests that a controller brings are kept beside it.
What Debian has (containerd, runc, the CNI plugins) is installed, not built.

    python -m tests.cluster.programs        # what `make cluster-deps` runs
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parctl" / "cluster"

KUBERNETES = "k8s.io/kubernetes"
# Built without it, the server's version is a placeholder that controllers cannot parse.
VERSION_VARIABLES = "k8s.io/component-base/version"

DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "ctr": "containerd",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


class ProgramsMissing(Exception):
    """The cluster cannot start here; the text says what is absent and what to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    package: str  # what `go build` is given
    module: str  # whose version is the program's version
    manifests: tuple[str, ...] = ()  # folders and files of the module that are kept beside it
    folder: str = "."  # where the Go module is that builds it

    @property
    def version(self) -> str:
        return module_versions()[self.module]

    @property
    def path(self) -> Path:
        return CACHE / f"{self.name}-{self.version}"

    @property
    def manifests_path(self) -> Path:
        return CACHE / f"{self.name}-{self.version}.manifests"

    @property
    def built(self) -> bool:
        return self.path.is_file() and (not self.manifests or self.manifests_path.is_dir())


CORE = (
    Program(name="pause", package="./pause", module=KUBERNETES),
    Program(name="etcd", package="go.etcd.io/etcd/server/v3", module="go.etcd.io/etcd/server/v3"),
    *(
        Program(name=name, package=f"k8s.io/kubernetes/cmd/{name}", module=KUBERNETES)
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "kubelet",
            "kubectl",
        )
    ),
    Program(name="coredns", package="./coredns", module="github.com/coredns/coredns"),
)
CONTROLLERS = (
    Program(
        name="jobset",
        package="sigs.k8s.io/jobset",
        module="sigs.k8s.io/jobset",
        manifests=("config/components/crd/bases", "config/components/webhook/manifests.yaml"),
    ),
    Program(
        name="kueue",
        package="sigs.k8s.io/kueue/cmd/kueue",
        module="sigs.k8s.io/kueue",
        manifests=("config/components/crd/bases", "config/components/webhook/manifests.yaml"),
    ),
    Program(
        name="lws",
        package="sigs.k8s.io/lws/cmd",
        module="sigs.k8s.io/lws",
        manifests=("config/crd/bases", "config/webhook/manifests.yaml"),
    ),
    Program(
        name="kuberay",
        package="./kuberay",
        module="github.com/ray-project/kuberay/ray-operator",
        manifests=("config/crd/bases",),
    ),
    Program(
        name="kwok",
        package="sigs.k8s.io/kwok/cmd/kwok",
        module="sigs.k8s.io/kwok",
        manifests=(
            "kustomize/stage/node/fast",
            "kustomize/stage/node/heartbeat-with-lease",
            "kustomize/stage/pod/fast",
        ),
    ),
)
HELM = tuple(
    Program(
        name=f"helm{major}",
        package=f"helm.sh/helm/v{major}/cmd/helm",
        module=f"helm.sh/helm/v{major}",
        folder="helm",
    )
    for major in (3, 4)
)
PROGRAMS = {program.name: program for program in CORE + CONTROLLERS + HELM}


def module_versions() -> dict[str, str]:
    """Versions by module, as the `go.mod` files require them."""
    texts = [(HERE / folder / "go.mod").read_text() for folder in ("helm", ".")]
    found = [re.findall(r"^\s+(\S+) (v\S+)", text, re.MULTILINE) for text in texts]
    return dict(found[0]) | dict(found[1])


def path(name: str) -> str:
    """Return the program's file; it may not be there, see `missing`."""
    return str(PROGRAMS[name].path)


def missing() -> list[str]:
    """The programs that no cluster can do without and that are not here."""
    absent = [name for name in DEBIAN if shutil.which(name) is None]
    return absent + [program.name for program in CORE if not program.built]


def build() -> Iterator[str]:
    """Install and build what is not there, and yield one line for each.

    Raises:
        ProgramsMissing: no Go, no root for the system packages, or a build that failed.
    """
    packages = sorted({DEBIAN[name] for name in DEBIAN if shutil.which(name) is None})
    if packages:
        install(packages)
        yield f"installed {', '.join(packages)}"
    for program in PROGRAMS.values():
        if program.built:
            yield f"{program.name} {program.version} is there"
            continue
        start = time.monotonic()
        build_one(program)
        yield f"{program.name} {program.version} built in {time.monotonic() - start:.0f} s"


def install(packages: list[str]) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ProgramsMissing(
            f"these packages are not installed: {' '.join(packages)}. "
            "hint: run `make cluster-deps` as root on Debian, or install them by hand"
        )
    # Debian starts containerd as a service on installing it; the cluster starts its own.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends"]):
        names = packages if words[0] == "install" else []
        done = subprocess.run(["apt-get", *words, *names], env=quiet, capture_output=True)
        if done.returncode != 0:
            raise ProgramsMissing(f"apt-get {words[0]} failed: {done.stderr.decode()[-500:]}")


def build_one(program: Program) -> None:
    if shutil.which("go") is None:
        raise ProgramsMissing(
            f"`{program.name}` is built from source and Go is not here. "
            f"hint: install Go {go_version()} or newer and run `make cluster-deps` again"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    kubernetes = module_versions()[KUBERNETES]
    major, minor, _ = kubernetes.removeprefix("v").split(".")
    facts = {"gitVersion": kubernetes, "gitMajor": major, "gitMinor": minor}
    facts |= {"gitTreeState": "clean", "gitCommit": "unknown", "buildDate": "2026-01-01T00:00:00Z"}
    variables = " ".join(f"-X {VERSION_VARIABLES}.{name}={text}" for name, text in facts.items())
    unfinished = program.path.with_suffix(program.path.suffix + ".part")
    flags = ("-trimpath", f"-ldflags=-s -w {variables}", "-o", str(unfinished))
    go("build", *flags, program.package, folder=program.folder)
    if program.manifests:
        keep_manifests(program)
    unfinished.rename(program.path)


def keep_manifests(program: Program) -> None:
    source = Path(go("list", "-m", "-f", "{{.Dir}}", program.module).strip())
    shutil.rmtree(program.manifests_path, ignore_errors=True)
    program.manifests_path.mkdir()
    for name in program.manifests:
        files = (
            [source / name] if name.endswith(".yaml") else sorted((source / name).glob("*.yaml"))
        )
        for file in files:
            if file.name != "kustomization.yaml":
                shutil.copyfile(file, program.manifests_path / file.name)


def go(*words: str, folder: str = ".") -> str:
    """Run Go here, or in a folder below; static programs run inside any container."""
    done = subprocess.run(
        ["go", *words],
        cwd=HERE / folder,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ProgramsMissing(f"`go {words[0]} {words[-1]}` failed:\n{done.stderr[-2000:]}")
    return done.stdout


def go_version() -> str:
    found = re.search(r"^go (\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert found
    return found[1]


def main() -> int:
    try:
        for line in build():
            print(line, flush=True)
    except ProgramsMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
