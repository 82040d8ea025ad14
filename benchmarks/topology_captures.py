"""Read every capture of a folder and say, kind by kind, how many were read right.

A capture stands in a sub-folder named after its kind. What a person read from it stands beside it,
in NAME.meta.yaml: `complete`, and `expected` with `gpus`, `nvlink_groups`, `numa_groups`, `nics`
(null: the text does not tell), or a `source` line that has `numa [[0, 1]]` or `group [[0, 1]]` in
it. A capture without a meta file counts as read when it gives a topology, or is refused by an error
that says where. A traceback is never right.

    python benchmarks/topology_captures.py DIR [--verbose]
"""

import argparse
import json
import re
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from parctl.errors import ParctlError
from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.store import topology_to_json

FACTS = ("gpus", "nvlink_groups", "numa_groups", "nics")
NO_CAPTURE = ("PROVENANCE.txt",)


def expectation(capture: Path) -> tuple[dict[str, Any], bool] | None:
    """(expected facts, whether the capture is complete) from the meta file, None without one."""
    path = capture.with_name(capture.stem + ".meta.yaml")
    if not path.exists():
        return None
    text = path.read_text()
    try:
        meta = yaml.safe_load(text)
    except yaml.YAMLError:  # a sentence with a colon in it
        meta = {}
    if "expected" in meta:
        return meta["expected"], bool(meta.get("complete", True))
    found: dict[str, Any] = {}
    for word, fact in (("numa", "numa_groups"), ("groups?", "nvlink_groups")):
        if match := re.search(rf"\b{word}\s+(\[\[[\d,\s\[\]]*\]\])", text):
            found[fact] = json.loads(match[1])
    return found, re.search(r"\bcut\b", text) is None


def facts_of(topology: Topology) -> dict[str, Any]:
    """What was read, in the words of the meta files; None is unknown."""
    node = topology_to_json(topology)["nodes"][0]
    return {
        "gpus": len(node["gpus"]),
        "nvlink_groups": node["nvlink_groups"],
        "numa_groups": node["numa_groups"],
        "nics": len(node["nics"]),
    }


def faults(capture: Path) -> Iterator[str]:
    """What is wrong with how a capture is read."""
    expected = expectation(capture)
    try:
        topology = discover(str(capture))
    except ParctlError as error:
        if expected is not None:
            yield f"refused: {error}"
        elif str(capture.name) not in str(error):
            yield f"the error names no file: {error}"
        return
    except Exception:
        yield traceback.format_exc()
        return
    if expected is None:
        return
    wanted, complete = expected
    found = facts_of(topology)
    for fact in FACTS:
        if fact in wanted and found[fact] != wanted[fact]:
            yield f"{fact}: found {found[fact]}, expected {wanted[fact]}"
    lacks = [fact for fact in FACTS if found[fact] is None]
    if (lacks or not complete) and not topology.unknown:
        yield f"`unknown` is empty, but {lacks or 'the capture is cut'}"


def captures(folder: Path) -> list[Path]:
    """All captures below a folder, in order."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".meta.yaml") and path.name not in NO_CAPTURE
    ]
    if not found:
        raise SystemExit(f"{folder}: no captures")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Read every capture of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--verbose", action="store_true", help="name the captures read right, too")
    options = parser.parse_args(arguments)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for capture in captures(options.folder):
        expected = expectation(capture)
        state = "no meta" if expected is None else "complete" if expected[1] else "cut"
        kind = f"{capture.relative_to(options.folder).parent} ({state})"
        total[kind] += 1
        found = list(faults(capture))
        right[kind] += not found
        if options.verbose or found:
            print(f"{'WRONG' if found else 'right'}  {capture.relative_to(options.folder)}")
        for fault in found:
            print("      ", fault.strip().replace("\n", "\n       "))
    width = max(map(len, total))
    for kind in sorted(total):
        print(f"{kind:{width}}  {right[kind]}/{total[kind]}")
    print(f"{'all':{width}}  {right.total()}/{total.total()}")
    return 0 if right == total else 1


if __name__ == "__main__":
    raise SystemExit(main())
