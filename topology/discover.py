"""Find the cluster that a person names: this machine, a saved file, or a line like `h100:16x8`."""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from parctl.errors import UsageError
from parctl.topology.model import Topology

FILE_SUFFIXES = (".json", ".yaml", ".yml")


def discover(source: str | None, *, num_devices: int | None = None) -> Topology:
    """Return the topology of `source`: None or `local`, a file, or a synthetic cluster.

    `num_devices` takes that many devices of this machine; CPU devices may exceed its cores.
    """
    if source is None or source == "local":
        from parctl.topology.local import discover_local

        return discover_local(num_devices)
    if num_devices is not None:
        raise UsageError(
            f"a number of devices ({num_devices}) is for this machine, not for `{source}`",
            hint="say how many in the cluster itself, for example `h100:1x4`",
        )
    from parctl.topology.synthetic import looks_synthetic, parse_cluster

    if source.endswith(FILE_SUFFIXES) or os.path.isfile(source):
        from parctl.topology.store import load_topology

        return load_topology(Path(source))
    if looks_synthetic(source):
        return parse_cluster(source)
    raise UsageError(
        f"no cluster `{source[:60]}`: not a file, and not of the form PRODUCT:NODESxDEVICES",
        hint="; ".join(_hints(source)),
    )


def _hints(source: str) -> Iterator[str]:
    from parctl.topology.products import PRODUCTS

    known = ["local", *(product.key for product in PRODUCTS)]
    nearest = get_close_matches(source.split(":")[0].lower(), known, n=1)
    if nearest:
        yield "did you mean `local`?" if nearest == ["local"] else f"`{nearest[0]}:16x8`?"
    yield "use `local`, a topology file (`parctl topology -o json > FILE`), or e.g. `h100:16x8`"
