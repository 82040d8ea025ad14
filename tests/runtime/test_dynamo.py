"""torch's tracer is imported when something is compiled, and is then what it would have been."""

import subprocess
import sys

import pytest

BEGIN = """
import sys, torch
from parctl.runtime.execution import dynamo
from parctl.runtime.execution.stand_in import OnDemand
def is_real():
    return not isinstance(sys.modules["torch._dynamo"], dynamo.UntilTraced)
@torch._disable_dynamo
def untraced(x):
    return x + 1
untraced(torch.ones(1)) if "early" in sys.argv else None
dynamo.put_off()
"""
TRAIN = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = torch.nn.Linear(4, 4)
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
model(torch.ones(1, 4)).sum().backward()
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
dist.destroy_process_group()
assert not is_real()
"""
COMPILE = """
assert untraced(torch.ones(1)).item() == 2
kept = untraced.__wrapped__.__dynamo_disable
assert kept is untraced.__wrapped__ and not is_real()
def double(x):
    return 2 * untraced(x)
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward
assert torch.compile(double, backend=backend)(torch.ones(1)).item() == 4
assert is_real() and len(graphs) == 1  # the addition is in no graph
nodes = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
assert len(nodes) == 1 and "mul" in nodes[0], nodes
assert untraced.__wrapped__.__dynamo_disable is not untraced.__wrapped__
"""
INSIDE = """
import torch._dynamo.config
config = sys.modules["torch._dynamo.config"]
assert not is_real() and torch._dynamo.config is config
before = torch._dynamo.config.error_on_nested_fx_trace
import torch._dynamo.utils
assert is_real()
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"]
assert torch._dynamo.utils.__spec__.loader.name == "torch._dynamo.utils"
assert torch._dynamo.config is config is sys.modules["torch._dynamo.config"]
assert torch._dynamo.config.error_on_nested_fx_trace == before
from torch._dynamo import OptimizedModule
assert not [one for one in sys.meta_path if isinstance(one, OnDemand)]
"""
ASKED = """
assert callable(torch._dynamo.optimize) and is_real()
"""
THERE = """
assert is_real()
"""


@pytest.mark.parametrize("script", [TRAIN, COMPILE, INSIDE, ASKED])
def test_the_stand_in(script: str) -> None:
    run(script)


def test_the_real_one_stays_where_it_is_there_already() -> None:
    run(THERE, "early")


def run(script: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
