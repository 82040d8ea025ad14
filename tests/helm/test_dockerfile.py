"""The Dockerfile follows the rules that linters check, and builds what the chart runs."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.machine import wait_until
from tests.helm.chart import CHART, ROOT
from tests.helm.conftest import GPU_NODES, Site

FILE = ROOT / "Dockerfile"
LABELS = ("title", "description", "licenses", "version", "revision", "base.name")


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments, continuation lines joined, comments left out."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (found[1], found[2].strip())
        for line in text.splitlines()
        if (found := re.match(r"([A-Z]+)\s+(.*)", line))
    ]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", rest)
            assert match, f"FROM {rest}: a stage has a name"
            found[match[2]] = [(word, match[1])]
        elif found:
            found[list(found)[-1]].append((word, rest))
    return found


def ancestry(target: str) -> Iterator[tuple[str, str]]:
    """The instructions of a target and of what it is made from, nearest first."""
    all_stages = stages()
    while target in all_stages:
        yield from reversed(all_stages[target])
        target = all_stages[target][0][1]


def hadolint(text: str) -> "subprocess.CompletedProcess[str]":
    """The linter of Dockerfiles, with every rule on and no way for the file to turn one off."""
    program = Path(sys.executable).parent / "hadolint"
    strict = ("--disable-ignore-pragma", "--failure-threshold", "style", "--no-color")
    labels = [f"--require-label=org.opencontainers.image.{name}:text" for name in LABELS]
    command = [str(program), *strict, *labels, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


def test_the_linter_has_nothing_to_say() -> None:
    done = hadolint(FILE.read_text())

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("COPY src src", "ADD src src", "DL3020"),
        ("WORKDIR /build", "WORKDIR build", "DL3000"),
        ('ENTRYPOINT ["parctl"]', "ENTRYPOINT parctl", "DL3025"),
        ("FROM ${PYTHON_IMAGE} AS wheel", "FROM python:latest AS wheel", "DL3007"),
    ],
)
def test_the_linter_sees_what_is_wrong(right: str, wrong: str, rule: str) -> None:
    done = hadolint(FILE.read_text().replace(right, wrong, 1))

    assert done.returncode != 0
    assert rule in done.stdout


def test_there_is_a_target_for_cpus_and_one_for_cuda() -> None:
    assert {"cpu", "cuda"} <= set(stages())


def test_every_base_is_named_by_the_build_and_has_no_default() -> None:
    found = stages()
    for name, steps in found.items():
        assert steps[0][1] == "${PYTHON_IMAGE}" or steps[0][1] in found, name
    assert ("ARG", "PYTHON_IMAGE") in instructions()
    assert not any(rest.startswith("PYTHON_IMAGE=") for _, rest in instructions())


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_a_number_and_says_what_it_is(target: str) -> None:
    steps = list(ancestry(target))
    user = next(rest for word, rest in steps if word == "USER")
    labels = " ".join(rest for word, rest in steps if word == "LABEL")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    for key in LABELS:
        assert f"org.opencontainers.image.{key}=" in labels
    assert next(rest for word, rest in steps if word == "ENTRYPOINT").startswith("[")


def test_nothing_is_fetched_by_hand_and_nothing_is_left_behind() -> None:
    for word, rest in instructions():
        assert word != "ADD", rest
        if word == "RUN":
            assert not re.search(r"\b(sudo|curl|wget|apt-get upgrade)\b", rest), rest
            # the file system is read-only later, and every process would compile what it imports
            assert "--no-compile" not in rest, rest
            if "pip install" in rest or "pip wheel" in rest:
                assert rest.count("--no-cache-dir") == rest.count("pip install") + rest.count(
                    "pip wheel"
                )
        if word == "WORKDIR":
            assert rest.startswith("/")


def packages_of_cpu(index: str | None) -> "subprocess.CompletedProcess[str]":
    """What the shell of the build makes of that step, with words for what it would run."""
    (step,) = (rest for word, rest in stages()["packages-cpu"] if word == "RUN")
    script = step.replace("python -m venv", "true").replace("/opt/parctl/bin/pip install", "echo")
    variables = {"PATH": "/usr/bin:/bin"} | ({} if index is None else {"TORCH_INDEX": index})
    return subprocess.run(["sh", "-c", script], env=variables, capture_output=True, text=True)


@pytest.mark.parametrize("index", [None, ""])
def test_torch_for_cpus_is_not_built_without_the_index_that_has_it(index: str | None) -> None:
    assert ("ARG", "TORCH_INDEX") in stages()["packages-cpu"]

    done = packages_of_cpu(index)

    assert (done.returncode, done.stdout) == (2, "")
    assert "TORCH_INDEX: is not set: name the index of CPU wheels" in done.stderr


def test_torch_for_cpus_comes_from_the_index_that_is_named() -> None:
    first = packages_of_cpu("place/of wheels").stdout.splitlines()[0]

    assert first.endswith("--index-url place/of wheels torch numpy")


def test_the_examples_name_every_argument_that_has_no_default() -> None:
    examples = re.findall(r"^#   docker build --target (\w+) +(.*)", FILE.read_text(), re.MULTILINE)

    assert {target for target, _ in examples} == {"cpu", "cuda"}
    for target, words in examples:
        assert "--build-arg PYTHON_IMAGE=" in words
        assert ("--build-arg TORCH_INDEX=" in words) == (target == "cpu")


def test_what_is_copied_is_there_and_is_let_through() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), name
                assert name in allowed, name


def unpacked_wheel(folder: Path) -> Path:
    """As the first stage does it: build the wheel of the copied files alone, and unpack it."""
    context = folder / "context"
    context.mkdir()
    for word, rest in stages()["wheel"]:
        if word == "COPY":
            for name in rest.split()[:-1]:
                subprocess.run(["cp", "-a", str(ROOT / name), str(context / name)], check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    done = subprocess.run(
        [*build, "--outdir", str(folder / "wheels"), str(context)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (folder / "wheels").glob("parctl-*.whl")
    unpacked = folder / "packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


@pytest.mark.slow
def test_the_wheel_alone_runs_what_the_chart_runs(tmp_path: Path) -> None:
    """The daemon needs the standard library and NVIDIA's bindings; it stops at its settings."""
    packages = unpacked_wheel(tmp_path)

    said = subprocess.run(
        [sys.executable, "-P", "-S", "-m", "parctl.cli.discover"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(packages)},
        cwd=tmp_path,
    )

    assert said.returncode == 2
    assert said.stderr.startswith("error: PARCTL_NODE is not set")


