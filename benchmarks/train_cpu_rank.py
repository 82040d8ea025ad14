"""One rank of one program of `train_cpu.py`: `python train_cpu_rank.py PROGRAM DIRECTORY`.

Every program trains the same Llama on random tokens: forward, backward, clipping by the gradient
norm, fused AdamW. Times are taken at the same place of every step; the first ones warm up. Peers
run in `.venv-peers`, with the torch of `.venv`.
"""

import importlib
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

DIM, LAYERS, HEADS, FFN, VOCAB, SEQ_LEN = 512, 6, 8, 1536, 2048, 256
ROWS, LR, MAX_NORM = 8, 3e-4, 1.0
WARM_UP, STEPS = 2, 4
Step = Callable[[Tensor, Tensor], object]
Make = Callable[[str, Path], Step]


def batch(rows: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    tokens = torch.randint(VOCAB, (rows, SEQ_LEN + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def join() -> int:
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    return dist.get_rank()


def hugging_face() -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=SEQ_LEN,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = transformers.LlamaForCausalLM(config)
    model.train()
    return model


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.1, fused=True)


def mean_loss(logits: Tensor, targets: Tensor) -> Any:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def fully_shard_llama(precision: str, directory: Path) -> Step:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = hugging_face()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = adamw(model)

    def step(tokens: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        mean_loss(model(input_ids=tokens).logits, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()

    return step


def accelerate_fsdp(precision: str, directory: Path) -> Step:
    """FSDP2 of accelerate, which on a CPU takes DDP in its place if its state is left alone."""
    accelerate = importlib.import_module("accelerate")
    plugin = accelerate.utils.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    mixed = "bf16" if precision == "bf16" else "no"
    if mixed == "bf16":
        plugin.set_mixed_precision(mixed)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=mixed, fsdp_plugin=plugin)
    accelerator.state.distributed_type = accelerate.DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    model = hugging_face()
    model, optimizer = accelerator.prepare(model, adamw(model))
    if not isinstance(model, FSDPModule):
        raise TypeError(f"accelerate made a {type(model).__name__}")
    sharded: Any = model

    def step(tokens: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        accelerator.backward(mean_loss(sharded(input_ids=tokens).logits, targets))
        accelerator.clip_grad_norm_(sharded.parameters(), MAX_NORM)
        optimizer.step()

    return step


def ddp_llama(precision: str, directory: Path) -> Step:
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(hugging_face(), gradient_as_bucket_view=True)
    optimizer = adamw(model)

    def step(tokens: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        with autocast(precision):
            logits = model(input_ids=tokens).logits
        mean_loss(logits, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()

    return step


def tensor_parallel_llama(precision: str, directory: Path) -> Step:
    """Hugging Face's Llama split by torch's own `parallelize_module`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = hugging_face()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    columns, rows = ColwiseParallel(), RowwiseParallel()
    plan: dict[str, Any] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj"):
            plan[f"{layer}.self_attn.{name}"] = columns
        plan[f"{layer}.self_attn.o_proj"] = rows
        plan[f"{layer}.mlp.gate_proj"] = plan[f"{layer}.mlp.up_proj"] = columns
        plan[f"{layer}.mlp.down_proj"] = rows
    parallelize_module(model, mesh, plan)
    split = [value for value in model.parameters() if hasattr(value, "placements")]
    whole = [value for value in model.parameters() if not hasattr(value, "placements")]
    optimizers = [
        torch.optim.AdamW(part, lr=LR, weight_decay=0.1, fused=True) for part in (split, whole)
    ]

    def step(tokens: Tensor, targets: Tensor) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with autocast(precision):
            logits = model(input_ids=tokens).logits
        mean_loss(logits, targets).backward()
        for part in (split, whole):
            nn.utils.clip_grad_norm_(part, MAX_NORM)
        for optimizer in optimizers:
            optimizer.step()

    return step


def picotron(form: str) -> Make:
    """picotron from the folder in PICOTRON. On a CPU it computes in float32 only."""

    def make(precision: str, directory: Path) -> Step:
        os.environ |= {"FLASH_ATTEN": "0", "DEVICE": "cpu", "DTYPE": "float32"}
        sys.path.insert(0, os.environ["PICOTRON"])
        for name, function in (
            ("flash_attn.flash_attn_interface", "flash_attn_func"),
            ("flash_attn.layers.rotary", "apply_rotary_emb"),
            ("flash_attn.ops.triton.layer_norm", "layer_norm_fn"),
        ):  # imported, but not used on a CPU
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                sys.modules.setdefault(
                    ".".join(parts[:end]), types.ModuleType(".".join(parts[:end]))
                )
            setattr(sys.modules[name], function, None)
        manager = importlib.import_module("picotron.process_group_manager")
        size = dist.get_world_size()
        tp = size if form == "tp" else 1
        manager.setup_process_group_manager(tp_size=tp, cp_size=1, pp_size=1, dp_size=size // tp)
        config = types.SimpleNamespace(
            hidden_size=DIM,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            intermediate_size=FFN,
            vocab_size=VOCAB,
            num_hidden_layers=LAYERS,
            max_position_embeddings=SEQ_LEN,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
        )
        model: Any = importlib.import_module("picotron.model").Llama(config)
        if form == "tp":
            model = importlib.import_module(
                "picotron.tensor_parallel.tensor_parallel"
            ).apply_tensor_parallel(model)
        else:
            model = importlib.import_module(
                "picotron.data_parallel.data_parallel"
            ).DataParallelBucket(model)
        optimizer = adamw(model)

        def step(tokens: Tensor, targets: Tensor) -> None:
            optimizer.zero_grad()
            mean_loss(model(input_ids=tokens), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            if form == "dp":
                model.reset()

        return step

    return make


def matmuls(precision: str, directory: Path) -> Step:
    """The matrix products of a step and nothing else, in the shapes of the model."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = LAYERS * [(DIM, 3 * DIM), (DIM, DIM), (DIM, 2 * FFN), (FFN, DIM)] + [(DIM, VOCAB)]
    weights = [torch.randn(outputs, inputs, dtype=dtype) for inputs, outputs in shapes]
    inputs = {size: torch.randn(ROWS * SEQ_LEN, size, dtype=dtype) for size in (DIM, FFN)}
    outputs = {
        size: torch.randn(ROWS * SEQ_LEN, size, dtype=dtype)
        for size in {w.shape[0] for w in weights}
    }

    def step(tokens: Tensor, targets: Tensor) -> None:
        for weight in weights:
            x, y = inputs[weight.shape[1]], outputs[weight.shape[0]]
            _ = x @ weight.T
            _ = y @ weight
            _ = y.T @ x

    return step


PROGRAMS: dict[str, Make] = {
    "fully_shard": fully_shard_llama,
    "accelerate": accelerate_fsdp,
    "ddp": ddp_llama,
    "parallelize_module": tensor_parallel_llama,
    "picotron-dp": picotron("dp"),
    "picotron-tp": picotron("tp"),
    "matmuls": matmuls,
}
SHARES_BATCH = ("parallelize_module", "picotron-tp")  # both ranks have the rows of both


def run_peer(program: str, precision: str, directory: Path) -> list[tuple[float, float]]:
    rank = join()
    rows, source = (2 * ROWS, 0) if program in SHARES_BATCH else (ROWS, rank)
    step = PROGRAMS[program](precision, directory)
    times = []
    for number in range(WARM_UP + STEPS):
        tokens, targets = batch(rows, source, number)
        times.append(clocks())
        step(tokens, targets)
    dist.barrier()
    times.append(clocks())
    return times


def run_parctl(directory: Path) -> list[tuple[float, float]]:
    """The loop of the product; it asks `stop` once per step, just before the step's totals."""
    from parctl.planner.plan import plan_from_json
    from parctl.runtime.parallel.mesh import build_mesh, choose_device, join_world
    from parctl.runtime.trainer import train
    from parctl.runtime.training import prepare

    plan = plan_from_json(json.loads((directory / "plan.json").read_text()))
    device = choose_device()
    join_world(plan.layout, device)
    assert plan.recipe.train
    mesh = build_mesh(plan.layout, device, wrap_alone=plan.recipe.train.precision == "bf16")
    training = prepare(
        plan, mesh, directory, run="bench", attempt=1, leader=os.environ["LOCAL_RANK"] == "0"
    )
    times = []

    def stop() -> bool:
        times.append(clocks())
        return False

    train(training, stop=stop)
    return times


def main() -> None:
    program, precision, directory = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if program == "parctl":
        times = run_parctl(directory)
    else:
        times = run_peer(program, precision, directory)
    path = directory / f"times-{os.environ['RANK']}.json"
    path.write_text(json.dumps(times[-STEPS - 1 :]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
