"""`nvidia-smi -L` and `nvlink -s`: which GPUs there are, and which of their links run."""

import pytest

from parctl.errors import UsageError
from parctl.topology.sources.smi_list import looks_like, read_text

MIG = """\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-b614723c-e261-4605-066e-79daab4c00ff)
  MIG 7g.80gb     Device  0: (UUID: MIG-dc34c2fd-4bd7-52ad-a6d0-645dcd1794e4)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-e52dfcc4-406d-a3d4-f787-4402b535877a)
  MIG 2g.20gb     Device  0: (UUID: MIG-ec4c3916-65fa-5948-b9b5-9f21a2ddfcc0)
  MIG 1g.20gb     Device  1: (UUID: MIG-GPU-e52dfcc4-406d-a3d4-f787-4402b535877a/5/0)
GPU 2: NVIDIA H100 PCIe (UUID: GPU-6968dfc2-d444-d92c-c36b-6abe53445cb9)
"""


def linked(*states: str) -> str:
    """`nvlink -s` of GPUs whose links are up (`u`) or inactive (`i`)."""
    lines = []
    for i, state in enumerate(states):
        lines.append(
            f"GPU {i}: NVIDIA H100 PCIe (UUID: GPU-0000000{i}-d444-d92c-c36b-6abe53445cb9)"
        )
        for j, letter in enumerate(state):
            lines.append(f"\t Link {j}: {'26.562 GB/s' if letter == 'u' else '<inactive>'}")
    return "\n".join(lines) + "\n"


def test_products_uuids_and_slices_are_read() -> None:
    assert looks_like(MIG)
    topology = read_text(MIG, "node-3.txt")
    devices = topology.nodes[0].hardware.devices

    assert [device.product for device in devices] == ["a100-80g", "a100-80g", "h100-pcie"]
    assert [device.mig for device in devices] == [True, True, None]
    assert devices[1].uuid == "GPU-e52dfcc4-406d-a3d4-f787-4402b535877a"
    assert devices[1].sources == dict.fromkeys(("product", "uuid", "mig"), "nvidia-smi -L")
    assert topology.warnings[1] == (
        "gpu 1: MIG is on (2g.20gb, 1g.20gb); the whole GPU is shown, not its slices"
    )
    assert "links of GPU 0-2 (3 of 3 pairs)" in topology.unknown


def test_a_uuid_that_was_cut_is_unknown() -> None:
    topology = read_text(MIG[:150], "node.txt")

    assert [device.uuid for device in topology.nodes[0].hardware.devices] == [
        "GPU-b614723c-e261-4605-066e-79daab4c00ff"
    ]
    topology = read_text(MIG.split("4402b5358")[0], "node.txt")
    assert topology.nodes[0].hardware.devices[1].uuid is None
    assert "UUID of GPU 1: not whole in the text" in topology.unknown


def test_inactive_links_alone_are_no_fault() -> None:
    assert read_text(linked("uuuuiiuuuuii", "uuuuiiuuuuii"), "pair.txt").warnings == ()


def test_a_gpu_with_fewer_links_up_than_its_neighbours_is_said() -> None:
    topology = read_text(linked("uuuu", "uuui", "iiii"), "node.txt")

    assert topology.warnings == (
        "gpu 1: 3 NVLinks are active, others of this node have 4",
        "gpu 2: all 4 NVLinks are inactive",
    )
    assert topology.nodes[0].hardware.matrix[0] == ("X", "?", "?")


def test_a_text_without_gpus_is_refused() -> None:
    with pytest.raises(UsageError, match=r"node\.txt:1: no line such as"):
        read_text("GPU: none", "node.txt")
