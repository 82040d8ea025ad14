"""Read mutated captures and check that each ends in a topology or an error with a place.

Captures are generated, and taken from a folder if one is given. They are cut, joined, repeated and
scrambled, then read as `parctl topology --from FILE` reads them, one in ten by a reader that did
not ask for it. What may never happen: an exception that is not a ParctlError, more than 5 s of CPU
for one text, 1000 MiB of memory, a topology that cannot be written and read back.

    python benchmarks/topology_fuzz.py [DIR] --count 1000000 --seed 1
"""

import argparse
import importlib
import json
import random
import re
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from parctl.errors import ParctlError
from parctl.topology.check.findings import with_findings
from parctl.topology.check.questions import check_topology
from parctl.topology.discover import FORMATS, read_any
from parctl.topology.export import export_text
from parctl.topology.model import Hardware, Topology
from parctl.topology.store import topology_from_json, topology_to_json
from parctl.topology.synthetic import parse_cluster

NAME = "capture.txt"
LIMIT_S = 5  # of CPU; a Slurm line may name a million nodes
MAX_TEXT = 40_000
LIMIT_MIB = 1000
WORDS = (
    "GPU0", "GPU1", "GPU7", "GPU99", "GPU9999", "NIC0", "NIC8NIC9", "mlx5_0", "X", "NV1", "NV18",
    "NV999", "PIX", "NODE", "SYS", "SOC", "OK", "CNS", "N/A", "0-3", "0-99999", "0,2,4", "-1", "\t",
    "\t\t", "\n", "\r\n", "        ", "<br>", "\x1b[4m", "&nbsp;", "|", "#", "CPU Affinity",
    "NUMA Affinity", "GPU NUMA ID", "topo -mp", "topo -p2p r", "\x00", "\u00e9", "\u0663",
    "99999999999999999999", "XGMI", "PCIE", "15", "30", "GPU[0] : (Topology) Numa Node: 0",
    "Weight between two GPUs", "Link Type between two GPUs", "<pci>", "</pci>", "<cpu numaid='0'>",
    "<gpu dev='0'>", "busid=''", 'count="9"', "<!DOCTYPE a>", "&a;", "[1]", '"S-0"', '"H-1"[1]',
    "Switch 1", "4xHDR", "GPU 0: A (UUID: GPU-0)", "Link 0: <inactive>", "Link 99: 1.2.3 GB/s",
    "MIG 1g.5gb Device 0:", ":", "host-1: ", "{", "}", "[", "]", "null", "- ", "*a", "&a x",
)  # fmt: skip


def mutate(text: str, others: Sequence[str], chance: random.Random) -> str:
    """Damage a capture in one to six ways."""
    for _ in range(chance.randint(1, 6)):
        if not text:
            return chance.choice(WORDS)
        at = chance.randrange(len(text))
        end = min(len(text), at + chance.choice((1, 2, 5, 20, 80, 400)))
        match chance.randrange(12):
            case 0:
                text = text[:at]
            case 1:
                text = text[at:]
            case 2:
                text = text[:at] + text[end:]
            case 3:
                text = text[:end] + text[at:]
            case 4:
                text = text[:at] + chance.choice(WORDS) + text[at:]
            case 5:
                text = text[:at] + chance.choice(WORDS) + text[end:]
            case 6:
                text = (
                    text[:at]
                    + chr(chance.choice((32, 9, 10, 34, 48, 57, 60, 233, 0x663)))
                    + text[end:]
                )
            case 7:
                lines = text.split("\n")
                i, j = chance.randrange(len(lines)), chance.randrange(len(lines))
                lines[i], lines[j] = lines[j], lines[i]
                text = "\n".join(lines)
            case 8:
                lines = text.split("\n")
                del lines[chance.randrange(len(lines))]
                text = "\n".join(lines)
            case 9:
                width = chance.choice((20, 80, 132))
                text = "\n".join(text[i : i + width] for i in range(0, len(text), width))
            case 10:
                other = chance.choice(others)
                cut = chance.randrange(len(other) + 1)
                text = text[:at] + other[cut:]
            case 11:
                old = chance.choice(("\t", "\n", " ", "  ", "0", "X", "NV", "-", '"'))
                text = text.replace(
                    old, chance.choice(("", " ", old * 2, "\n", "1")), chance.randint(1, 40)
                )
        text = text[:MAX_TEXT]
    return text


