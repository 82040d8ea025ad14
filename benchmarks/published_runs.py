"""Published training runs in the format of `plan_accuracy.py`, made into jobs of the time model.

A row names model, hardware, parallelism and what was measured; anything may be missing. What a row
leaves out is filled by the rules below, the same for all rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.published_software import (
    TUNED,
    attention_of,
    release,
    stack_of,
    tensor_overlap,
    year_of,
)

from parctl.planner.degrees import Degrees
from parctl.planner.flops import attention_flops_per_token, matmul_parameters
from parctl.planner.stages import balance
from parctl.planner.time.job import (
    ALL,
    NOTHING,
    Arithmetic,
    Fabric,
    Job,
    Repeated,
)
from parctl.recipes.presets import model_preset
from parctl.recipes.spec import MlaSpec, ModelSpec, MoeSpec
from parctl.topology.products import Product, find_product

REPEATED: Mapping[str, Repeated] = {
    "full": ALL,
    "selective": Repeated(attention=1.0),  # scores and values (2205.05198)
    "selective-op": Repeated(products=0.5, elements=1.0),  # torchtitan: every other product
    "selective-layer": Repeated(0.5, 0.5, 0.5),  # torchtitan: every other layer
}


class CannotPredict(Exception):
    """A row that says too little, or something that the time model has no words for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    id: str
    family: str
    source: str
    gpu: str
    sparse: bool
    fits: bool  # False: the source says that it ran out of memory
    job: Job
    says_recompute: bool  # else the job has none, and memory must decide
    step_time_s: float | None  # measured
    peak_mem_gb: float | None


def read_run(row: Mapping[str, Any]) -> Run:
    """Raises CannotPredict with the reason."""
    try:
        return _run(row)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CannotPredict(f"row is incomplete: {type(error).__name__}: {error}") from error


def _run(row: Mapping[str, Any]) -> Run:
    job = job_of_row(row)
    refuse_nonsense(job)
    measured = row.get("measured") or {}
    peak = measured.get("peak_mem_gb")
    if peak is None and measured.get("peak_mem_gib") is not None:
        peak = float(measured["peak_mem_gib"]) * 2**30 / 1e9
    return Run(
        id=str(row["id"]),
        family=str(row.get("family", "unknown")),
        source=str((row.get("source") or {}).get("title", "unknown")),
        gpu=str(row["hardware"]["gpu"]),
        sparse=job.model.moe is not None,
        fits=row.get("fit", True) is not False,
        job=job,
        says_recompute=row["parallelism"].get("recompute") is not None,
        step_time_s=measured_step_time(row, job),
        peak_mem_gb=None if peak is None else float(peak),
    )


def refuse_nonsense(job: Job) -> None:
    """Raise CannotPredict for sizes that are not positive, and for devices without figures."""
    model, degrees, moe = job.model, job.degrees, job.model.moe
    sizes = [getattr(degrees, field.name) for field in fields(degrees)]
    sizes += [model.num_layers, model.dim, model.num_heads, model.num_kv_heads, model.head_dim]
    sizes += [model.vocab_size, model.ffn_dim, job.seq_len, job.micro_batch, job.virtual_stages]
    sizes += [job.fabric.num_devices, job.fabric.island, job.fabric.fast, job.fabric.slow]
    if moe is not None:
        sizes += [moe.num_experts, moe.top_k, moe.expert_ffn_dim]
    if min(sizes) <= 0:
        raise CannotPredict("a size or a degree is not positive")
    if not job.product.bf16_flops or not job.product.memory_bytes_s:
        raise CannotPredict(f"the speed of {job.product.key} is not known")
    if degrees.world_size > 2 * job.fabric.num_devices:
        raise CannotPredict(f"{degrees.world_size} ranks on {job.fabric.num_devices} GPUs")


def job_of_row(row: Mapping[str, Any]) -> Job:
    model, parallelism, hardware = row["model"], row["parallelism"], row["hardware"]
    spec = model_of(model)
    product = product_of(str(hardware["gpu"]))
    num_gpus = int(hardware["num_gpus"])
    degrees = degrees_of(parallelism, num_gpus)
    virtual = virtual_stages_of(row, spec, degrees.pp)
    global_batch = parallelism.get("global_batch")
    micro_batch = parallelism.get("micro_batch") or 1
    data = degrees.num_data_ranks
    if global_batch is None:
        known = parallelism.get("micro_batch") and degrees.pp == 1
        accumulation = parallelism.get("grad_accum") or (1 if known else 8 * degrees.pp)
        global_batch = micro_batch * data * accumulation
    num_micro_batches = max(1, round(global_batch / (micro_batch * data)))
    arithmetic = arithmetic_of(str(parallelism.get("precision", "bf16")))
    zero_stage = int(parallelism.get("zero") or 0)
    lora = row.get("task") == "lora"
    year = year_of(row)
    return Job(
        model=spec,
        degrees=degrees,
        sp=bool(parallelism.get("sp", year >= 2023)),
        zero_stage=zero_stage,
        schedule=str(parallelism.get("schedule") or "1f1b"),
        virtual_stages=virtual,
        stages=stages_of(spec, degrees.pp * virtual),
        seq_len=int(model["seq"]),
        micro_batch=int(micro_batch),
        num_micro_batches=num_micro_batches,
        arithmetic=arithmetic,
        repeated=repeated_of(row, year),
        gathers_each=zero_stage == 3 and degrees.pp == 1,
        scatters_each=zero_stage == 3 and degrees.pp == 1,
        gathered_bytes=2.0 if arithmetic == "bf16" else 1.0,
        cp_kind="ring",
        windows=windows_of(str(model.get("attention", ""))),
        attention=attention_of(row, year),
        tensor_overlap=tensor_overlap(row, year),
        data_overlap=year >= 2023 or sharded_early(parallelism, year),
        graphs=release(row) >= (26, 6) and hardware.get("nvlink_domain") is not None,
        trained_share=0.01 if lora else 1.0,
        product=product,
        fabric=fabric_of(hardware, product, num_gpus, one_ring=sharded_early(parallelism, year)),
    )


