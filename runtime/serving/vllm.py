"""The same placement handed to an installed vLLM: its command, its devices, its end.

vLLM starts workers of its own, tp innermost and pp outside, on the devices that it sees in their
order. So it is shown the plan's devices in the order of the layout, and one rank of ours starts it
and looks after it; the others wait. One replica of it is one process, so `dp` stays vLLM's own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from parctl.errors import NotBuiltError, RunFailedError, UsageError
from parctl.planner.plan import Plan

MODULE = "vllm.entrypoints.openai.api_server"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
POLL_S = 0.2
GRACE_S = 20.0


def vllm_command(plan: Plan) -> tuple[str, ...]:
    """Return the program and its arguments. Raises UsageError for what vLLM cannot be told."""
    recipe = plan.recipe
    spec, serve, saving = recipe.inference, recipe.serve, recipe.checkpoint
    assert spec is not None and serve is not None and saving is not None
    if saving.init_from is None:
        raise UsageError(
            "inference.engine: vllm reads a Hugging Face folder, and the recipe names none",
            hint="`model: {hf: DIR}`, or `checkpoint.init_from`",
        )
    if spec.precision not in DTYPES:
        raise UsageError(
            f"inference.precision {spec.precision}: vLLM has {', '.join(DTYPES)}",
            hint="set one of them",
        )
    if plan.layout.num_nodes > 1:
        raise NotBuiltError(
            f"inference.engine: vllm on {plan.layout.num_nodes} nodes",
            hint="one node, or `inference.engine: parctl`",
        )
    axes = plan.layout.axes
    options: dict[str, object] = {
        "model": saving.init_from,
        "served-model-name": serve.model_name,
        "host": serve.host,
        "port": serve.port,
        "dtype": DTYPES[spec.precision],
        "tensor-parallel-size": axes.get("tp", 1),
        "pipeline-parallel-size": axes.get("pp", 1),
        "data-parallel-size": axes.get("dp", 1),
        "max-model-len": spec.max_context,
        "max-num-seqs": spec.max_sequences,
        "max-num-batched-tokens": max(spec.chunk, spec.max_sequences),
        "block-size": spec.block_size,
        "gpu-memory-utilization": spec.memory_fraction,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    flags = [f"--{'' if spec.prefix_cache else 'no-'}enable-prefix-caching"]
    if (plan.layout.expert_axes or {}).get("ep", 1) > 1:
        flags.append("--enable-expert-parallel")
    if spec.chat_template is not None:
        words += ["--chat-template", spec.chat_template]
    return (sys.executable, "-m", MODULE, *words, *flags)


def vllm_environment(plan: Plan, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment: devices in the order of the layout, and the key if there is one."""
    serve = plan.recipe.serve
    assert serve is not None
    given = {
        key: value
        for key, value in environment.items()
        if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    by_rank = {slot.rank: slot.gpu for slot in plan.layout.slots}
    given["CUDA_VISIBLE_DEVICES"] = ",".join(str(by_rank[rank]) for rank in plan.layout.ranks)
    if serve.api_key_from is not None:
        given["VLLM_API_KEY"] = environment[serve.api_key_from]
    return given


def run_vllm(plan: Plan, *, stop: Callable[[], bool]) -> None:
    """Serve with vLLM until told to stop. RunFailedError: it ended by itself."""
    command = vllm_command(plan)
    if find_spec("vllm") is None:
        raise UsageError(
            "inference.engine: vllm, and vLLM is not installed on this node",
            hint="`pip install vllm`, or `inference.engine: parctl`",
        )
    with subprocess.Popen(command, env=vllm_environment(plan, os.environ)) as server:
        while server.poll() is None:
            if stop():
                server.terminate()
                try:
                    server.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    server.kill()
                return
            time.sleep(POLL_S)
        raise RunFailedError(f"vLLM ended with exit code {server.returncode}")