def topo_text(hardware: Hardware) -> str:
    """What `nvidia-smi topo -m` prints for this hardware, NIC rows and legend included."""
    gpus = [f"GPU{device.index}" for device in hardware.devices]
    nics = [f"NIC{i}" for i in range(len(hardware.nics))]
    lines = ["\t" + "\t".join([*gpus, *nics, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for i, device in enumerate(hardware.devices):
        cells = [*hardware.matrix[i], *hardware.nic_matrix[i]]
        tail = f"{8 * (device.numa or 0)}-{8 * (device.numa or 0) + 7}\t{device.numa}\t\tN/A"
        lines.append("\t".join([gpus[i], *cells, tail]).replace("\tX\t", "\t X \t"))
    for j, nic in enumerate(nics):
        near = [row[j] for row in hardware.nic_matrix]
        others = [" X " if j == k else "SYS" for k in range(len(nics))]
        lines.append("\t".join([nic, *near, *others]))
    lines += ["", "Legend:", "", "  X    = Self", "  NV#  = a bonded set of # NVLinks", ""]
    lines += ["NIC Legend:", "", *(f"  {nic}: mlx5_{j}" for j, nic in enumerate(nics))]
    return "\n".join(lines) + "\n"


def peers_text(ends: Sequence[Sequence[str]]) -> str:
    """What `nvidia-smi nvlink -R` prints for GPUs whose links end at these addresses."""
    lines = []
    for i, addresses in enumerate(ends):
        lines.append(
            f"GPU {i}: NVIDIA A100-PCIE-80GB (UUID: GPU-0000000{i}-d444-d92c-c36b-6abe53445cb9)"
        )
        lines += [
            f"\t Link {link}: Remote Device {address}: Link {link}"
            for link, address in enumerate(addresses)
        ]
    return "\n".join(lines) + "\n"


def generated_captures() -> list[str]:
    """Texts in every format that parctl itself can write, and of where NVLinks end."""
    pair = ("00000000:27:00.0", "00000000:38:00.0")
    switches = ("00000005:00:00.0", "00000006:00:00.0")
    texts = [peers_text([pair[1:] * 4, pair[:1] * 4]), peers_text([switches * 3] * 4)]
    for line in ("v100:1x8", "h100:1x8", "gb200:2x2x4"):
        topology = parse_cluster(line)
        texts += [
            topo_text(topology.nodes[0].hardware),
            *(export_text(topology, form) for form in ("nccl-xml", "slurm", "kueue")),
            json.dumps(topology_to_json(topology), indent=1),
        ]
    return texts


def load_captures(folder: Path) -> list[str]:
    """Texts of the captures below a folder."""
    texts = [
        path.read_text(errors="replace")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".meta.yaml")
    ]
    if not texts:
        raise SystemExit(f"{folder}: no captures")
    return texts


def read(text: str, unasked: str | None) -> Topology | None:
    """Read a text, with the reader `unasked` if one is named; None when it is refused."""
    try:
        if unasked is None:
            return read_any(text, NAME)
        module = importlib.import_module(f"parctl.topology.sources.{unasked}")
        topology: Topology = module.read_text(text, NAME)
        return topology
    except ParctlError as error:
        assert NAME in str(error), f"no file in `{error}`"
        return None


def check_writing(topology: Topology) -> None:
    """A topology is the same after writing and reading, and can be checked and drawn."""
    if len(topology.nodes) <= 1000:
        again = topology_from_json(json.loads(json.dumps(topology_to_json(topology))))
        assert again.digest == topology.digest, "not the same after writing and reading"
    if topology.num_devices <= 64 and len(topology.nodes) <= 64:
        export_text(with_findings(topology), "svg")
        check_topology(topology)


def failure_place(error: Exception) -> str:
    """Where an exception was raised: many mutations fail in one place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {frame.filename}:{frame.lineno}"


def too_slow(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {LIMIT_S} CPU s for one text")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Read mutated captures.")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    options = parser.parse_args(arguments)
    captures = generated_captures()
    if options.folder is not None:
        captures += load_captures(options.folder)
    formats = sorted(FORMATS)
    outcomes: Counter[str] = Counter()
    failures: set[str] = set()  # one per place in the code is shown
    slowest = (0.0, 0)
    signal.signal(signal.SIGVTALRM, too_slow)
    start = time.process_time()
    for number in range(options.first, options.first + options.count):
        chance = random.Random(options.seed * 2**40 + number)
        text = mutate(chance.choice(captures), captures, chance)
        unasked = chance.choice(formats) if chance.random() < 0.1 else None
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
        try:
            topology = read(text, unasked)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if topology is not None:
                check_writing(topology)
        except Exception as error:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if (place := failure_place(error)) not in failures:
                failures.add(place)
                print(f"--seed {options.seed} --first {number} --count 1:", file=sys.stderr)
                print(f"{text}\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            outcomes["FAILED"] += 1
            continue
        outcomes["refused" if topology is None else "read"] += 1
        slowest = max(slowest, (time.process_time() - began, number))
        if options.count > 50_000 and (number + 1) % 50_000 == 0:
            print(
                f"{number + 1:,} {dict(outcomes)} peak {peak_mib():.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(
        f"{options.count:,} mutations of {len(captures)} captures in "
        f"{time.process_time() - start:.0f} CPU s: {counts}; slowest {slowest[0] * 1000:.0f} ms "
        f"(number {slowest[1]}), peak {peak_mib():.0f} MiB"
    )
    return 1 if failures or peak_mib() >= LIMIT_MIB else 0


def peak_mib() -> float:
    # not ru_maxrss: that includes the peak of the process we were forked from
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    raise SystemExit(main())
