"""The table of known devices: what a product can do, when nobody has measured it.

Every number is a vendor figure for dense arithmetic (no sparsity); the comment over each block says
where it was read. Bandwidths are one way. Memory is what a device shows to NVML where a capture
says so, else the marketing gigabytes x 10^9, which is never too much. A discovered fact always wins
over this table; a fact taken from it has the source `product`.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal

from parctl.errors import UsageError

# how the devices of one node are joined:
#   switch  every pair through NVSwitch, with all links      direct  a link between every pair
#   hybrid  the DGX-1V cube mesh: connected, not full        none    PCIe only
#   host    CPU slots sharing memory
Mesh = Literal["switch", "direct", "hybrid", "none", "host"]

# DGX-1V (and p3dn, NDv2): NVLinks between GPUs of the hybrid cube mesh, 6 per GPU
DGX_1V = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)
TERA = 10**12
GIGA = 10**9
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    key: str
    names: tuple[str, ...]  # as NVML, nvidia-smi, GPU feature discovery or rocm-smi print it
    mesh: Mesh
    memory_bytes: int | None
    bf16_flops: float | None  # peak per second, dense; fp16 where a device has no bf16
    fp8_flops: float | None
    memory_bytes_s: float | None
    links: int | None  # NVLink or xGMI links of one device
    link_gb_s: float | None  # GB/s one way over one link
    pcie_gb_s: float | None  # GB/s one way to the host
    nic_gbit_s: float | None  # usual network share of one device, Gbit/s
    devices_per_node: int  # usual
    max_devices_per_node: int
    domain_devices: int | None  # most of a rack-scale NVLink domain; None: it ends at the node
    numa_nodes: int  # usual per node
    watts: float | None  # that a board may draw; None: not looked up

    @property
    def nvlink_gb_s(self) -> float | None:
        """GB/s one way of one device over all its links."""
        if self.links is None or self.link_gb_s is None:
            return None
        return self.links * self.link_gb_s


def _gpu(
    key: str,
    *names: str,
    mesh: Mesh,
    memory: int,
    bf16: float,
    fp8: float | None,
    memory_tb_s: float,
    links: tuple[int, float] | None,
    pcie: float,
    nic: float,
    node: int = 8,
    node_max: int = 8,
    domain: int | None = None,
    numa: int = 2,
    watts: float | None = None,
) -> Product:
    return Product(
        key=key,
        names=names,
        mesh=mesh,
        memory_bytes=memory,
        bf16_flops=bf16 * TERA,
        fp8_flops=None if fp8 is None else fp8 * TERA,
        memory_bytes_s=memory_tb_s * TERA,
        links=links[0] if links else None,
        link_gb_s=float(links[1]) if links else None,
        pcie_gb_s=float(pcie),
        nic_gbit_s=float(nic),
        devices_per_node=node,
        max_devices_per_node=node_max,
        domain_devices=domain,
        numa_nodes=numa,
        watts=watts,
    )


# fmt: off
PRODUCTS: tuple[Product, ...] = (
    # Volta: datasheet 125 TFLOP/s fp16, 0.9 TB/s, 6 NVLink2 of 25 GB/s, PCIe 3; DGX-1 has 4 x 100
    # Gbit/s for 8
    _gpu("v100", "Tesla V100-SXM2-16GB", "V100-SXM2", "V100 SXM", mesh="hybrid",
            memory=16 * GIGA, bf16=125, fp8=None, memory_tb_s=0.9, links=(6, 25), pcie=16, nic=50,
            node_max=16),
    _gpu("v100-32g", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB", mesh="hybrid",
            memory=32 * GIGA, bf16=125, fp8=None, memory_tb_s=0.9, links=(6, 25), pcie=16, nic=50,
            node_max=16),
    _gpu("v100-pcie", "Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB", mesh="none",
            memory=16 * GIGA, bf16=112, fp8=None, memory_tb_s=0.9, links=None, pcie=16, nic=50),
    # Turing, datasheet: 65 TFLOP/s fp16, 320 GB/s; 15109 MiB are visible with ECC on; g4dn.metal
    # 100 Gbit/s for 8
    _gpu("t4", "Tesla T4", mesh="none", memory=15_109 * MIB, bf16=65, fp8=None, memory_tb_s=0.32,
            links=None, pcie=16, nic=12.5),
    # Ampere: datasheets 312 TFLOP/s bf16, 1.56 and 2.04 TB/s, 12 NVLink3 of 25 GB/s (600 both
    # ways), PCIe 4; 40536 MiB is the memory label that GPU feature discovery gives a 40 GB card;
    # A800: 8 links (400 both ways)
    _gpu("a100-40g", "A100-SXM4-40GB", mesh="switch", memory=40_536 * MIB, bf16=312, fp8=None,
            memory_tb_s=1.56, links=(12, 25), pcie=32, nic=200, node_max=16),
    _gpu("a100-80g", "A100-SXM4-80GB", "a100", mesh="switch", memory=80 * GIGA, bf16=312,
            fp8=None, memory_tb_s=2.04, links=(12, 25), pcie=32, nic=200, node_max=16, watts=400),
    _gpu("a100-pcie-40g", "A100-PCIE-40GB", mesh="none", memory=40_536 * MIB, bf16=312, fp8=None,
            memory_tb_s=1.56, links=(12, 25), pcie=32, nic=100),
    _gpu("a100-pcie-80g", "A100 80GB PCIe", "a100-pcie", mesh="none", memory=80 * GIGA, bf16=312,
            fp8=None, memory_tb_s=1.94, links=(12, 25), pcie=32, nic=100),
    _gpu("a800", "A800-SXM4-80GB", mesh="switch", memory=80 * GIGA, bf16=312, fp8=None,
            memory_tb_s=2.04, links=(8, 25), pcie=32, nic=200),
    # A10G: AWS g5 page 70 TFLOP/s fp16 dense, 600 GB/s; g5.48xlarge has 100 Gbit/s for 8
    _gpu("a10g", "A10G", mesh="none", memory=24 * GIGA, bf16=70, fp8=None, memory_tb_s=0.6,
            links=None, pcie=32, nic=12.5),
    # Ada datasheets; g6.48xlarge has 100 Gbit/s for 8 L4
    _gpu("l4", "L4", mesh="none", memory=24 * GIGA, bf16=121, fp8=242, memory_tb_s=0.3,
            links=None, pcie=32, nic=12.5),
    _gpu("l40s", "L40S", mesh="none", memory=48 * GIGA, bf16=362, fp8=733, memory_tb_s=0.864,
            links=None, pcie=32, nic=100, node_max=10),
    # Hopper datasheets: 989/1979 TFLOP/s, 18 NVLink4 of 25 GB/s (900 both ways), PCIe 5; 81559 MiB
    # is NVML's total on H100 SXM; H800 has 8 links (400 both ways); H20: 148/296 TFLOP/s; PCIe
    # cards: 12 links over a pair's bridge; boards of 700 W, H20 of 400
    _gpu("h100", "H100 80GB HBM3", "H100 SXM", "H100-SXM5-80GB", mesh="switch",
            memory=81_559 * MIB, bf16=989, fp8=1979, memory_tb_s=3.35, links=(18, 25), pcie=64,
            nic=400, watts=700),
    _gpu("h100-pcie", "H100 PCIe", mesh="none", memory=80 * GIGA, bf16=756, fp8=1513,
            memory_tb_s=2.0, links=(12, 25), pcie=64, nic=200),
    _gpu("h800", "H800", "H800-SXM5-80GB", mesh="switch", memory=80 * GIGA, bf16=989, fp8=1979,
            memory_tb_s=3.35, links=(8, 25), pcie=64, nic=400, watts=700),
    _gpu("h20", "H20", mesh="switch", memory=96 * GIGA, bf16=148, fp8=296, memory_tb_s=4.0,
            links=(18, 25), pcie=64, nic=400, watts=400),
    _gpu("h200", "H200", "H200 SXM", mesh="switch", memory=141 * GIGA, bf16=989, fp8=1979,
            memory_tb_s=4.8, links=(18, 25), pcie=64, nic=400, watts=700),
    # Blackwell: NVIDIA's benchmarking recipes state 2250/4500 (B200) and 2450/4900 (GB200); 18
    # NVLink5 of 50 GB/s (1800 both ways); B300 and GB300 about 2500/5000, 800 Gbit/s; NVL72: 18
    # trays of 4 GPUs in one domain; boards of 1000, 1200, 1100 and 1400 W
    _gpu("b200", "B200", mesh="switch", memory=180 * GIGA, bf16=2250, fp8=4500, memory_tb_s=8.0,
            links=(18, 50), pcie=64, nic=400, watts=1000),
    _gpu("gb200", "GB200", "GB200 NVL72", mesh="switch", memory=186 * GIGA, bf16=2450, fp8=4900,
            memory_tb_s=8.0, links=(18, 50), pcie=64, nic=400, node=4, node_max=4, domain=72,
            watts=1200),
    _gpu("b300", "B300", "B300 SXM6 AC", mesh="switch", memory=288 * GIGA, bf16=2500, fp8=5000,
            memory_tb_s=8.0, links=(18, 50), pcie=128, nic=800, watts=1100),
    _gpu("gb300", "GB300", "GB300 NVL", "GB300 NVL72", mesh="switch", memory=288 * GIGA,
            bf16=2500, fp8=5000, memory_tb_s=8.0, links=(18, 50), pcie=128, nic=800, node=4,
            node_max=4, domain=72, watts=1400),
    # AMD datasheet: 1307/2615 TFLOP/s, 192 GB, 5.3 TB/s, 7 Infinity Fabric links of 64 GB/s, one to
    # each peer
    _gpu("mi300x", "AMD Instinct MI300X", "AMD Instinct MI300X OAM", mesh="direct",
            memory=192 * GIGA, bf16=1307, fp8=2615, memory_tb_s=5.3, links=(7, 64), pcie=64,
            nic=400),
    # a slot for a CPU rank: how fast it is depends on the machine, so nothing is claimed
    Product(key="cpu", names=("CPU",), mesh="host", memory_bytes=None, bf16_flops=None,
            fp8_flops=None, memory_bytes_s=None, links=None, link_gb_s=None, pcie_gb_s=None,
            nic_gbit_s=None, devices_per_node=8, max_devices_per_node=1024, domain_devices=None,
            numa_nodes=1, watts=None),
)
# fmt: on


@lru_cache(maxsize=4096)
def find_product(name: str) -> Product | None:
    """Look a product up by its key or the name that a vendor's tool prints. None: not in the table.

    >>> find_product("NVIDIA-H100-80GB-HBM3").key, find_product("Tesla V100-SXM2-16GB").key
    ('h100', 'v100')
    """
    return _BY_NAME.get(_plain(name))


def product_named(name: str) -> Product:
    """Look a product up by key; UsageError with the nearest known key when there is none."""
    product = find_product(name)
    if product is None:
        keys = [known.key for known in PRODUCTS]
        nearest = get_close_matches(name.lower(), keys, n=1)
        raise UsageError(
            f"unknown product `{name}`",
            hint=f"did you mean `{nearest[0]}`?" if nearest else f"known: {', '.join(keys)}",
        )
    return product


def usual_code(product: Product, num_devices: int, i: int, j: int, *, same_numa: bool) -> str:
    """Link code between devices i and j of a usual node of `num_devices` of this product.

    >>> usual_code(product_named("v100"), 8, 0, 5, same_numa=False)
    'SYS'
    """
    if i == j:
        return "X"
    pcie = "NODE" if same_numa else "SYS"
    if product.mesh == "host":
        return "HOST"
    if product.mesh == "none":
        return pcie
    if product.mesh == "direct":
        return "XGMI"
    if product.mesh == "hybrid" and num_devices <= len(DGX_1V):
        return f"NV{DGX_1V[i][j]}" if DGX_1V[i][j] else pcie
    # sixteen V100 sit on NVSwitch too (DGX-2)
    return f"NV{product.links}"


def _plain(name: str) -> str:
    """Lower case, dashes between words, no vendor: `NVIDIA H100 PCIe` -> `h100-pcie`."""
    words = re.sub(r"[\s_-]+", "-", name.strip().lower())
    return re.sub(r"^(nvidia|tesla|amd-instinct|amd)-", "", words.removeprefix("nvidia-"))


_BY_NAME = {_plain(name): product for product in PRODUCTS for name in (product.key, *product.names)}