def repeated_of(row: Mapping[str, Any], year: int) -> Repeated:
    """torch's checkpoints stop early since 2023; Megatron's own run a layer to its end."""
    found = REPEATED.get(str(row["parallelism"].get("recompute")), NOTHING)
    if year >= 2023 and not any(mark in stack_of(row) for mark in TUNED):
        return replace(found, last=False)
    return found


def model_of(model: Mapping[str, Any]) -> ModelSpec:
    base = model_preset("llama-3-8b")
    heads = int(model["heads"])
    sparse = model.get("moe")
    moe = None
    if sparse:
        moe = replace(
            moe_template(),
            num_experts=int(sparse["experts"]),
            top_k=int(sparse["topk"]),
            expert_ffn_dim=int(sparse["moe_ffn"]),
            num_shared_experts=int(sparse.get("shared_experts") or 0),
            num_dense_layers=int(sparse.get("dense_layers") or 0),
            layer_period=1,
        )
    return replace(
        base,
        name=str(model["name"]),
        family="moe" if sparse else "llama",
        num_layers=int(model["layers"]),
        dim=int(model["hidden"]),
        num_heads=heads,
        num_kv_heads=int(model.get("kv_heads") or heads),
        head_dim=int(model.get("head_dim") or model["hidden"] // heads),
        ffn_dim=int(model["ffn"]),
        vocab_size=int(model["vocab"]),
        max_seq_len=int(model["seq"]),
        activation="swiglu" if model.get("gated_mlp", True) else "gelu",
        tied_embeddings=bool(model.get("tied_embeddings")),
        mla=mla_of(str(model.get("attention", ""))),
        moe=moe,
    )


def moe_template() -> MoeSpec:
    moe = model_preset("mixtral-8x7b").moe
    assert moe is not None
    return moe


def mla_of(text: str) -> MlaSpec | None:
    if not text.startswith("mla"):
        return None
    sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)", text)}
    return MlaSpec(
        q_lora_rank=sizes.get("q_lora"),
        kv_lora_rank=sizes["kv_lora"],
        qk_nope_head_dim=sizes["qk_nope"],
        qk_rope_head_dim=sizes["qk_rope"],
        v_head_dim=sizes["v"],
    )


def windows_of(text: str) -> tuple[int | None, ...]:
    window = re.search(r"window (\d+)", text)
    if window is None:
        return (None,)
    return (int(window[1]), None) if "alternating" in text else (int(window[1]),)


def product_of(text: str) -> Product:
    plain = text.upper()
    names = (
        ("GB300", "gb300"), ("GB200", "gb200"), ("B300", "b300"), ("B200", "b200"),
        ("H200", "h200"), ("H800", "h800"), ("H20", "h20"), ("H100-96GB", "h100-96"),
        ("H100-PCIE", "h100-pcie"), ("H100", "h100"), ("A100-40GB", "a100-40g"),
        ("A100-PCIE", "a100-pcie-80g"), ("A100", "a100-80g"), ("A800", "a800"),
        ("V100", "v100-32g"), ("MI300X", "mi300x"), ("L40S", "l40s"),
    )  # fmt: skip
    for mark, key in names:
        if mark in plain:
            if key == "h100-96":
                # a board of 96 GB HBM2e and 500 W: clocks fall with power
                known = find_product("h100")
                assert known is not None
                return replace(
                    known,
                    memory_bytes=96 * 10**9,
                    memory_bytes_s=2.4e12,
                    key="h100-500w",
                    watts=500.0,
                )
            product = find_product(key)
            assert product is not None
            return product
    product = find_product(text)
    if product is None or product.bf16_flops is None:
        raise CannotPredict(f"unknown GPU {text}")
    return product


