"""Which source of a fact is believed before which.

A source is what a fact carries (`nvml`, `nvidia-smi topo`, `k8s-label KEY`, ...); its first word
decides. Lower ranks are better. What a person wrote into a topology file has no source, or `file`:
it is meant to override.
"""

# the inside of a node: the driver, the kernel, what tools printed, what a cluster relays
INSIDE = (
    "file",
    "nvml",
    "amdsmi",
    "sysfs",
    "os",
    "nvidia-smi",
    "rocm-smi",
    "nccl-xml",
    "k8s-slice",
    "k8s-status",
    "k8s-annotation",
    "k8s-label",
    "ray",
)
# above the node: who planned the fabric, who measured it, who relays it
ABOVE = (
    "file",
    "kueue",
    "nvml",
    "k8s-label",
    "topograph",
    "slurm",
    "ray-label",
    "ibnetdiscover",
    "synthetic",
)
GAP_FILLERS = frozenset({"product", "synthetic"})  # no witnesses: they never contradict anybody


def fact_rank(fact: str, source: str | None) -> int:
    """Rank of a source for a fact, 0 the best.

    >>> fact_rank("numa", "nvml") < fact_rank("numa", "smi") < fact_rank("numa", "product")
    True
    """
    word = _word(source)
    table = ABOVE if fact in ("domain", "tiers") else INSIDE
    if word in table:
        return table.index(word)
    return len(table) + (1 if word in GAP_FILLERS else 0)


def is_witness(source: str | None) -> bool:
    """Whether a source saw the machine, and did not look it up in a table."""
    return _word(source) not in GAP_FILLERS


def _word(source: str | None) -> str:
    return (source or "file").split()[0].rstrip(",")
