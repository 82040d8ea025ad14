"""A record holds the facts of a node once, and the node comes back out of it."""

import json
from dataclasses import replace

from tests.topology.discovery.nodes import gpu, node, reading

from parctl.topology.discovery.record import lost, node_of, record_of
from parctl.topology.store import topology_from_json


def hardware_of(found: dict[str, object]) -> object:
    document = {"schema": 1, "name": "n", "source": "s", "nodes": [found]}
    return topology_from_json(document).nodes[0].hardware


def test_a_record_leaves_out_what_is_derived_unknown_or_the_same_for_all() -> None:
    record = record_of(reading(), {})

    assert record == {
        "schema": 1,
        "kind": "gpu",
        "gpu_sources": {"product": "nvml", "uuid": "nvml"},
        "gpus": [
            {
                "index": i,
                "product": "h100",
                "uuid": f"GPU-{i}",
                "memory_bytes": 85520809984,
                "mig": False,
                "ecc_errors": 0,
            }
            for i in (0, 1)
        ],
        "links": ["X NV18", "NV18 X"],
        "num_cpus": 64,
        "sources": {"matrix": "nvml"},
        "expected": {"gpus": 2, "nics": []},
    }


def test_the_node_comes_back_with_all_its_facts() -> None:
    before = node(4, nics=("mlx5_0", "mlx5_1"), nic_links=["PIX SYS"] * 4, domain="c.1")

    after = node_of(record_of(reading(before), {}), "gpu-1")

    assert hardware_of(after) == hardware_of(before)
    assert after["name"] == "gpu-1"
    assert after["domain"] == "c.1"


def test_sources_that_differ_stay_with_their_gpu() -> None:
    other = gpu(1, sources={"product": "amdsmi"})
    before = node(2, gpus=[gpu(0), other])

    record = record_of(reading(before), {})

    assert "gpu_sources" not in record
    assert hardware_of(node_of(record, "n")) == hardware_of(before)


def test_what_was_there_once_is_missed() -> None:
    whole = record_of(reading(node(2, nics=("mlx5_0", "mlx5_1"))), {})

    less = record_of(reading(node(1, nics=("mlx5_1",))), whole)

    assert [(fault.kind, fault.message) for fault in lost(less)] == [
        ("missing-gpu", "1 GPUs are there, 2 once were"),
        ("missing-nic", "NIC mlx5_0: not there or down"),
    ]
    assert lost(whole) == []


def test_what_comes_back_is_missed_no_more() -> None:
    whole = record_of(reading(node(2, nics=("mlx5_0",))), {})
    less = record_of(reading(node(2)), whole)

    assert lost(record_of(reading(node(2, nics=("mlx5_0",))), less)) == []


def test_a_record_of_eight_gpus_is_small() -> None:
    nics = tuple(f"mlx5_{i}" for i in range(8))
    text = json.dumps(record_of(reading(node(8, nics=nics)), {}))

    assert len(text) < 3000


def test_what_a_driver_says_at_length_is_cut_to_what_the_definition_takes() -> None:
    talkative = gpu(0, product="h" * 5000, faults=["f" * 5000])
    said = replace(reading(node(1, gpus=[talkative])), warnings=("w" * 5000,) * 300)

    record = record_of(said, {})

    assert len(record["gpus"][0]["product"]) == 253
    assert len(record["gpus"][0]["faults"][0]) == 1024
    assert [len(text) for text in record["warnings"]] == [1024] * 256
