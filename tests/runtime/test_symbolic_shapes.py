"""Without symbols, torch's symbolic shapes and sympy are not imported; with one, they are there."""

import subprocess
import sys
from pathlib import Path

import pytest

BEGIN = """
import sys, torch
from parctl.runtime.execution import dynamo, symbolic_shapes
dynamo.put_off()
symbolic_shapes.put_off()
from torch.fx.experimental import symbolic_shapes as shapes
NEEDLESS = {"sympy.core", "torch._dynamo.convert_frame"}
def left_out():
    return not NEEDLESS & sys.modules.keys()
"""
# not by the harness of the other tests, which imports all that is left out here
TRAIN = """
import os
from pathlib import Path
from tests.runtime.moe_models import moe_model
from tests.runtime.plans import plan
from parctl.launcher.port import hold_port
from parctl.runtime.worker import TermSignal, run_plan
def train(rank, port, made, run_dir):
    own = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()})
    run_plan(made, run_dir, TermSignal())
    needless = NEEDLESS & sys.modules.keys()
    if needless:
        print(made.layout.axes, needless, file=sys.stderr, flush=True)
    os._exit(bool(needless))
os.environ.update({
    "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
    "PARCTL_RUN_ID": "test-000000", "PARCTL_ATTEMPT": "1",
})
text, folder = map(Path, sys.argv[1:])
bf16 = {"train": {"precision": "bf16"}}
forms = [
    ({"fsdp": 2, "tp": 2}, {"sp": True, **bf16}),
    ({"pp": 2, "dp": 2}, {}),
    ({"fsdp": 2, "cp": 2}, {}),
    ({"dp": 2, "tp": 2}, {"model": moe_model(), "spec": {"ep": 2}}),
]
for number, (axes, options) in enumerate(forms):
    run_dir = folder / str(number)
    run_dir.mkdir()
    with hold_port("127.0.0.1") as held:
        arguments = held.getsockname()[1], plan(text, axes, **options), run_dir
        ranks = [os.fork() or train(rank, *arguments) for rank in range(4)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    assert not any(codes), (axes, codes)
"""
ANSWERS = """
from itertools import product
samples = [(True,), (False,), (7,), ((2, 3),), ([2, 3],), ((2, (3, 4)),), (None,),
    (1, 1), (1, 2), ((2, 3), [2, 3]), ((2, 3), (2, 4)), ((2, 3), (2,)), (True, False),
    (True, True, True)]
def answer(function, arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return error
found = {
    (name, number): answer(getattr(shapes, name), samples[number])
    for name, number in product(symbolic_shapes.ANSWERS, range(len(samples)))
}
assert shapes.compute_unbacked_bindings(None, torch.ones(1)) is None and left_out()
shapes.load()
assert not left_out()
real = sys.modules["torch.fx.experimental.symbolic_shapes"]
assert real is not shapes and torch.fx.experimental.symbolic_shapes is real
compared = 0
for (name, number), own in found.items():
    expected = answer(getattr(real, name), samples[number])
    if isinstance(expected, Exception):
        continue  # torch never asks that
    if name.startswith("_iterate"):
        expected = tuple(expected)
    assert own == expected, (name, samples[number], own, expected)
    compared += 1
assert compared > 60, compared
"""
SYMBOLIC = """
kept = shapes.guard_or_false, shapes.sym_eq, shapes.has_free_unbacked_symbols
from torch.distributed.tensor import _decompositions
assert left_out() and _decompositions.GuardOnDataDependentSymNode is symbolic_shapes.NeverRaised
env = shapes.ShapeEnv()
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
assert not left_out() and issubclass(GuardOnDataDependentSymNode, RuntimeError)
assert _decompositions.GuardOnDataDependentSymNode is GuardOnDataDependentSymNode
unbacked = env.create_unbacked_symint()
assert kept[0](unbacked == 3) is False and kept[2]([unbacked, 1])
assert isinstance(kept[1]((unbacked, 2), (unbacked, 2)), bool | torch.SymBool)
try:
    bool(unbacked == 3)
except GuardOnDataDependentSymNode:
    pass
else:
    raise AssertionError
from torch.utils._sympy.functions import Max
assert isinstance(Max, type)
"""
COMPILED = """
def double(x):
    return 2 * x.reshape(-1)
compiled = torch.compile(double, backend="eager", dynamic=True)
for length in (3, 4, 5):
    assert compiled(torch.ones(length, 2)).shape == (2 * length,)
assert not left_out()
"""
ALONE = """
import sympy
assert not hasattr(sympy, "__file__") and left_out()
import sympy.core.numbers
assert not left_out() and sympy.Integer(3) == 3 and sys.modules["sympy"].core is sympy.core
"""
ASKED = """
from importlib.util import find_spec
import sympy
assert find_spec("sympy").name == "sympy" and left_out()
sys.modules["blocked"] = None  # as who blocks an import does
assert sympy.__version__ and not left_out()
assert shapes.guard_or_false(a=True) is True
"""
ALL = """
from sympy import *
assert not left_out() and Symbol is sys.modules["sympy"].Symbol
"""
CALLED = """
from torch.utils._sympy.functions import Max
assert left_out()
assert Max(2, 3) == 3 and not left_out()
from torch.utils._sympy.functions import Max
assert isinstance(Max, type)
"""


def test_a_training_imports_neither(text: Path, tmp_path: Path) -> None:
    run(TRAIN, str(text), str(tmp_path))


@pytest.mark.parametrize("script", [ANSWERS, SYMBOLIC, COMPILED, ALONE, ASKED, ALL, CALLED])
def test_the_stand_ins(script: str) -> None:
    run(script)


def run(script: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