@pytest.mark.cluster
@pytest.mark.slow
def test_the_contents_of_the_image_run_in_the_cluster(site: Site) -> None:
    """Not the checkout: the wheel as the image has it, laid over the test image's libraries."""
    folder = site.cluster.machine.folder / "image"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    packages = unpacked_wheel(folder)
    values = {
        "discovery": {
            "extraEnv": [{"name": "PYTHONPATH", "value": "/image"}],
            "extraVolumes": [{"name": "image", "hostPath": {"path": str(packages)}}],
            "extraVolumeMounts": [{"name": "image", "mountPath": "/image", "readOnly": True}],
        }
    }

    site.install("packed", CHART, values)
    site.wait_discovery(len(GPU_NODES))
    pod = site.pods()[0]["metadata"]["name"]
    where = "import parctl.cli.discover as module; print(module.__file__)"
    words = ("-n", site.namespace, "exec", pod, "--", "python3", "-P", "-c", where)
    assert site.cluster.kubectl(*words).strip() == "/image/parctl/cli/discover.py"

    # no node has a driver here, and each says so
    def told() -> bool:
        return all(reason(site, node) == "NoDevice" for node in GPU_NODES)

    wait_until(told, seconds=30, what="word of every node")


def reason(site: Site, node: str) -> str | None:
    record = site.record(node)
    conditions = (record or {}).get("status", {}).get("conditions") or []
    return next((str(c["reason"]) for c in conditions if c["type"] == "Discovered"), None)