def degrees_of(parallelism: Mapping[str, Any], num_gpus: int) -> Degrees:
    tp, pp, cp = (int(parallelism.get(name) or 1) for name in ("tp", "pp", "cp"))
    data = int(parallelism.get("dp") or max(1, num_gpus // (tp * pp * cp)))
    sharded = int(parallelism.get("zero") or 0) >= 1
    return Degrees(
        pp=pp,
        dp=1 if sharded else data,
        fsdp=data if sharded else 1,
        cp=cp,
        tp=tp,
        ep=int(parallelism.get("ep") or 1),
        etp=int(parallelism.get("etp") or 1),
    )


def stages_of(model: ModelSpec, num_stages: int) -> tuple[tuple[int, ...], ...]:
    if not 1 <= num_stages <= model.num_layers:
        raise CannotPredict(f"{num_stages} stages, but {model.num_layers} layers")
    sizes = balance((1.0,) * model.num_layers, num_stages, last=0.01, first=0.02)
    starts = [sum(sizes[:index]) for index in range(num_stages)]
    return tuple(
        tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)
    )


def arithmetic_of(precision: str) -> Arithmetic:
    if "fp4" in precision:
        return "fp4"
    return "fp8" if "fp8" in precision else "bf16"


def virtual_stages_of(row: Mapping[str, Any], model: ModelSpec, pp: int) -> int:
    """Where a row does not say, but is known to interleave: chunks of the fewest layers."""
    parallelism = row["parallelism"]
    stated = int(parallelism.get("vpp") or 1)
    unknown = "vpp" in (row.get("inferred") or ()) or parallelism.get("vpp") is None
    if stated > 1 or pp == 1 or not unknown or year_of(row) < 2023:
        return stated
    return next(
        (count for count in (8, 6, 5, 4, 3, 2) if model.num_layers % (count * pp) == 0), stated
    )


def sharded_early(parallelism: Mapping[str, Any], year: int) -> bool:
    """ZeRO-3 before 2022 gathered parameter by parameter, over one adapter of a node at a time."""
    return year < 2022 and int(parallelism.get("zero") or 0) == 3


def fabric_of(
    hardware: Mapping[str, Any], product: Product, num_gpus: int, *, one_ring: bool
) -> Fabric:
    per_node = int(hardware.get("gpus_per_node") or product.devices_per_node)
    fast = product.nvlink_gb_s
    stated = re.search(r"([\d,]+)\s*GB/s", str(hardware.get("intra_link") or ""))
    if stated:
        fast = float(stated[1].replace(",", "")) / 2  # both ways
    elif "4 inter-GPU links" in str(hardware.get("intra_link")):
        fast = 4 * 25.0
    domain = hardware.get("nvlink_domain")
    island = int(domain or product.domain_devices or per_node)
    return Fabric(
        fast=(fast or product.pcie_gb_s or 32.0) * 1e9,
        slow=network_bytes(str(hardware.get("inter_link") or ""), per_node, product)
        / (per_node if one_ring else 1),
        island=min(island, num_gpus),
        num_devices=num_gpus,
    )


def network_bytes(text: str, per_node: int, product: Product) -> float:
    """Bytes/s of one GPU's share."""
    gbit = product.nic_gbit_s or 100.0
    count = re.match(r"(\d+)x", text)
    rate = re.search(r"([\d.]+)\s*Gb/s", text)
    if rate:
        gbit = float(rate[1])
        if "per node" in text:
            gbit *= (int(count[1]) if count else 1) / per_node
        elif count and "per GPU" not in text:
            gbit *= int(count[1]) / per_node
    return gbit / 8 * 1e9


def measured_step_time(row: Mapping[str, Any], job: Job) -> float | None:
    """Seconds per step: stated, or from throughput."""
    measured = row.get("measured") or {}
    if measured.get("step_time_s"):
        return positive(float(measured["step_time_s"]))
    num_gpus = job.fabric.num_devices
    per_gpu = measured.get("tokens_per_s_per_gpu")
    if per_gpu is None and measured.get("tokens_per_s_total"):
        per_gpu = measured["tokens_per_s_total"] / num_gpus
    if per_gpu:
        return positive(job.tokens_per_step / (float(per_gpu) * num_gpus))
    tflops = measured.get("tflops_per_gpu")
    flops = flops_per_step(row, job)
    if tflops and flops:
        return positive(flops / (float(tflops) * 1e12 * num_gpus))
    if measured.get("mfu") and flops and job.product.bf16_flops:
        return positive(flops / (float(measured["mfu"]) * job.product.bf16_flops * num_gpus))
    return None


def positive(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError(f"measured step time {seconds}")
    return seconds


def flops_per_step(row: Mapping[str, Any], job: Job) -> float | None:
    """FLOPs of a step in the source's own convention; None where it does not say which."""
    convention = str(row.get("flops_convention") or "")
    if not convention:
        return None
    model = job.model
    matmul, scores = 2.0 * matmul_parameters(model), attention_flops_per_token(model, job.seq_len)
    full = 1.0 if "causal attention counted half" in convention else 2.0
    passes = 4.0 if convention.startswith("hardware") else 3.0
    if convention.startswith("hardware") and job.repeated.products == 0:
        return job.tokens_per_step * (3 * (matmul + scores * full) + scores * full)
    return job.tokens_per_step * passes * (matmul + scores * full)
