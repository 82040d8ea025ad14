"""The table of products and the bandwidths that follow from it."""

import pytest

from parctl.errors import UsageError
from parctl.topology.links import link_bandwidth
from parctl.topology.products import PRODUCTS, find_product, product_named


@pytest.mark.parametrize(
    ("printed", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),  # NVML
        ("NVIDIA-H100-80GB-HBM3", "h100"),  # GPU feature discovery
        ("A100-PCIE-40GB", "a100-pcie-40g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80g"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB300 NVL", "gb300"),
        ("AMD Instinct MI300X", "mi300x"),
        ("H100", "h100"),
    ],
)
def test_names_as_tools_print_them_are_found(printed: str, key: str) -> None:
    product = find_product(printed)

    assert product is not None
    assert product.key == key


def test_a_product_outside_the_table_is_not_guessed() -> None:
    assert find_product("NVIDIA H100 80GB HBM4") is None


def test_an_unknown_product_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown product `h10`") as error:
        product_named("h10")

    assert error.value.hint == "did you mean `h100`?"


def test_no_two_products_share_a_name() -> None:
    names = [name for product in PRODUCTS for name in (product.key, *product.names)]
    lowered = [name.lower() for product in PRODUCTS for name in product.names]

    assert len(set(lowered)) == len(lowered)
    assert all(find_product(name) is not None for name in names)


@pytest.mark.parametrize(
    ("key", "both_ways"),
    # vendor figures, GB/s in both directions together
    [
        ("v100", 300),
        ("a100-80g", 600),
        ("h100", 900),
        ("h800", 400),
        ("b200", 1800),
        ("gb200", 1800),
        ("mi300x", 896),
    ],
)
def test_links_add_up_to_the_published_bandwidth(key: str, both_ways: float) -> None:
    gb_s = product_named(key).nvlink_gb_s

    assert gb_s is not None
    assert 2 * gb_s == both_ways


@pytest.mark.parametrize(
    ("product", "code", "size", "gb_s"),
    [
        ("h100", "NV18", 8, 450),  # a switch: all links whatever the size
        ("h100", "NV18", 2, 450),
        ("v100", "NV1", 4, 75),  # direct links: one to each of three peers
        ("v100", "NV2", 2, 50),
        ("mi300x", "XGMI", 8, 448),
        ("mi300x", "XGMI", 2, 64),
        ("l40s", "SYS", 4, 32),
        ("cpu", "HOST", 4, None),
        ("h100", "?", 2, None),
        ("some future device", "NV18", 8, None),
    ],
)
def test_bandwidth_of_a_group(product: str, code: str, size: int, gb_s: float | None) -> None:
    assert link_bandwidth(product, code, size) == gb_s
