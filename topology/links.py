"""What a link code means: its class, its NVLink count, the bandwidth of a group that crosses it.

A link matrix holds the codes of `nvidia-smi topo -m` (see `parctl.topology.model`). Bandwidth is
one way, per device, in GB/s (10^9 bytes). A switch shows the full link count between every pair
(NV18 on H100), a mesh of direct links shows what joins that pair (NV1, NV2 on DGX-1V). One rule
covers both: a group of g devices whose worst pair has c links can drive min(all links, c x (g - 1))
of them at once.
"""

import re
from functools import lru_cache

from parctl.topology.model import LinkClass
from parctl.topology.products import find_product

PCIE_CODES = frozenset({"PIX", "PXB", "PHB", "NODE", "SYS"})
# best first: a group is as good as its worst pair
BADNESS = {link: position for position, link in enumerate(LinkClass)}
_NVLINK = re.compile(r"NV(\d+)")


@lru_cache(maxsize=1024)
def link_class(code: str) -> LinkClass:
    """Say what a code of the link matrix is.

    >>> link_class("NV18"), link_class("SYS"), link_class("?")
    (<LinkClass.NVLINK: 'nvlink'>, <LinkClass.PCIE: 'pcie'>, <LinkClass.UNKNOWN: 'unknown'>)
    """
    if code == "X":
        return LinkClass.DEVICE
    if _NVLINK.fullmatch(code):
        return LinkClass.NVLINK
    if code in PCIE_CODES:
        return LinkClass.PCIE
    return {"XGMI": LinkClass.XGMI, "HOST": LinkClass.HOST}.get(code, LinkClass.UNKNOWN)


@lru_cache(maxsize=1024)
def link_count(code: str) -> int:
    """How many NVLink or xGMI links join a pair; 0 when it is joined by something else."""
    match = _NVLINK.fullmatch(code)
    return int(match[1]) if match else int(code == "XGMI")


def link_bandwidth(product_name: str | None, code: str, group_size: int) -> float | None:
    """GB/s one way per device of a group whose worst pair is joined by `code`. None: unknown."""
    product = find_product(product_name) if product_name else None
    if product is None:
        return None
    if count := link_count(code):
        if product.links is None or product.link_gb_s is None:
            return None
        return float(min(product.links, count * (group_size - 1)) * product.link_gb_s)
    return product.pcie_gb_s if code in PCIE_CODES else None
